"""Tests that the lists of a JSON file are read element by element through a small window; wrong JSON is an error."""

import json
from pathlib import Path
from typing import Any

import pytest

from xcit.data import json_lists as module
from xcit.data.json_lists import json_lists
from xcit.errors import XCiTError

CONTENT: dict[str, Any] = {
    "info": {"a": [1, {"b": "]}"}]},
    "count": 12345,
    "images": [
        {"file_name": 'a "quoted" \\ name, ünï 漢字 😀.png', "id": 1},
        "text",
        123456789,
        -1.5e-7,
        None,
        [[], {}],
    ],
    "empty": [],
    "nothing": {},
    "": [True],
}


def gathered(path: Path) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, text, value in json_lists(path):
        if text is None:
            assert key not in found
            found[key] = value
        else:
            assert json.loads(text) == value
            found[key].append(value)
    return found


@pytest.mark.parametrize("chunk", [1, 2, 3, 7, 64, 1 << 20])
@pytest.mark.parametrize("form", [{}, {"indent": 2}, {"separators": (",", ":"), "ensure_ascii": False}])
def test_the_same_as_the_whole_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, chunk: int, form: dict[str, Any]
) -> None:
    monkeypatch.setattr(module, "_CHUNK", chunk)
    (tmp_path / "a.json").write_text(json.dumps(CONTENT, **form) + "\n", encoding="utf-8")
    assert gathered(tmp_path / "a.json") == CONTENT


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-32-le"])
def test_the_encodings_that_json_may_have(tmp_path: Path, encoding: str) -> None:
    (tmp_path / "a.json").write_text(json.dumps(CONTENT, ensure_ascii=False), encoding=encoding)
    assert gathered(tmp_path / "a.json") == CONTENT


@pytest.mark.parametrize("text", ["[1, 2]", "3", '"{"', "null", "{}"])
def test_what_is_no_object_has_no_lists(tmp_path: Path, text: str) -> None:
    (tmp_path / "a.json").write_text(text)
    assert gathered(tmp_path / "a.json") == {}


@pytest.mark.parametrize("chunk", [1, 1 << 20])
@pytest.mark.parametrize(
    "text",
    [
        *("", " ", "{", "[" * 100_000, "[1] 2", "{'a': 1}", "{1: 2}", '{"a"', '{"a" 1}', '{"a":', '{"a": tru}'),
        *('{"a": 1,}', '{"a": 1} x', '{"a": [', '{"a": [1', '{"a": [1,', '{"a": [1,]}', '{"a": [1 2]}', '{"a": [1}'),
        '{"a": ["\n"]}',
    ],
)
def test_what_is_no_json_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, chunk: int, text: str) -> None:
    with pytest.raises((ValueError, RecursionError)):
        json.loads(text)
    monkeypatch.setattr(module, "_CHUNK", chunk)
    path = tmp_path / "a.json"
    path.write_text(text)
    with pytest.raises(XCiTError) as caught:
        gathered(path)
    assert str(caught.value).startswith(f"{path}: not a JSON file: ")


def test_the_place_of_an_error_is_the_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_CHUNK", 5)
    path = tmp_path / "a.json"
    path.write_text('{"a": [1, 2, 3, 4, 5, ?]}')
    with pytest.raises(XCiTError, match="Expecting value at character 22"):
        gathered(path)


def test_other_bytes_and_no_file(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_bytes(b'{"a": ["\xff"]}')
    with pytest.raises(XCiTError, match=r"not a JSON file: .*can't decode"):
        gathered(path)
    with pytest.raises(XCiTError, match=r"b.json: No such file or directory$"):
        gathered(tmp_path / "b.json")
