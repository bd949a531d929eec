"""Code that the evaluations of several tasks share: settings, and loops over this process's images."""

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
    """Settings of the evaluation of a model on images.

    Attributes:
        batch_size: for a classifier: number of images in a forward pass.
        num_workers: number of processes that read images; with 0 this process reads them.
        device: the model's device; None means the device of its parameters.
        dtype: for a classifier: float32, or bfloat16 or float16 for autocast. For a segmenter: dtype of its weights.
    """

    batch_size: int = 64
    num_workers: int = 0
    device: torch.device | None = None
    dtype: torch.dtype = torch.float32

    def place(self, model: nn.Module) -> torch.device:
        """Returns the device of a model."""
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
    """Computes a classifier's logits for this process's share of the images, batch by batch.

    Args:
        model: a model that returns logits; it is in evaluation mode until the last batch.
        images: the images to evaluate.
        spec: preprocessing of the images.
        how: batch size, number of processes that read images, device and precision.
        layout: rank of this process, and number of processes.
        unreadable: list to which a line is added for each image that can't be read.
        report: called with the number of images of each batch.

    Yields:
        Logits (B, K) of B images for K classes, float32 on the model's device, and labels (B,) on the CPU. B is at
        least 1.
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
    """Returns a loader that yields this process's share of the samples, one at a time and unchanged.

    Args:
        samples: the samples to evaluate, such as images.
        num_samples: number of samples.
        layout: rank of this process, and number of processes.
        num_workers: number of processes that read samples; with 0 this process reads them.
    """
    return DataLoader(
        Subset(samples, layout.share(num_samples)),
        batch_size=None,
        collate_fn=_as_it_is,
        num_workers=num_workers,
        worker_init_fn=prepare_worker,
    )


def _as_it_is(sample: Any) -> Any:
    """Returns the sample unchanged. torch's default function would convert its arrays to tensors."""
    return sample


def none_readable(count: int, what: str, unreadable: Sequence[str]) -> XCiTError:
    """Returns the error for the case that none of `count` images could be read.

    `what` is the word for the images in the message, such as "scenes".
    """
    return XCiTError(f"none of the {count} {what} could be read{f'; the first: {unreadable[0]}' if unreadable else ''}")
