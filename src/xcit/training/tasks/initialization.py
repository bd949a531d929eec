"""Loads the initial weights of a model, or only the stem of another model, and freezes stages of the model."""

import difflib
import re
from collections.abc import Sequence
from dataclasses import dataclass

from xcit.errors import XCiTError
from xcit.models import XCiT, XCiTConfig
from xcit.training.tasks.sources import find_source
from xcit.zoo import load_as, load_record
from xcit.zoo.load import read_source
from xcit.zoo.stored import load_classifier

_SHAPE = (
    "in_channels",
    "patch_size",
    "embed_dim",
    "depth",
    "num_heads",
    "mlp_ratio",
    "qkv_bias",
    "cls_depth",
    "tokens_norm",
)
"""Config fields that must be the same for a model and its initial weights.

Only these fields determine the shapes of the weights outside the head.
"""

_STEM_SHAPE = ("in_channels", "patch_size", "embed_dim")


@dataclass(frozen=True, kw_only=True)
class InitializeConfig:
    """Initial weights of a model, and the stages that are frozen.

    Attributes:
        weights: the initial weights: the name of a checkpoint, a file or a URL, in any published format; "" for random
            weights. A head with another number of classes is not loaded, so the model's head stays random.
        stem: the name or file of a trained model of the same width and patch size; "" for none. Its stem is copied and
            frozen (patch-stem surgery). The authors needed patch-stem surgery to keep the training of their largest
            models stable.
        freeze: stages that are not trained: "stem", "position", "blocks.0", ..., "cls_token", "cls_blocks.0", ...,
            "norm", "head". "blocks.0-5" means the six blocks 0 to 5. The statistics of batch norms in these stages are
            frozen too.
    """

    weights: str = ""
    stem: str = ""
    freeze: tuple[str, ...] = ()

    def frozen_only(self) -> "InitializeConfig":
        """Returns a config that freezes the same stages but loads no weights, for a run that is resumed."""
        stem = ("stem",) if self.stem and "stem" not in self.freeze else ()
        return InitializeConfig(freeze=(*self.freeze, *stem))


def check_initialize(config: InitializeConfig, model: XCiTConfig) -> None:
    """Checks a config before anything is read or downloaded.

    Raises:
        XCiTError: if a checkpoint or file does not exist, a checkpoint does not fit the model, or a stage does not
            exist.
    """
    if config.weights:
        record = find_source(config.weights, "initialize.weights")
        if record is not None:
            _check_shape(record.config, model, _SHAPE, f"initialize.weights: {record.name}")
    if config.stem:
        record = find_source(config.stem, "initialize.stem")
        if record is not None:
            _check_shape(record.config, model, _STEM_SHAPE, f"initialize.stem: {record.name}")
    _stages_to_freeze(config, model)


def initialize(model: XCiT, config: InitializeConfig) -> None:
    """Loads the initial weights of a new model, and sets `requires_grad` to false in the frozen stages.

    Raises:
        XCiTError: if weights can't be loaded or do not fit the model, and in the cases of `check_initialize`.
    """
    frozen = _stages_to_freeze(config, model.config)
    if config.weights:
        _take_weights(model, config.weights)
    if config.stem:
        _take_stem(model, config.stem)
    for name, parameter in model.named_parameters():
        if name.startswith(tuple(f"{stage}." for stage in frozen)) or name in frozen:
            parameter.requires_grad_(False)


def _take_weights(model: XCiT, source: str) -> None:
    record = find_source(source, "initialize.weights")
    found = load_as(model.config, source, num_classes=model.num_classes) if record is None else load_record(record)
    state = found.state_dict()
    if found.num_classes != model.num_classes:
        state = {name: tensor for name, tensor in state.items() if not name.startswith("head.")}
    model.load_state_dict({**model.state_dict(), **state})


def _take_stem(model: XCiT, source: str) -> None:
    record = find_source(source, "initialize.stem")
    found = load_record(record) if record is not None else load_classifier(read_source(source, None))
    _check_shape(found.config, model.config, _STEM_SHAPE, f"initialize.stem: {source}")
    model.stem.load_state_dict(found.stem.state_dict())


def _check_shape(found: XCiTConfig, model: XCiTConfig, fields: Sequence[str], what: str) -> None:
    for field in fields:
        theirs, ours = getattr(found, field), getattr(model, field)
        # Strides do not change the shapes of weights. So a model with changed stem strides can load the weights of a
        # model with another patch size, if both stems have the same number of layers.
        if field == "patch_size" and model.stem_strides and len(found.strides) == len(model.strides):
            continue
        if theirs != ours:
            raise XCiTError(f"{what} does not fit: its {field} is {theirs}, but the model's is {ours}")


def _stages_to_freeze(config: InitializeConfig, model: XCiTConfig) -> set[str]:
    """Returns the names of the stages to freeze. The name of a parameter starts with the name of its stage.

    Raises:
        XCiTError: if a stage does not exist, or if every stage is frozen.
    """
    stages = _stages(model)
    frozen = {"stem"} if config.stem else set()
    for name in config.freeze:
        wanted = _stages_of(name)
        unknown = next((stage for stage in wanted if stage not in stages), None)
        if unknown is not None:
            near = difflib.get_close_matches(unknown, stages, n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"there are: {', '.join(stages)}"
            raise XCiTError(f"initialize.freeze: no stage is called {unknown!r}; {hint}")
        frozen.update(wanted)
    if frozen.issuperset(stages):
        raise XCiTError("initialize.freeze names every stage: nothing is left to train")
    return frozen


def _stages(model: XCiTConfig) -> list[str]:
    stages = ["stem", "position", *(f"blocks.{index}" for index in range(model.depth))]
    if model.cls_depth:
        stages += ["cls_token", *(f"cls_blocks.{index}" for index in range(model.cls_depth)), "norm"]
    return [*stages, "head"]


def _stages_of(name: str) -> list[str]:
    """Returns all stages of a range such as "blocks.0-5". For any other name, returns only this name."""
    match = re.fullmatch(r"(blocks|cls_blocks)\.(\d+)-(\d+)", name)
    if match is None or int(match[2]) > int(match[3]):
        return [name]
    return [f"{match[1]}.{index}" for index in range(int(match[2]), int(match[3]) + 1)]
