from fnmatch import fnmatchcase

import pytest

from xcit.errors import XCiTError
from xcit.zoo import ARCHITECTURES, CHECKPOINTS, RECORDS, SEGMENTERS, find_checkpoint, list_models
from xcit.zoo.names import find_architecture


@pytest.mark.parametrize(
    ("typed", "name"),
    [
        ("xcit-nano-12-p16_3rdparty_in1k", "xcit-nano-12-p16_3rdparty_in1k"),
        ("XCiT-Nano-12-P16_3rdParty_in1k", "xcit-nano-12-p16_3rdparty_in1k"),
        # The official names.
        ("xcit_nano_12_p16_224", "xcit-nano-12-p16_3rdparty_in1k"),
        ("xcit_nano_12_p16_224_dist", "xcit-nano-12-p16_3rdparty-dist_in1k"),
        ("xcit_nano_12_p16_384_dist", "xcit-nano-12-p16_3rdparty-dist_in1k-384px"),
        # timm's, with and without tag or owner.
        ("xcit_nano_12_p16_224.fb_in1k", "xcit-nano-12-p16_3rdparty_in1k"),
        ("timm/xcit_nano_12_p16_224.fb_in1k", "xcit-nano-12-p16_3rdparty_in1k"),
        ("xcit_large_24_p8_224.fb_dist_in1k", "xcit-large-24-p8_3rdparty-dist_in1k"),
        ("timm/xcit_small_12_p8_384.fb_dist_in1k", "xcit-small-12-p8_3rdparty-dist_in1k-384px"),
        ("xcit_medium_24_p16_384", "xcit-medium-24-p16_3rdparty-dist_in1k-384px"),
        # The bare architecture.
        ("xcit-nano-12-p16", "xcit-nano-12-p16_3rdparty_in1k"),
        ("xcit_tiny_24_p8", "xcit-tiny-24-p8_3rdparty_in1k"),
        ("packaged", "xcit-pico-fashion-mnist"),
        # Names of DINO's models: in its torch.hub, and of the two published files.
        ("dino_xcit_small_12_p16", "dino_xcit-small-12-p16_in1k"),
        ("dino_xcit-medium-24-p8", "dino_xcit-medium-24-p8_in1k"),
        ("xcit_small_12_cp8_dino", "dino_xcit-small-12-p8_in1k"),
        ("dino_xcit_medium_24_p16_pretrain", "dino_xcit-medium-24-p16_in1k"),
    ],
)
def test_finds_by_name_or_alias(typed: str, name: str) -> None:
    assert find_checkpoint(typed).name == name


def test_every_alias_finds_its_own_record() -> None:
    for record in CHECKPOINTS.values():
        for name in (record.name, *record.aliases):
            assert find_checkpoint(name) is record
            assert find_checkpoint(name.upper()) is record


@pytest.mark.parametrize(
    ("typed", "meant"),
    [
        ("xcit-nano-12-p61", "xcit-nano-12-p16"),
        ("xcit_smal_12_p16_224", "xcit_small_12_p16_224"),
        ("dino_xcit-small-12-p61", "dino_xcit-small-12-p16"),
        ("xcit-tiny-24-p8_3rdparty-dist_in1k-384", "xcit-tiny-24-p8_3rdparty-dist_in1k-384px"),
    ],
)
def test_an_unknown_name_suggests_the_nearest(typed: str, meant: str) -> None:
    with pytest.raises(XCiTError) as caught:
        find_checkpoint(typed)
    message = str(caught.value)
    assert message.startswith(f"no model is called {typed!r}; did you mean ")
    assert repr(meant) in message
    assert "\n" not in message


def test_a_name_like_no_other_points_to_the_list() -> None:
    with pytest.raises(ValueError, match=r"no model is called 'qqq'; `xcit list` shows all"):
        find_checkpoint("qqq")


def test_lists_all_sorted() -> None:
    assert list_models() == sorted(RECORDS)
    assert len(list_models()) == 83


def test_the_pattern_gets_a_star_at_its_end() -> None:
    names = list_models("xcit-nano")
    assert len(names) == 6
    assert names == sorted(name for name in CHECKPOINTS if name.startswith("xcit-nano"))
    assert list_models("*384px") == [name for name in sorted(CHECKPOINTS) if name.endswith("384px")]
    assert len(list_models("*384px")) == 14
    assert list_models("xcit-*-12-p8_3rdparty_") == [f"xcit-{s}-12-p8_3rdparty_in1k" for s in ("nano", "small", "tiny")]
    assert list_models("XCIT-Nano") == names
    assert list_models("xcit-[nt]*-p8_3rdparty_in1k") == sorted(
        name for name in CHECKPOINTS if fnmatchcase(name, "xcit-[nt]*-p8_3rdparty_in1k*")
    )
    assert list_models("nano") == []


def test_exclude_takes_one_pattern_or_several() -> None:
    assert list_models("xcit-nano", "*dist") == ["xcit-nano-12-p16_3rdparty_in1k", "xcit-nano-12-p8_3rdparty_in1k"]
    assert list_models("xcit-nano", ["*dist", "*p8"]) == ["xcit-nano-12-p16_3rdparty_in1k"]
    assert list_models(exclude_patterns="*xcit") == []
    assert len(list_models(exclude_patterns=())) == 83


def test_tasks() -> None:
    assert list_models(task="image-classification") == sorted(
        [*list_models("xcit", exclude_patterns="*ade20k"), *list_models("debenedetti2022light")]
    )
    assert list_models(task="image-features") == list_models("dino_")
    assert len(list_models("dino_")) == 4
    assert list_models(task="object-detection") == list_models("mask-rcnn_")
    assert len(list_models("mask-rcnn_")) == 8
    assert list_models(task="speech") == []
    assert list_models(task="semantic-segmentation") == sorted(SEGMENTERS)
    assert list_models("xcit-nano", task="image-classification") == list_models("xcit-nano")


@pytest.mark.parametrize(
    ("typed", "architecture"),
    [
        *((name, name) for name in ARCHITECTURES),
        ("Small-12-P8", "small-12-p8"),
        ("xcit_small_12_p8_384_dist", "small-12-p8"),
        ("xcit-medium-24-p16_3rdparty_in1k", "medium-24-p16"),
        ("packaged", "pico-6-p4"),
    ],
)
def test_finds_an_architecture_by_its_name_or_a_checkpoints(typed: str, architecture: str) -> None:
    assert find_architecture(typed) == architecture


@pytest.mark.parametrize(
    ("typed", "hint"),
    [("small-12-p9", "did you mean 'small-12-p8'"), ("?", "there are: nano-12-p16, nano-12-p8, tiny-12-p16")],
)
def test_unknown_architecture(typed: str, hint: str) -> None:
    with pytest.raises(XCiTError) as error:
        find_architecture(typed)
    assert str(error.value).startswith(f"no architecture or model is called {typed!r}; {hint}")
