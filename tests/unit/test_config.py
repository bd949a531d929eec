from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import pytest
import yaml

from xcit.config import from_dict, load_yaml, override, save_yaml, to_dict
from xcit.errors import XCiTError
from xcit.training.engine.config import OptimizerConfig, RunConfig
from xcit.training.tasks.initialization import InitializeConfig


@dataclass(frozen=True, kw_only=True)
class Picture:
    scale: tuple[float, float] = (0.08, 1.0)
    mean: tuple[float, ...] = (0.5, 0.5, 0.5)
    sides: tuple[int, ...] = (224,)
    crop: Literal["padded", "random"] = "random"
    limit: int | None = None


@dataclass(frozen=True, kw_only=True)
class Whole:
    name: str
    grey: bool = False
    picture: Picture = field(default_factory=Picture)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    run: RunConfig = field(default_factory=RunConfig)


WHOLE = Whole(name="w")


def value_of(config: Any, name: str) -> Any:
    for part in name.split("."):
        config = getattr(config, part)
    return config


def error_of(changes: dict[str, str]) -> str:
    with pytest.raises(XCiTError) as caught:
        override(WHOLE, changes)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize(
    ("name", "text", "value"),
    [
        ("optimizer.lr", "2e-3", 2e-3),
        ("optimizer.lr", "2E-3", 2e-3),
        ("optimizer.lr", "0.25", 0.25),
        ("optimizer.lr", "1", 1.0),
        ("optimizer.betas", "0.8,0.95", (0.8, 0.95)),
        ("picture.scale", "[0.6,1.0]", (0.6, 1.0)),
        ("picture.scale", "0.6,1.0", (0.6, 1.0)),
        ("picture.scale", "0.6, 1", (0.6, 1.0)),
        ("picture.scale", "[1e-3, 1]", (1e-3, 1.0)),
        ("picture.scale", "1e-3,1", (1e-3, 1.0)),
        ("picture.mean", "[0.3]", (0.3,)),
        ("picture.mean", "0.1,0.2,0.3,0.4", (0.1, 0.2, 0.3, 0.4)),
        ("picture.sides", "[96, 224]", (96, 224)),
        ("picture.sides", "96,224", (96, 224)),
        ("picture.crop", "padded", "padded"),
        ("picture.limit", "7", 7),
        ("run.batch_size", "16", 16),
        ("run.dtype", "bfloat16", "bfloat16"),
        ("grey", "true", True),
        ("name", "5", "5"),
        ("name", "a: [b", "a: [b"),
    ],
)
def test_fields_are_set_by_dotted_name_and_text(name: str, text: str, value: object) -> None:
    changed = override(WHOLE, {name: text})
    assert value_of(changed, name) == value
    assert type(value_of(changed, name)) is type(value)
    assert changed != WHOLE
    assert override(changed, {name: text}) == changed


def test_several_changes_at_once_leave_the_rest_and_the_original() -> None:
    changed = override(WHOLE, {"optimizer.lr": "0.5", "run.seed": "3", "optimizer.eps": "1e-6"})
    assert (changed.optimizer.lr, changed.optimizer.eps, changed.run.seed) == (0.5, 1e-6, 3)
    assert (changed.picture, changed.name, changed.optimizer.betas) == (WHOLE.picture, "w", (0.9, 0.999))
    assert Whole(name="w") == WHOLE
    assert override(WHOLE, {}) == WHOLE
    assert override(override(WHOLE, {"picture.limit": "3"}), {"picture.limit": "null"}) == WHOLE


def test_fields_are_set_by_section_and_value_as_in_python() -> None:
    changed = override(WHOLE, {"optimizer": {"lr": 0.5, "betas": [0.8, 0.9]}, "picture.scale": (0.5, 1), "run.seed": 3})
    assert changed == override(
        WHOLE, {"optimizer.lr": "0.5", "optimizer.betas": "0.8,0.9", "picture.scale": "0.5,1", "run.seed": "3"}
    )
    assert override(WHOLE, {"picture": Picture(limit=4), "name": Path("a/b")}) == override(
        WHOLE, {"picture.limit": "4", "name": "a/b"}
    )
    with pytest.raises(XCiTError, match=r"^run\.seed must be of type int, not 0\.5$"):
        override(WHOLE, {"run": {"seed": 0.5}})
    with pytest.raises(XCiTError, match=r"^no config field 'optimizer\.lrr'; did you mean 'optimizer\.lr'\?$"):
        override(WHOLE, {"optimizer": {"lrr": 0.5}})


