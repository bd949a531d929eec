"""Tests the commands with users' weights: keys, strides, and preprocessing that is known, assumed or given."""

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from xcit.images.preprocess import preprocess, published_preprocessing
from xcit.models import XCiT
from xcit.zoo import get_model, save_model
from xcit.zoo.architectures import ARCHITECTURES

CIFAR = "debenedetti2022light_xcit_s12_cifar10_linf"
CIFAR_FILE = "debenedetti2022light-xcit-s-cifar10-linf.pth.tar"


def picture(side: int) -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (side, side, 3), dtype=np.uint8))


def seeded(name: str, seed: int = 0, **changes) -> XCiT:
    torch.manual_seed(seed)
    model = get_model(name, **changes)
    torch.nn.init.normal_(model.head.weight, std=0.5)
    return model


def first_class(done) -> int:
    (result,) = json.loads(done.out)
    return result["classes"][0]["index"]


@torch.no_grad()
def best(model: XCiT, spec) -> int:
    return int(model(preprocess(Image.open("a.png"), spec)[None]).argmax())


@pytest.fixture
def nano(tmp_path: Path) -> XCiT:
    """Writes a picture, and a model's weights to a file without metadata; returns the model."""
    picture(48).save("a.png")
    model = seeded("xcit-nano-12-p16")
    torch.save({"model": seeded("xcit-nano-12-p16", 1).state_dict(), "model_ema": model.state_dict()}, "mine.pth")
    return model


def test_info_of_files(xcit, nano) -> None:
    text = xcit("info", "mine.pth", "--key", "model_ema").out
    for part in (
        "file           mine.pth",
        "known by       its tensors",
        "nano-12-p16: width 128, 12 blocks, patches of 16 with stem strides 2, 2, 2, 2",
        "images         3 channels",
        "classes        1000",
        "preprocessing  not known: give --mean, --std and --size",
    ):
        assert part in text
    torch.save(get_model(CIFAR).state_dict(), CIFAR_FILE)
    text = xcit("info", CIFAR_FILE).out
    assert f"known by       its name or digest, which are those of {CIFAR}" in text
    assert "small-12-p4: width 384, 12 blocks, patches of 4 with stem strides 1, 1, 2, 2" in text
    assert "std (0.2471, 0.2435, 0.2616)\n" in text
    content = json.loads(xcit("info", CIFAR_FILE, "--json").out)
    assert content["config"]["stem_strides"] == [1, 1, 2, 2]
    assert content["info"]["assumed"] is False
    Path("renamed.pth").write_bytes(Path("mine.pth").read_bytes())
    torch.save(
        {"normalize.mean": torch.full((3,), 0.5), "normalize.std": torch.full((3,), 0.25)}
        | {f"model.{name}": tensor for name, tensor in nano.state_dict().items()},
        "whole.pth",
    )
    assert "mean (0.5, 0.5, 0.5), std (0.25, 0.25, 0.25) (assumed)" in xcit("info", "whole.pth").out
    save_model(get_model("packaged", pretrained=True), Path("ours.safetensors"))
    assert "known by       its metadata" in xcit("info", "ours.safetensors").out


def test_info_and_list_of_a_robust_record(xcit) -> None:
    text = xcit("info", CIFAR).out
    for part in (
        "patches of 4 with stem strides 1, 1, 2, 2",
        "top-1 90.06%, measured by RobustBench",
        "top-1 56.14% under AutoAttack, Linf 8/255, measured by RobustBench",
        "releases/download/v1.1/debenedetti2022light-xcit-s-cifar10-linf.pth.tar",
        "recipe         none in this package",
        "licence        MIT",
        "(with a browser; then --weights FILE)",
    ):
        assert part in text
    head, row = xcit("list", "debenedetti2022light_xcit_s12_cifar10_").out.splitlines()
    assert head.split()[-3:] == ["top-1", "attacked", "data"]
    assert row.split() == [CIFAR, "32", "90.1", "56.1", "CIFAR-10"]
    names = json.loads(xcit("list", "xcit_nano*", "--json").out)
    assert names == json.loads(xcit("list", "xcit-nano*", "--json").out)
    done = xcit("fetch", "debenedetti2022light_xcit_s12_imagenet_linf_eps8")
    assert done.status == 1
    assert "a program can't download its file: download it with a browser from https://drive.google.com/" in done.err
    assert done.err.count("\n") == 1


