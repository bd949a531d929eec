"""Gradient checkpointing of a block: its activations are computed again in the backward pass."""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint


def recomputed(block: nn.Module, *inputs: Tensor | int) -> Tensor:
    """The block's output, without its activations kept for the backward pass."""
    if torch.compiler.is_compiling():  # the compiler takes no context, and moves the statistics once anyway
        out: Tensor = checkpoint(block, *inputs, use_reentrant=False)
    else:
        contexts = partial(_recompute_contexts, block)
        out = checkpoint(block, *inputs, use_reentrant=False, context_fn=contexts)
    return out


def _recompute_contexts(block: nn.Module) -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
    """For the forward pass of a checkpointed block, and for its recomputation."""
    return nullcontext(), _keep_statistics(block)


@contextmanager
def _keep_statistics(block: nn.Module) -> Iterator[None]:
    """Lets batch norms see a batch for a second time without counting it twice in their running statistics."""
    norms = [module for module in block.modules() if isinstance(module, nn.BatchNorm2d | nn.SyncBatchNorm)]
    kept = [(norm.momentum, norm.num_batches_tracked) for norm in norms]
    for norm in norms:
        norm.momentum, norm.num_batches_tracked = 0.0, None
    try:
        yield
    finally:  # the recomputation ends by an exception once it has what it needs
        for norm, (momentum, num_batches) in zip(norms, kept, strict=True):
            norm.momentum, norm.num_batches_tracked = momentum, num_batches
