"""Seeds all sources of randomness in training: the global generators of Python, NumPy and torch."""

import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch


def mix_seeds(*seeds: int) -> int:
    """Combines several seeds into one 32-bit seed."""
    return int(np.random.SeedSequence(list(seeds)).generate_state(1)[0])


def seed_all(*seeds: int) -> None:
    """Seeds the global generators of Python, NumPy and torch, including those of the GPUs if CUDA is initialised.

    Several seeds are combined into one.
    """
    seed = mix_seeds(*seeds)
    random.seed(seed)
    np.random.seed(seed)  # timm's augmentations use NumPy's global generator
    # `torch.manual_seed` is not used, because data loaders call this function for each image. Before CUDA is
    # initialised, `torch.manual_seed` stores a formatted stack trace, which takes a millisecond and some memory.
    torch.default_generator.manual_seed(seed)
    if torch.cuda.is_initialized():
        torch.cuda.manual_seed_all(seed)


@contextmanager
def own_randomness() -> Iterator[None]:
    """Restores the states of the global generators of Python, NumPy and torch (on the CPU) when the context ends."""
    states = random.getstate(), np.random.get_state(), torch.get_rng_state()
    try:
        yield
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])
        torch.set_rng_state(states[2])
