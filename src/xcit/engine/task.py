"""The protocol between the engine and what it trains."""

from collections.abc import Iterable, Sized
from pathlib import Path
from typing import Any, Protocol

from torch import Tensor, nn


class Batches(Sized, Iterable[Any], Protocol):
    """One epoch's batches: an iterable that knows how many they are."""


class Task(Protocol):
    """What a batch means. The engine owns the loop, the optimiser and the files; the task owns the rest."""

    model: nn.Module

    def train_batches(self, epoch: int) -> Batches:
        """The batches of one epoch; equal for equal seed and epoch."""

    def loss(self, model: nn.Module, batch: Any) -> dict[str, Tensor]:
        """Scalars to log, among them "loss", which is the one that is minimised."""

    def evaluate(self, model: nn.Module) -> dict[str, float]:
        """Figures on data that are not trained on."""

    def export(self, model: nn.Module, path: Path, figures: dict[str, float]) -> None:
        """Writes the weights with what a person needs to use them."""
