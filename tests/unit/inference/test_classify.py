import copy
import pickle
from dataclasses import replace
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from xcit.errors import XCiTError
from xcit.images.preprocess import Preprocessing, preprocess
from xcit.images.read import read_image
from xcit.inference.classify import Features, Prediction, extract_features, extract_features_each, predict, predict_each
from xcit.inference.reading import Unreadable
from xcit.models import ModelInfo, XCiT, XCiTConfig
from xcit.zoo import get_model, save_model

NUM_BLOCKS = 4
OUT_TYPES = ("cls_token", "featmap", "avg_featmap", "raw")


@pytest.fixture(scope="module")
def model() -> XCiT:
    """Returns a model with six classes for RGB images of 32 x 32 pixels, which have 4 x 4 patches.

    It has two XCA blocks and two class attention blocks."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = XCiT(XCiTConfig(patch_size=8, embed_dim=16, depth=2, num_heads=2, num_classes=6)).eval()
        for parameter in network.parameters():  # so large that images have different results
            parameter.data += 0.2 * torch.randn_like(parameter)
    network.info = ModelInfo(
        name="small", preprocessing=Preprocessing(image_size=32, resize_to=36), class_names=tuple("abcdef")
    )
    return network


@pytest.fixture(scope="module")
def arrays() -> list[np.ndarray]:
    draw = np.random.default_rng(0)
    return [draw.integers(0, 256, (40 + 3 * index, 36, 3), dtype=np.uint8) for index in range(5)]


@pytest.fixture
def paths(arrays, tmp_path) -> list[Path]:
    found = [tmp_path / f"{index}.png" for index in range(len(arrays))]
    for array, path in zip(arrays, found, strict=True):
        Image.fromarray(array).save(path)
    return found


def classes(predictions):
    return [prediction.classes for prediction in predictions]


def numbers(result) -> np.ndarray:
    """Returns a result's scores in the order of the classes, or its features in one vector."""
    if isinstance(result, Features):
        return np.concatenate([layer.ravel() for layer in result.layers.values()])
    return np.array([one.score for one in sorted(result.classes, key=lambda one: one.index)])


def test_sources_of_any_kind_give_the_same(model, arrays, paths):
    expected = classes(predict(paths, model))
    assert len(set(expected)) == len(arrays), "the images must differ for the test to tell anything"
    assert classes(predict([str(path) for path in paths], model)) == expected
    assert classes(predict([Image.open(path).convert("RGB") for path in paths], model)) == expected
    assert classes(predict(arrays, model)) == expected
    assert classes(predict([torch.from_numpy(array).permute(2, 0, 1) for array in arrays], model)) == expected
    assert classes(predict([array / 255 for array in arrays], model)) == expected


def test_one_image_or_a_list_of_one(model, arrays, paths):
    with Image.open(paths[0]) as opened:
        for image in (paths[0], str(paths[0]), opened, arrays[0], torch.from_numpy(arrays[0]).permute(2, 0, 1)):
            assert predict(image, model) == predict([image], model)


def test_no_images(model):
    assert predict([], model) == []
    assert extract_features([], model) == []


def test_sources_are_named(model, arrays, paths):
    found = predict([paths[0], str(paths[1]), arrays[2]], model)
    assert [prediction.source for prediction in found] == [str(paths[0]), str(paths[1]), "image 2"]


def test_scores_are_the_softmax_of_the_logits(model, arrays, paths):
    with torch.inference_mode():
        batch = preprocess(read_image(paths[0]), model.info.preprocessing)[None]
        expected = model(batch).softmax(dim=-1)[0]
    found = predict(paths[0], model, topk=6)[0].classes
    assert [scored.index for scored in found] == expected.argsort(descending=True).tolist()
    for scored in found:
        assert scored.score == pytest.approx(expected[scored.index].item(), abs=1e-6)
        assert scored.name == "abcdef"[scored.index]


@pytest.mark.parametrize("topk", [1, 3, 6, 50])
def test_topk(model, paths, topk):
    for prediction in predict(paths, model, topk=topk):
        scores = [scored.score for scored in prediction.classes]
        assert len(scores) == min(topk, 6)
        assert scores == sorted(scores, reverse=True)
        assert topk < 6 or sum(scores) == pytest.approx(1, abs=1e-5)


