"""Seeds for every source of randomness that training draws from: Python's, NumPy's and torch's global generators."""

import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch


def mix_seeds(*seeds: int) -> int:
    """One 32-bit seed that depends on all of several."""
    return int(np.random.SeedSequence(list(seeds)).generate_state(1)[0])


def seed_all(*seeds: int) -> None:
    """Seeds the three global generators, and those of the GPUs in use."""
    seed = mix_seeds(*seeds)
    random.seed(seed)
    np.random.seed(seed)  # timm's augmentations draw from the global generator
    # Not `torch.manual_seed`: where CUDA was not used yet, that keeps a formatted stack for each call: a
    # millisecond and some memory an image.
    torch.default_generator.manual_seed(seed)
    if torch.cuda.is_initialized():
        torch.cuda.manual_seed_all(seed)


@contextmanager
def own_randomness() -> Iterator[None]:
    """Leaves the global generators as they were found."""
    states = random.getstate(), np.random.get_state(), torch.get_rng_state()
    try:
        yield
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])
        torch.set_rng_state(states[2])
