"""Tests that YAML restores configs with any values, and that dotted overrides give the same config as Python code."""

import dataclasses
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from xcit.config import dotted_names, from_dict, load_yaml, override, save_yaml, to_dict
from xcit.errors import XCiTError

QUICK = settings(max_examples=80, deadline=None, derandomize=True)


@dataclass(frozen=True, kw_only=True)
class Inner:
    whole: int = 1
    real: float = 0.5
    flag: bool = False
    text: str = "a"
    path: str = ""
    kind: Literal["one", "two"] = "one"


@dataclass(frozen=True, kw_only=True)
class Outer:
    maybe_whole: int | None = None
    maybe_real: float | None = None
    pair: tuple[float, float] = (0.0, 1.0)
    wholes: tuple[int, ...] = ()
    reals: tuple[float, ...] = ()
    names: tuple[Literal["x", "y"], ...] = ()
    maybe_wholes: tuple[int, ...] | None = None
    inner: Inner = field(default_factory=Inner)


@dataclass(frozen=True, kw_only=True)
class Whole:
    name: str
    outer: Outer = field(default_factory=Outer)


wholes = st.integers(-(2**63), 2**63 - 1)
reals = st.floats(allow_nan=False, allow_infinity=False)
# `lines` are texts that a person could type; `texts` may have any character, and must survive YAML.
texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=12)
lines = st.text(st.characters(categories=["L", "N", "P", "S", "Zs"]), max_size=12)


def configs(text: st.SearchStrategy[str]) -> st.SearchStrategy[Whole]:
    inner = st.builds(
        Inner,
        whole=wholes,
        real=reals,
        flag=st.booleans(),
        text=text,
        # "none" sets a field to None if its default is None.
        path=text.filter(lambda text: text.lower() not in ("none", "null")),
        kind=st.sampled_from(["one", "two"]),
    )
    outer = st.builds(
        Outer,
        maybe_whole=st.none() | wholes,
        maybe_real=st.none() | reals,
        pair=st.tuples(reals, reals),
        wholes=st.lists(wholes, max_size=3).map(tuple),
        reals=st.lists(reals, max_size=3).map(tuple),
        names=st.lists(st.sampled_from(["x", "y"]), max_size=3).map(tuple),
        maybe_wholes=st.none() | st.lists(wholes, max_size=3).map(tuple),
        inner=inner,
    )
    return st.builds(Whole, name=text, outer=outer)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("configs")


@settings(QUICK, max_examples=40)  # few, because each example writes a file
@given(config=configs(texts))
def test_yaml_gives_a_config_back(folder: Path, config: Whole) -> None:
    save_yaml(config, folder / "a.yaml")
    assert load_yaml(Whole, folder / "a.yaml") == config
    assert from_dict(Whole, to_dict(config)) == config
    assert from_dict(Whole, yaml.safe_load(yaml.safe_dump(to_dict(config), sort_keys=True))) == config


def leaf(config: Any, name: str) -> Any:
    for part in name.split("."):
        config = getattr(config, part)
    return config


def typed(value: Any, is_list: bool) -> str:
    """Returns a value as a person types it on a command line."""
    if value is None:
        return "none"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, tuple):
        parts = [typed(part, is_list) for part in value]
        return f"[{', '.join(parts)}]" if is_list or len(parts) < 2 else ",".join(parts)
    return str(value)


@QUICK
@given(config=configs(lines), is_list=st.booleans(), data=st.data())
def test_overrides_typed_or_given_make_what_python_makes(config: Whole, is_list: bool, data: st.DataObject) -> None:
    start = Whole(name="start")
    names = data.draw(st.lists(st.sampled_from(sorted(dotted_names(start))), unique=True))
    values = {name: leaf(config, name) for name in names}
    expected = dataclasses.replace(
        start,
        **{name: value for name, value in values.items() if "." not in name},
        outer=dataclasses.replace(
            start.outer,
            **{name.split(".")[1]: value for name, value in values.items() if name.count(".") == 1},
            inner=dataclasses.replace(
                start.outer.inner,
                **{name.split(".")[2]: value for name, value in values.items() if name.count(".") == 2},
            ),
        ),
    )
    assert override(start, {name: typed(value, is_list) for name, value in values.items()}) == expected
    assert override(start, {name: list(v) if isinstance(v, tuple) else v for name, v in values.items()}) == expected
    assert override(expected, {}) == expected
    assert override(start, {"outer": config.outer, "name": config.name}) == config


@QUICK
@given(
    st.sampled_from(["outer.inner.whole", "outer.inner.real", "outer.pair", "outer.wholes", "outer.inner.kind"]), texts
)
def test_any_text_is_a_value_or_refused_in_one_line(name: str, text: str) -> None:
    message = ""
    try:
        changed = override(Whole(name="start"), {name: text})
        assert from_dict(Whole, to_dict(changed)) == changed
    except XCiTError as error:
        message = str(error)
    assert "\n" not in message
