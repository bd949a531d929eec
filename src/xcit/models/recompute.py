"""Gradient checkpointing of a block: its activations are not stored, but recomputed in the backward pass."""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint


def recomputed(block: nn.Module, *inputs: Tensor | int) -> Tensor:
    """Computes the output of a block without storing its activations for the backward pass."""
    # torch.compile does not accept `context_fn`. A compiled model does not need it, because its recomputation does not
    # update the running statistics again.
    if torch.compiler.is_compiling():
        out: Tensor = checkpoint(block, *inputs, use_reentrant=False)
    else:
        contexts = partial(_recompute_contexts, block)
        out = checkpoint(block, *inputs, use_reentrant=False, context_fn=contexts)
    return out


def _recompute_contexts(block: nn.Module) -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
    """Returns two context managers for a checkpointed block: for its forward pass, and for the recomputation."""
    return nullcontext(), _keep_statistics(block)


@contextmanager
def _keep_statistics(block: nn.Module) -> Iterator[None]:
    """Prevents the recomputation from updating the running statistics of batch norms a second time."""
    norms = [module for module in block.modules() if isinstance(module, nn.BatchNorm2d | nn.SyncBatchNorm)]
    kept = [(norm.momentum, norm.num_batches_tracked) for norm in norms]
    for norm in norms:
        norm.momentum, norm.num_batches_tracked = 0.0, None
    try:
        yield
    finally:  # also runs if torch ends the recomputation early with an exception
        for norm, (momentum, num_batches) in zip(norms, kept, strict=True):
            norm.momentum, norm.num_batches_tracked = momentum, num_batches