def test_predict_says_what_is_assumed_and_takes_what_is_given(xcit, nano) -> None:
    usual = published_preprocessing("official", 224)
    done = xcit(
        "predict", "a.png", "--model", "xcit-nano-12-p16", "--weights", "mine.pth", "--key", "model_ema", "--json", "-"
    )
    assert done.err.startswith("xcit: mine.pth: the preprocessing is assumed: short side to 224, centre 224 x 224, ")
    assert "--mean, --std and --size change it\n" in done.err
    assert first_class(done) == best(nano, usual)
    refused = xcit("predict", "a.png", "--model", "mine.pth", "--key", "model_ema")
    assert refused.status == 2
    assert "the file does not say how to prepare images" in refused.err
    assert "or give --mean, --std and --size" in refused.err
    spec = usual.changed(mean=(0.5, 0.4, 0.3), std=(0.2,), size=96)
    given = ("--mean", 0.5, 0.4, 0.3, "--std", 0.2, "--size", 96)
    for model in (("--model", "mine.pth"), ("--model", "xcit-nano-12-p16", "--weights", "mine.pth")):
        done = xcit("predict", "a.png", *model, "--key", "model_ema", *given, "--json", "-")
        assert done.status == 0
        assert re.fullmatch(
            r"xcit: model (xcit-nano-12-p16 with the weights of )?mine\.pth \(1000 classes\)\n", done.err
        )
        assert first_class(done) == best(nano, spec)
    some = xcit("predict", "a.png", "--model", "mine.pth", "--key", "model_ema", "--size", "96", "--json", "-")
    assert "is assumed: short side to 96" in some.err
    wrong = xcit("predict", "a.png", "--model", "mine.pth", "--mean", "0.5,0.5")
    assert (wrong.status, wrong.err) == (2, "xcit: error: mean has 2 numbers, but the model has 3 channels\n")


def test_predict_with_strides(xcit) -> None:
    picture(32).save("a.png")
    model = seeded(CIFAR)
    torch.save(model.state_dict(), CIFAR_FILE)
    torch.save(model.state_dict(), "mine.pth")
    known: Any = get_model(CIFAR_FILE).info
    spec = known.preprocessing
    want = best(model, spec)
    for arguments in (
        ("--model", CIFAR_FILE),
        ("--model", CIFAR, "--weights", "mine.pth"),
        ("--model", "mine.pth", "--stem-strides", 1, 1, 2, 2, "--mean", *spec.mean, "--std", *spec.std, "--size", 32),
    ):
        done = xcit("predict", "a.png", *arguments, "--json", "-")
        assert done.status == 0
        assert first_class(done) == want


def test_a_key_is_taken_by_every_verb_that_takes_weights(xcit, nano) -> None:
    key = ("--key", "model_ema")
    size = ("--mean", "0.5", "--std", "0.25", "--size", "32")
    spec = published_preprocessing("official", 224).changed(mean=(0.5,), std=(0.25,), size=32)
    assert xcit("features", "a.png", "--model", "mine.pth", *key, *size, "--out", "f.npz").status == 0
    with torch.no_grad():
        want = nano.extract_feat(preprocess(picture(48), spec)[None])[0][0]
    kept = np.load("f.npz")
    (found,) = (kept[name] for name in kept.files if kept[name].dtype == np.float32)
    np.testing.assert_allclose(found[0], want.numpy(), atol=1e-4)
    assert xcit("attention", "a.png", "--model", "mine.pth", *key, *size, "--out", "maps").status == 0
    digests = [xcit("verify", "mine.pth", *chosen).out.split("digest")[1].split()[0] for chosen in ((), key)]
    assert digests[0] != digests[1]
    assert digests[1] == xcit("verify", "mine.pth#model_ema").out.split("digest")[1].split()[0]
    assert xcit("convert", "mine.pth", "ema.safetensors", "--to", "xcit", *key).status == 0
    assert digests[1] in xcit("verify", "ema.safetensors").out
    bench = ("--sizes", 32, "--rounds", 1, "--no-memory")
    assert xcit("bench", "mine.pth", *key, *bench).status == 0
    missing = xcit("bench", "mine.pth", "--key", "student", *bench)
    assert missing.status == 2
    assert "mine.pth has no weights under 'student'" in missing.err
    for verb in (("predict", "a.png", "--model"), ("verify",), ("info",)):
        done = xcit(*verb, "xcit-nano-12-p16", *key)
        assert done.status == 2
        assert "selects weights in a file" in done.err