@pytest.mark.parametrize("batch_size", [1, 3, 100])
def test_batch_size_changes_nothing(model, paths, batch_size):
    expected = predict(paths, model, batch_size=5)
    found = predict(paths, model, batch_size=batch_size)
    assert [prediction.source for prediction in found] == [str(path) for path in paths]
    for one, other in zip(found, expected, strict=True):
        assert [scored.index for scored in one.classes] == [scored.index for scored in other.classes]
        assert [s.score for s in one.classes] == pytest.approx([s.score for s in other.classes], abs=1e-6)


@pytest.fixture
def mixed(paths, arrays, tmp_path):
    """Returns readable and unreadable images; the first, the last and a whole batch of three are unreadable."""
    text = tmp_path / "text.png"
    text.write_text("no image")
    empty = tmp_path / "empty.jpg"
    empty.touch()
    hair = tmp_path / "hair.png"
    Image.new("L", (1, 2_000_000)).save(hair)
    missing = tmp_path / "missing.png"
    return [missing, paths[0], text, empty, hair, missing, paths[1], paths[2], np.full((9, 9), 7.0), 17, paths[3], text]


REASONS = {
    0: "missing.png: no such file",
    2: "text.png: not an image that can be read (it looks like text)",
    3: "empty.jpg: the file is empty (0 bytes)",
    4: "hair.png: an image of 1 x 2000000 pixels is too elongated to scale its short side to 36",
    5: "missing.png: no such file",
    8: "image 8: image array: floating-point pixels must be in 0..1, found 7..7",
    9: "image 9: an image must be a path, a URL, bytes, an open file, a PIL image, a NumPy array or a tensor, not int",
    11: "text.png: not an image that can be read (it looks like text)",
}


@pytest.mark.parametrize("batch_size", [1, 3, 100])
def test_unreadable_ones_are_reported_in_their_place(model, paths, mixed, batch_size):
    found = list(predict_each(mixed, model, batch_size=batch_size))
    assert len(found) == len(mixed)
    for index, result in enumerate(found):
        if index in REASONS:
            assert isinstance(result, Unreadable)
            assert result.reason.endswith(REASONS[index])
            assert "\n" not in result.reason
        else:
            assert isinstance(result, Prediction)
            assert result.source == str(mixed[index])
    alone = classes(predict(paths[:4], model, batch_size=1))
    readable: list[Any] = [found[index] for index in (1, 6, 7, 10)]
    for one, other in zip(readable, alone, strict=True):
        assert [scored.index for scored in one.classes] == [scored.index for scored in other]


def test_features_of_unreadable_ones_are_reported_in_their_place(model, paths, mixed):
    found: Any = list(extract_features_each(mixed, model, batch_size=3))
    assert [isinstance(result, Unreadable) for result in found] == [index in REASONS for index in range(len(mixed))]
    expected: Any = extract_features(paths[3], model)[0].layers[3]
    np.testing.assert_allclose(found[10].layers[3], expected, atol=1e-5)


@pytest.mark.parametrize(("pool", "cls_depth"), [("cls", 2), ("avg", 2), ("avg", 0)])
def test_without_a_type_features_are_what_the_model_pools(model, paths, pool, cls_depth):
    other = XCiT(replace(model.config, global_pool=pool, cls_depth=cls_depth, num_classes=0)).eval()
    other.info = ModelInfo(name="other", preprocessing=model.info.preprocessing)
    with torch.inference_mode():
        expected = other(preprocess(read_image(paths[0]), model.info.preprocessing)[None])[0]
    (found,) = extract_features(paths[0], other)[0].layers.values()
    np.testing.assert_allclose(found, expected, atol=1e-5)


