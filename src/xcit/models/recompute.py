"""Gradient checkpointing of a block: its activations are computed a second time in the backward pass."""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint


def recomputed(block: nn.Module, *inputs: Tensor | int) -> Tensor:
    """Returns the output of the block without keeping its activations for the backward pass."""
    if torch.compiler.is_compiling():  # torch.compile accepts no `context_fn`, and updates the statistics only once
        out: Tensor = checkpoint(block, *inputs, use_reentrant=False)
    else:
        contexts = partial(_recompute_contexts, block)
        out = checkpoint(block, *inputs, use_reentrant=False, context_fn=contexts)
    return out


def _recompute_contexts(block: nn.Module) -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
    """Returns the contexts of the forward pass of a checkpointed block and of its recomputation."""
    return nullcontext(), _keep_statistics(block)


@contextmanager
def _keep_statistics(block: nn.Module) -> Iterator[None]:
    """Prevents batch norms from counting the same batch a second time in their running statistics."""
    norms = [module for module in block.modules() if isinstance(module, nn.BatchNorm2d | nn.SyncBatchNorm)]
    kept = [(norm.momentum, norm.num_batches_tracked) for norm in norms]
    for norm in norms:
        norm.momentum, norm.num_batches_tracked = 0.0, None
    try:
        yield
    finally:  # torch ends the recomputation early by an exception
        for norm, (momentum, num_batches) in zip(norms, kept, strict=True):
            norm.momentum, norm.num_batches_tracked = momentum, num_batches