@pytest.mark.parametrize("nothing", ["none", "None", "NULL", "null", "", None])
def test_a_field_that_may_be_empty_is_emptied_by_none(nothing: str | None) -> None:
    start = InitializeConfig(weights="packaged", freeze=("stem",))
    assert override(start, {"weights": nothing}) == InitializeConfig(freeze=("stem",))
    assert override(override(WHOLE, {"picture.limit": "3"}), {"picture.limit": nothing or "none"}) == WHOLE
    assert override(WHOLE, {"name": "none"}).name == "none"  # "none" is plain text in a field that can't be empty


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("lr", "no config field 'lr'; did you mean 'optimizer.lr'?"),
        ("run.lr", "no config field 'run.lr'; did you mean 'optimizer.lr'?"),
        ("optimizer.learning_rate", "no config field 'optimizer.learning_rate'; did you mean 'optimizer."),
        ("optimiser.betas", "no config field 'optimiser.betas'; did you mean 'optimizer.betas'?"),
        ("run.batchsize", "no config field 'run.batchsize'; did you mean 'run.batch_size'?"),
        ("optimizer", "no config field 'optimizer'; did you mean "),
        ("qqqqqq", "no config field 'qqqqqq'; there are: name, grey, picture.scale, "),
    ],
)
def test_an_unknown_name_suggests_the_nearest(name: str, message: str) -> None:
    assert error_of({name: "1"}).startswith(message)


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("optimizer.lr", "fast", "optimizer.lr must be of type float, not 'fast'"),
        ("optimizer.lr", "true", "optimizer.lr must be of type float, not True"),
        ("optimizer.lr", "", "optimizer.lr must be of type float, not None"),
        ("run.batch_size", "0.5", "run.batch_size must be of type int, not 0.5"),
        ("run.batch_size", "many", "run.batch_size must be of type int, not 'many'"),
        ("run.batch_size", "true", "run.batch_size must be of type int, not True"),
        ("run.dtype", "float64", "run.dtype must be one of float32, bfloat16, float16, not 'float64'"),
        ("grey", "maybe", "grey must be of type bool, not 'maybe'"),
        ("grey", "1", "grey must be of type bool, not 1"),
        ("picture.scale", "0.5", "picture.scale must be a list, not 0.5"),
        ("picture.scale", "0.1,0.2,0.3", "picture.scale must have 2 numbers, not 3"),
        ("picture.scale", "a,b", "picture.scale must be of type float, not 'a'"),
        ("picture.limit", "few", "picture.limit must be of type int, not 'few'"),
        ("run.batch_size", "0", "RunConfig: batch_size is 0, but must be at least 1"),
        ("run.ema_decay", "1", "RunConfig: ema_decay is 1.0, but must be in [0, 1)"),
        ("optimizer.lr", "-1", "OptimizerConfig: lr is -1.0, but must be 0 or more"),
        ("optimizer.lr", "nan", "OptimizerConfig: lr is nan, but must be 0 or more"),
    ],
)
def test_a_wrong_value_is_named_with_its_type(name: str, text: str, message: str) -> None:
    assert error_of({name: text}) == message


def test_from_dict_fills_in_defaults_and_checks_all_levels() -> None:
    assert from_dict(Whole, {"name": "w"}) == WHOLE
    assert from_dict(Whole, {"name": "w", "optimizer": {"lr": 1}}).optimizer == OptimizerConfig(lr=1.0)
    assert from_dict(Whole, to_dict(WHOLE)) == WHOLE
    for values, message in (
        ({}, "name is missing"),
        ({"name": 3}, "name must be of type str, not 3"),
        ({"name": "w", "optimizer": 3}, "optimizer must be a section of fields, not 3"),
        ({"name": "w", "optimizer": {"Lr": 3}}, "optimizer.Lr is not a field; did you mean 'lr'?"),
        ({"name": "w", "picture": {"scale": [0.1, "x"]}}, "picture.scale must be of type float, not 'x'"),
        ({"name": "w", 3.5: 1}, "3.5 is not a field; there are: name, grey, picture, optimizer, run"),
    ):
        with pytest.raises(XCiTError) as caught:
            from_dict(Whole, values)  # type: ignore[arg-type]
        assert str(caught.value) == message


def test_yaml_gives_a_config_back(tmp_path: Path) -> None:
    config = override(WHOLE, {"optimizer.lr": "1e-7", "picture.scale": "1e-3,1", "picture.limit": "3", "name": "yes"})
    path = tmp_path / "config.yaml"
    save_yaml(config, path)
    assert load_yaml(Whole, path) == config
    assert list(yaml.safe_load(path.read_text())) == ["name", "grey", "picture", "optimizer", "run"]


def test_yaml_as_a_person_writes_it(tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    path.write_text("name: own  # mine\noptimizer:\n  lr: 1e-3\n  betas: [0.9, 0.95]\npicture: {mean: [1e-1]}\n")
    assert load_yaml(Whole, path) == Whole(
        name="own", optimizer=OptimizerConfig(lr=1e-3, betas=(0.9, 0.95)), picture=Picture(mean=(0.1,))
    )


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("name: [", "not a YAML config: "),
        ("- name", "not a YAML config: its top level is not a mapping of field names to values"),
        ("", "not a YAML config: its top level is not a mapping"),
        ("name: w\nrun:\n  sed: 3", "run.sed is not a field; did you mean 'seed'?"),
        ("name: w\nrun:\n  seed: x", "run.seed must be of type int, not 'x'"),
        ("name: w\nobject: !!python/object/apply:os.getcwd []", "not a YAML config: "),
    ],
)
def test_a_wrong_yaml_is_named_with_the_reason(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "config.yaml"
    path.write_text(text)
    with pytest.raises(XCiTError) as caught:
        load_yaml(Whole, path)
    assert str(caught.value).startswith(f"{path}: {message}")
    assert "\n" not in str(caught.value)


def test_a_yaml_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    with pytest.raises(XCiTError, match=r"no\.yaml: No such file or directory"):
        load_yaml(Whole, tmp_path / "no.yaml")
    (tmp_path / "latin.yaml").write_bytes(b"name: L\xf6we")
    with pytest.raises(XCiTError, match=r"latin\.yaml: not a YAML config"):
        load_yaml(Whole, tmp_path / "latin.yaml")
