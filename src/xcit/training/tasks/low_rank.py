"""Low-rank adapters (LoRA, arXiv 2106.09685), by PEFT: few new weights are trained, and the model's own are frozen."""

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
    """Adapters that are trained in place of the model's own weights.

    A layer's weight W (out, in) becomes W + alpha / rank * B A. A (rank, in) and B (out, rank) are learned, and W is
    frozen. All weights of the head are learned. Everything else is frozen, including the statistics of batch norms.

    Attributes:
        rank: rank of the update of each layer; 0 trains the model itself.
        alpha: scale of the update, which is multiplied by alpha / rank.
        dropout: probability of dropout on the input of the adapters.
        layers: the linear layers that get an adapter, by the ends of their names.
    """

    rank: int = 0
    alpha: int = 16
    dropout: float = 0.0
    layers: tuple[str, ...] = ("qkv", "q", "k", "v", "proj", "fc1", "fc2")

    def __post_init__(self) -> None:
        def need(condition: bool, name: str, must: str) -> None:
            if not condition:
                raise XCiTError(f"lora.{name} is {getattr(self, name)}, must be {must}")

        need(self.rank >= 0, "rank", "0 or more")
        need(self.alpha >= 1, "alpha", "at least 1")
        need(0 <= self.dropout < 1, "dropout", "in [0, 1)")
        need(bool(self.layers), "layers", "names of layers")


def check_lora(config: LoRAConfig, initialize: InitializeConfig, run: RunConfig) -> None:
    """Checks the config of a new run before anything is read or downloaded.

    Raises:
        XCiTError: if PEFT is missing, if there are no trained weights to adapt, or if another field of the config can't
            be combined with adapters.
    """
    if not config.rank:
        return
    need_packages("low-rank adaptation", "peft")
    if not initialize.weights:
        raise XCiTError("lora.rank adapts a trained model: set initialize.weights to one")
    if initialize.stem:
        raise XCiTError("lora.rank leaves the model's own weights as they are: leave initialize.stem out")
    if run.parallel == "fsdp2":
        raise XCiTError("lora.rank goes with run.parallel ddp: the few weights that are learned need no shards")


def adapt(model: XCiT, config: LoRAConfig) -> XCiT:
    """Adds new adapters, which do not change the outputs yet. Only they and the head are trainable afterwards.

    Raises:
        XCiTError: if no layer has such a name.
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
    """Returns the folder for the adapter that replaces a run's weights file: best-adapter for best.safetensors."""
    return weights.with_name(f"{weights.stem}-adapter")


class TaskWithAdapters(TaskWithLoader):
    """A task whose config has `lora`."""

    def export(self, model: nn.Module, path: Path) -> None:
        """Writes the whole model, or with adapters only these, in PEFT's format (see `adapter_folder`)."""
        if not self.config.lora.rank:
            super().export(model, path)
            return
        shape = Changes(drop_path_rate=0.0).of(self.config.model)
        base = self.config.initialize.weights
        write_adapter(model, adapter_folder(path), config=shape, info=self.info, base=base)
