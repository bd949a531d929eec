import random

import numpy as np
import pytest
import torch

from xcit.seeding import mix_seeds, own_randomness, seed_all


def draws() -> tuple[float, float, float]:
    return random.random(), float(np.random.random()), torch.rand(1).item()


def test_mixed_seeds_depend_on_all_and_on_their_order() -> None:
    seeds = [(0, 0, 0), (0, 0, 1), (0, 1, 0), (1, 0, 0), (0, 1, 1), (1, 1, 0), (1, 2, 3), (3, 2, 1)]
    mixed = [mix_seeds(*each) for each in seeds]
    assert len(set(mixed)) == len(seeds)
    assert all(0 <= seed < 2**32 for seed in mixed)
    assert mixed == [mix_seeds(*each) for each in seeds]


def test_one_seed_sets_all_three_generators() -> None:
    with own_randomness():
        seed_all(3, 4)
        first = draws()
        assert draws() != first
        seed_all(3, 4)
        assert draws() == first
        seed_all(3, 5)
        assert all(one != other for one, other in zip(draws(), first, strict=True))


def test_own_randomness_leaves_the_generators_as_they_were() -> None:
    seed_all(1)
    expected = draws()
    seed_all(1)
    with own_randomness():
        seed_all(2)
        draws()
    assert draws() == expected
    seed_all(1)
    with pytest.raises(ZeroDivisionError), own_randomness():
        _ = draws(), 1 // 0
    assert draws() == expected