@pytest.mark.parametrize("verb", [predict, extract_features])
def test_what_can_not_be_read_stands_beside_the_others(model, paths, verb):
    found = verb([paths[0], "nowhere.png", torch.zeros(4, 8), torch.zeros(5, 8, 8), paths[1]], model)
    assert [result.source for result in found] == [str(paths[0]), "nowhere.png", "image 2", "image 3", str(paths[1])]
    assert [isinstance(result, Unreadable) for result in found] == [False, True, False, True, False]
    assert found[1].reason == "nowhere.png: no such file"
    assert found[3].reason.startswith("image 3: image tensor: shape (5, 8, 8): an image must have shape")
    np.testing.assert_allclose(numbers(found[4]), numbers(verb(paths[1], model)[0]), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("verb", [predict, extract_features])
def test_no_image_that_can_be_read_is_an_error(model, paths, verb):
    with pytest.raises(XCiTError, match=r"^nowhere\.png: no such file$"):
        verb("nowhere.png", model)
    with pytest.raises(XCiTError, match=r"^a\.png: no such file \(and 1 others: none of the images can be read\)$"):
        verb(["a.png", "b.png"], model)


def test_an_unreadable_one_says_why_it_has_no_classes(model, paths):
    found = predict([paths[0], "nowhere.png"], model)[1]
    with pytest.raises(AttributeError, match=r"^nowhere\.png: no such file: the result has no 'classes'$"):
        found.classes  # noqa: B018
    assert not hasattr(found, "classes")
    assert pickle.loads(pickle.dumps(found)) == copy.deepcopy(found) == found


def test_folders_and_patterns(model, paths, tmp_path):
    (tmp_path / "below").mkdir()
    paths[4].rename(tmp_path / "below" / "4.png")
    paths[4] = tmp_path / "below" / "4.png"
    expected = predict(paths, model)
    assert predict(tmp_path, model) == predict([str(tmp_path)], model) == expected
    assert predict(f"{tmp_path}/**/*.png", model) == expected
    mixed = predict([tmp_path / "below", tmp_path / "[12].png"], model)
    assert [result.source for result in mixed] == [expected[index].source for index in (4, 1, 2)]
    for result, index in zip(mixed, (4, 1, 2), strict=True):
        np.testing.assert_allclose(numbers(result), numbers(expected[index]), rtol=1e-5)
    (tmp_path / "empty").mkdir()
    with pytest.raises(XCiTError, match=r"empty: a folder without images$"):
        predict([paths[0], tmp_path / "empty"], model)


def test_batches_are_their_images(model):
    draw = np.random.default_rng(0)
    batch = draw.integers(0, 256, (3, 40, 36, 3), dtype=np.uint8)
    expected = predict(list(batch), model)
    assert len(set(classes(expected))) == 3
    tensors = torch.from_numpy(batch).permute(0, 3, 1, 2)
    assert predict(batch, model) == predict(tensors, model) == predict([tensors[:2], tensors[2]], model) == expected
    assert classes(predict(tensors.float() / 255, model)) == classes(expected)
    with pytest.raises(XCiTError, match=r"^the batch is empty: \(0, 3, 40, 36\)$"):
        predict(tensors[:0], model)


def test_the_model_that_answered_is_named(model, arrays):
    assert {prediction.model for prediction in predict(arrays, model)} == {"small"}
    assert predict(arrays[0])[0].model == "xcit-pico-fashion-mnist"


@pytest.mark.parametrize("verb", [predict, extract_features])
def test_a_device_that_is_not_there(model, arrays, verb):
    with pytest.raises(XCiTError, match=r"^device cuda:99: not on this machine \("):
        verb(arrays, model, device="cuda:99")
    with pytest.raises(XCiTError, match=r"^device gpu: not on this machine \("):
        verb(arrays, model, device="gpu")


@pytest.mark.parametrize("each", [predict_each, extract_features_each])
@pytest.mark.parametrize("batch_size", [1, 4])
def test_endless_input_is_read_only_a_little_ahead(model, arrays, each, batch_size):
    taken = []

    def endless():
        for index in count():
            taken.append(index)
            yield arrays[index % len(arrays)]

    results = each(endless(), model, batch_size=batch_size)
    assert not taken, "nothing is read before the first result is asked for"
    for num_results in range(1, 10):
        next(results)
        assert len(taken) <= num_results + 3 * batch_size
    results.close()


def test_model_without_info_is_refused(paths):
    with pytest.raises(XCiTError, match=r"the model has no preprocessing: load the model with xcit\.get_model"):
        predict(paths, XCiT(XCiTConfig(patch_size=8, embed_dim=16, depth=1, num_heads=2)))


def test_model_without_a_classifier(model, paths):
    headless = XCiT(XCiTConfig(patch_size=8, embed_dim=16, depth=1, num_heads=2, num_classes=0)).eval()
    headless.info = model.info
    with pytest.raises(XCiTError, match="small has no classifier: it gives features only"):
        predict(paths, headless)
    assert extract_features(paths[0], headless)[0].layers[2].shape == (16,)


def test_classes_without_names_go_by_their_index(model, paths):
    nameless = XCiT(model.config).eval()
    nameless.info = ModelInfo(name="nameless", preprocessing=model.info.preprocessing)
    for scored in predict(paths[0], nameless)[0].classes:
        assert scored.name == str(scored.index)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"topk": 0}, "topk is 0, but must be at least 1"),
        ({"batch_size": 0}, "batch_size is 0, but must be at least 1"),
    ],
)
def test_impossible_numbers(model, paths, change, message):
    with pytest.raises(XCiTError, match=message):
        predict(paths, model, **change)


