"""Tests names of models and files: in any case of letters, under any alias, and as browsers change file names."""

from functools import cache
from pathlib import Path, PurePosixPath

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from xcit.errors import XCiTError
from xcit.weights.files import StoredWeights
from xcit.zoo.names import RECORDS, find_architecture, find_record, is_file, is_known, list_models
from xcit.zoo.origin import known_record
from xcit.zoo.records import Record
from xcit.zoo.stored import outline

QUICK = settings(max_examples=80, deadline=None, derandomize=True)

NAMED = [(record, name) for record in RECORDS.values() for name in (record.name, *record.aliases)]
named = st.sampled_from(NAMED)


@st.composite
def spellings(draw: st.DrawFn, name: str) -> str:
    """Draws a name with some letters in the other case."""
    swapped = draw(st.lists(st.booleans(), min_size=len(name), max_size=len(name)))
    return "".join(letter.swapcase() if is_other else letter for letter, is_other in zip(name, swapped, strict=True))


@QUICK
@given(st.data(), named)
def test_every_name_in_any_case_is_its_record_and_no_file(data: st.DataObject, pair: tuple[Record, str]) -> None:
    record, name = pair
    spelled = data.draw(spellings(name))
    assert find_record(spelled) is record
    assert is_known(spelled) and not is_file(spelled)
    assert find_architecture(spelled) == record.architecture


@QUICK
@given(named, st.integers(1, 60), st.text("abcdefghijklmnopqrstuvwxyz0123456789-_", min_size=1, max_size=4))
def test_a_beginning_of_a_name_lists_its_model(pair: tuple[Record, str], length: int, other: str) -> None:
    record, name = pair
    found = list_models(name[:length])
    assert (record.name in found) or any(own.startswith(name[:length].lower()) for own in RECORDS)
    assert found == sorted(set(found))
    assert set(list_models(name[:length], exclude_patterns=other)) <= set(found)
    assert list_models(name[:length], exclude_patterns=name[:length]) == []


@QUICK
@given(st.text("abcdefghijklmnopqrstuvwxyz0123456789-_. /", max_size=30))
def test_any_other_name_is_refused_in_one_line(name: str) -> None:
    if not is_known(name):
        with pytest.raises(XCiTError) as caught:
            find_record(name)
        assert len(str(caught.value).splitlines()) == 1


PUBLISHED = [
    (record, PurePosixPath(source.location if source.kind == "huggingface" else source.filename).name)
    for record in RECORDS.values()
    for source in record.sources
    if record.architecture in ("nano-12-p16", "nano-12-p8", "tiny-12-p16") and record.task == "image-classification"
]


@cache
def tensors_of(name: str) -> dict[str, torch.Tensor]:
    """Returns a record's tensors on the meta device, without values."""
    return {key: torch.empty(shape, device="meta") for key, shape in outline(RECORDS[name].model).items()}


def stored(name: str, filename: str) -> StoredWeights:
    return StoredWeights(tensors_of(name), "xcit", {}, (), Path("nowhere") / filename)


mangled = st.tuples(
    st.sampled_from(["", "0a1b2c3d-", "deadbeef-"]),
    st.sampled_from(["", " (1)", "(2)", "_(13)"]),
    st.sampled_from(["", ".pth", ".pth.tar", ".pt", ".bin", ".ckpt", ".safetensors", ".SAFETENSORS"]),
    st.booleans(),
    st.booleans(),
)


@QUICK
@given(st.sampled_from(PUBLISHED), mangled)
def test_a_published_file_is_known_however_a_download_called_it(
    pair: tuple[Record, str], mangling: tuple[str, str, str, bool, bool]
) -> None:
    record, published = pair
    before, after, suffix, with_underscores, is_upper = mangling
    stem = published.removesuffix(".pth").removesuffix(".safetensors")
    stem = stem.replace("-", "_") if with_underscores else stem
    filename = f"{before}{stem.upper() if is_upper else stem}{after}{suffix}"
    assert known_record(stored(record.name, filename)) is record


@QUICK
@given(st.sampled_from(PUBLISHED), st.sampled_from(PUBLISHED))
def test_the_name_of_another_shape_is_not_believed(pair: tuple[Record, str], other: tuple[Record, str]) -> None:
    (record, _), (named_after, published) = pair, other
    if record.architecture != named_after.architecture and not published.endswith(".pth"):
        found = known_record(stored(record.name, published))
        assert found is None or found.architecture == record.architecture
