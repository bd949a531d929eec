"""Low-rank adapters (LoRA, arXiv 2106.09685) with PEFT: new weights are trained, the model's weights are frozen."""

from dataclasses import dataclass
from pathlib import Path

from torch import nn

from xcit.errors import XCiTError
from xcit.extras import need_packages
from xcit.models import XCiT
from xcit.training.engine.config import RunConfig
from xcit.training.tasks.base import TaskWithLoader
from xcit.training.tasks.initialization import InitializeConfig
from xcit.zoo.adapters import quiet_peft, write_adapter
from xcit.zoo.changes import Changes


@dataclass(frozen=True, kw_only=True)
class LoRAConfig:
    """Settings of adapters that are trained instead of the model's own weights.

    A layer's weight W (out, in) becomes W + alpha / rank * B A, where A (rank, in) and B (out, rank) are trained and W
    is frozen. All weights of the head are trained. Everything else is frozen, including the statistics of batch norms.

    Attributes:
        rank: rank of the update B A; 0 means that there are no adapters, and the model itself is trained.
        alpha: factor of the update; the update is also divided by `rank`.
        dropout: dropout rate of the adapters' input.
        layers: a linear layer gets an adapter if the last part of its name is one of these names.
    """

    rank: int = 0
    alpha: int = 16
    dropout: float = 0.0
    layers: tuple[str, ...] = ("qkv", "q", "k", "v", "proj", "fc1", "fc2")

    def __post_init__(self) -> None:
        def need(condition: bool, name: str, must: str) -> None:
            if not condition:
                raise XCiTError(f"lora.{name} is {getattr(self, name)}, but must be {must}")

        need(self.rank >= 0, "rank", "0 or more")
        need(self.alpha >= 1, "alpha", "at least 1")
        need(0 <= self.dropout < 1, "dropout", "in [0, 1)")
        need(bool(self.layers), "layers", "names of layers")


def check_lora(config: LoRAConfig, initialize: InitializeConfig, run: RunConfig) -> None:
    """Checks the settings of a new run before anything is read or downloaded.

    Raises:
        XCiTError: if PEFT is not installed, there is no trained model to adapt, or a setting can't be combined with
            adapters.
    """
    if not config.rank:
        return
    need_packages("low-rank adaptation", "peft")
    if not initialize.weights:
        raise XCiTError("lora.rank adapts a trained model: set initialize.weights to the weights of that model")
    if initialize.stem:
        raise XCiTError("lora.rank freezes all weights except the head, so also the stem: do not set initialize.stem")
    if run.parallel == "fsdp2":
        raise XCiTError(
            "lora.rank can't be combined with run.parallel fsdp2: use ddp, because adapters are too small to be sharded"
        )


def adapt(model: XCiT, config: LoRAConfig) -> XCiT:
    """Inserts new adapters into a model, and freezes everything except the adapters and the head.

    The outputs of the model change only when the adapters are trained. With rank 0, the model is returned unchanged.

    Raises:
        XCiTError: if no linear layer has a name that ends in one of `config.layers`.
    """
    if not config.rank:
        return model
    with quiet_peft():
        from peft import LoraConfig, inject_adapter_in_model

    head = [parameter for parameter in model.head.parameters() if parameter.requires_grad]
    peft_config = LoraConfig(
        r=config.rank,
        lora_alpha=config.alpha,
        lora_dropout=config.dropout,
        target_modules=[*config.layers],
    )
    try:
        with quiet_peft():
            inject_adapter_in_model(peft_config, model)
    except ValueError as error:
        named = ", ".join(config.layers)
        raise XCiTError(f"lora.layers: no linear layer has a name that ends in one of {named}") from error
    for parameter in head:
        parameter.requires_grad_(True)
    return model


def adapter_folder(weights: Path) -> Path:
    """Returns the path of an adapter for the path of the weights: "best-adapter" for "best.safetensors"."""
    return weights.with_name(f"{weights.stem}-adapter")


class TaskWithAdapters(TaskWithLoader):
    """A task with a field `lora` in its config."""

    def export(self, model: nn.Module, path: Path) -> None:
        """Writes the whole model to a file. If the model has adapters, writes adapters and head to a folder instead.

        The folder is in PEFT's format (see `adapter_folder`).
        """
        if not self.config.lora.rank:
            super().export(model, path)
            return
        shape = Changes(drop_path_rate=0.0).of(self.config.model)
        base = self.config.initialize.weights
        write_adapter(model, adapter_folder(path), config=shape, info=self.info, base=base)