def test_model_is_left_as_it_was(model, paths):
    own = XCiT(model.config)
    own.load_state_dict(model.state_dict())
    own.info = model.info
    own.double().train()
    before = {name: tensor.clone() for name, tensor in own.state_dict().items()}
    found = predict(paths, own)
    assert own.training
    assert all(module.training for module in own.modules())
    for name, tensor in own.state_dict().items():
        assert tensor.dtype == before[name].dtype
        assert torch.equal(tensor, before[name])
    assert all(parameter.grad is None and parameter.requires_grad for parameter in own.parameters())
    assert [[s.index for s in p.classes] for p in found] == [
        [s.index for s in p.classes] for p in predict(paths, model)
    ]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision(model, paths, dtype):
    exact, rough = predict(paths, model, topk=6), predict(paths, model, topk=6, dtype=dtype)
    for one, other in zip(exact, rough, strict=True):
        scores = {scored.index: scored.score for scored in other.classes}
        assert sum(scores.values()) == pytest.approx(1, abs=1e-5)
        for scored in one.classes:
            assert scores[scored.index] == pytest.approx(scored.score, abs=0.1)
    features = extract_features(paths[0], model, dtype=dtype)[0].layers[3]
    assert features.dtype == np.float32
    assert next(model.parameters()).dtype == torch.float32


@pytest.mark.parametrize("out_type", OUT_TYPES)
@pytest.mark.parametrize("layer", [0, 1, 2, 3, -1, -4])
def test_features_are_those_of_the_model(model, arrays, paths, out_type, layer):
    block = layer % NUM_BLOCKS
    if out_type == "cls_token" and block < 2:
        with pytest.raises(XCiTError, match=f"block {block} has no class token"):
            extract_features(paths, model, out_type=out_type, layers=[layer])
        return
    found = extract_features(paths, model, out_type=out_type, layers=[layer], batch_size=2)
    batch = torch.stack([preprocess(read_image(array), model.info.preprocessing) for array in arrays])
    with torch.inference_mode():
        (expected,) = model.extract_feat(batch, out_type=out_type, out_indices=[layer])
    shape = {"cls_token": (16,), "featmap": (16, 4, 4), "avg_featmap": (16,), "raw": (16 + (block >= 2), 16)}[out_type]
    for features, path, row in zip(found, paths, expected, strict=True):
        assert isinstance(features, Features)
        assert features.source == str(path)
        assert list(features.layers) == [block]
        assert features.layers[block].shape == shape
        assert features.layers[block].dtype == np.float32
        np.testing.assert_allclose(features.layers[block], row.numpy(), atol=1e-5)


def test_features_of_several_layers(model, paths):
    several = extract_features(paths, model, out_type="raw", layers=(-1, 0, 3, 1))
    assert [list(features.layers) for features in several] == [[0, 1, 3]] * len(paths)
    for layer in (0, 1, 3):
        for one, other in zip(several, extract_features(paths, model, out_type="raw", layers=[layer]), strict=True):
            np.testing.assert_allclose(one.layers[layer], other.layers[layer], atol=1e-5)


@pytest.mark.parametrize(("layers", "message"), [((4,), "there is no block 4"), ((), "no block was asked for")])
def test_layers_that_are_not_there(model, paths, layers, message):
    with pytest.raises(XCiTError, match=message):
        extract_features(paths, model, layers=layers)


def test_model_by_name_and_by_file(model, arrays, paths, tmp_path):
    assert classes(predict(paths[0])) == classes(predict(paths[0], "xcit-pico-fashion-mnist"))
    packaged: Any = get_model("packaged", pretrained=True)
    assert classes(predict(paths[0])) == classes(predict(paths[0], packaged))
    save_model(model, tmp_path / "own.safetensors")
    assert predict(arrays, tmp_path / "own.safetensors") == predict(arrays, model)
    assert predict(arrays, str(tmp_path / "own.safetensors")) == predict(arrays, model)


def test_file_that_does_not_say_how_to_prepare_images(paths, tmp_path):
    save_model(get_model("packaged"), tmp_path / "bare.safetensors")
    with pytest.raises(XCiTError, match=r"bare\.safetensors: the file does not say how to prepare images"):
        predict(paths, tmp_path / "bare.safetensors")


def test_unknown_model_is_told_with_the_nearest(paths):
    with pytest.raises(XCiTError, match=r"did you mean .*'xcit-pico-fashion-mnist'"):
        predict(paths, "xcit-pico-fashion-mist")