def test_features_are_measured_as_is_asked(xcit, colours, nano) -> None:
    """The cache of `knn` distinguishes features by all settings that change them: here by the mean."""
    Path("data").mkdir()
    for split in ("train", "val"):
        Path("data", split).symlink_to(colours)
    base = ("knn", "mine.pth", "--key", "model_ema", "--data", "data", "--workers", 0, "--k", 3, "--size", 32)
    for mean in ("0.5", "0.9"):
        assert xcit(*base, "--mean", mean, "--std", 0.25).status == 0
    assert len(list(Path(".cache/features").iterdir())) == 4  # for two splits each


def test_test_normalises_as_the_weights_ask_and_as_is_given(xcit, colours, trained) -> None:
    run, _ = trained
    Path("data").mkdir()
    Path("data/val").symlink_to(colours)
    base = ("test", run / "config.yaml", run / "model.safetensors", "--data", "data", "--workers", 0)
    assert xcit(*base, "--out", "one").status == 0
    assert xcit(*base, "--out", "two", "--mean", 0.1, "--std", 0.5, 0.5, 0.4, "--size", 24).status == 0
    one, two = (json.loads(Path(name, "report.json").read_text()) for name in ("one", "two"))
    assert one["preprocessing"]["mean"] == [0.5, 0.5, 0.5]
    assert (two["preprocessing"]["mean"], two["preprocessing"]["std"]) == ([0.1] * 3, [0.5, 0.5, 0.4])
    assert (two["preprocessing"]["image_size"], two["preprocessing"]["resize_to"]) == (24, 24)
    assert one["loss"] != two["loss"]


def test_segment_and_detect_take_them_too(xcit) -> None:
    picture(64).save("a.png")
    for verb, name, num_classes in (
        ("segment", "sem-fpn_xcit-tiny-12-p16_80k_ade20k", 150),
        ("detect", "mask-rcnn_xcit-tiny-12-p16_3x_coco", 80),
    ):
        torch.manual_seed(0)
        save_model(get_model(name), Path("dense.safetensors"))
        content = {"model_ema": get_model("dense.safetensors").state_dict(), "model": {"x": torch.ones(1)}}
        torch.save(content, "dense.pth")
        done = xcit(
            *(verb, "a.png", "--model", name, "--weights", "dense.pth", "--key", "model_ema", "--out", verb),
            *("--mean", "0.5", "--std", "0.25", "--size", 64),
        )
        assert done.status == 0
        assert done.err == f"xcit: model {name} with the weights of dense.pth ({num_classes} classes)\n"


def test_training_starts_from_a_key_and_from_other_strides(xcit, colours, small) -> None:
    """A model with other stem strides starts from the weights of a model with the usual strides, as for CIFAR."""
    config = ARCHITECTURES["pico-6-p4"]
    assert config.strides == (2, 2)
    fields = ("--data", colours, "--device", "cpu", *small, "--schedule.epochs", 1)
    assert xcit("train", "xcit-pico-fashion-mnist", "--out", "first", *fields).status == 0
    state = get_model("first/model.safetensors").state_dict()
    torch.save({"model": {"x": torch.ones(1)}, "net": state}, "first.pth")
    done = xcit(
        *("train", "xcit-pico-fashion-mnist", "--out", "second", *fields),
        *("--model.stem_strides", "1,2,2", "--initialize.weights", "first.pth#net"),
    )
    assert done.status == 0, done.err
    model: Any = get_model("second/model.safetensors")
    assert (model.config.patch_size, model.config.strides) == (4, (1, 2, 2))
    missing = xcit("train", "xcit-pico-fashion-mnist", "--out", "x", *fields, "--initialize.weights", "none.pth#net")
    assert "initialize.weights: none.pth#net: no such file" in missing.err
