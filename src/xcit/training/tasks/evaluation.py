"""What measuring a model on images shares over the tasks: how to compute, and the passes over this process's images."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, Subset

from xcit.data.loader import prepare_worker
from xcit.errors import XCiTError
from xcit.images.preprocess import Preprocessing
from xcit.models.modes import evaluating
from xcit.training.engine.task import Layout
from xcit.training.tasks.labelled_data import LabelledData, evaluation_batches_of


@dataclass(frozen=True, kw_only=True)
class EvaluationConfig:
    """How a model is measured on images.

    Attributes:
        batch_size: of a classifier: images a forward pass.
        num_workers: processes that read images; 0 reads them in this one.
        device: where the model is; none asks its parameters.
        dtype: of a classifier float32, or bfloat16 or float16 for autocast; of a segmenter that of its weights.
    """

    batch_size: int = 64
    num_workers: int = 0
    device: torch.device | None = None
    dtype: torch.dtype = torch.float32

    def place(self, model: nn.Module) -> torch.device:
        """The device where a model is."""
        return self.device or next(model.parameters()).device


@torch.inference_mode()
def logits_of(
    model: nn.Module,
    images: LabelledData,
    spec: Preprocessing,
    how: EvaluationConfig,
    *,
    layout: Layout,
    unreadable: list[str],
    report: Callable[[int], None],
) -> Iterator[tuple[Tensor, Tensor]]:
    """What a classifier says of this process's share of images, a batch at a time.

    Args:
        model: gives logits; it is put in evaluation mode for the time.
        images: what to measure on.
        spec: how an image becomes the model's input.
        how: batch size, processes that read, device and precision.
        layout: which of several processes this is.
        unreadable: gets a line for each image that can't be read.
        report: called with the number of images of each batch.

    Yields:
        Logits (B, K), float32 on the model's device, and the labels (B,) of the images, on the CPU; B is at least 1.
    """
    device = how.place(model)
    autocast = nullcontext() if how.dtype == torch.float32 else torch.autocast(device.type, dtype=how.dtype)
    batches = evaluation_batches_of(images, spec, batch_size=how.batch_size, num_workers=how.num_workers, layout=layout)
    with evaluating(model):
        for batch, labels, reasons in batches:
            unreadable += reasons
            if len(labels):
                with autocast:
                    logits = model(batch.to(device))
                yield logits.float(), labels
            report(len(labels) + len(reasons))


def one_by_one(samples: Dataset[Any], num_samples: int, layout: Layout, num_workers: int) -> DataLoader[Any]:
    """This process's share of samples as they are, one at a time, read ahead by so many processes."""
    return DataLoader(
        Subset(samples, layout.share(num_samples)),
        batch_size=None,
        collate_fn=_as_it_is,
        num_workers=num_workers,
        worker_init_fn=prepare_worker,
    )


def _as_it_is(sample: Any) -> Any:
    """Keeps arrays arrays, where a loader would make tensors of them."""
    return sample


def none_readable(count: int, what: str, unreadable: Sequence[str]) -> XCiTError:
    """The error of images, or what they are called, of which not one could be read."""
    return XCiTError(f"none of the {count} {what} could be read{f'; the first: {unreadable[0]}' if unreadable else ''}")
