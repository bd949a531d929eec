"""Compares the times of the forms of XCA; the results were used to choose the thresholds of `ops/forms.py`.

    python benchmarks/xca_forms.py [ROUNDS] [--batch 8] [--threads 2]

There are two ways to compute the attention of XCA ("tokens" and "gram"), and two ways to compute its output ("values"
and "matrix"). For each width D and each ratio N / D (N is the number of tokens), this script prints the time of each
way for a batch of images. All four run in turn in each round. "of tokens" below 1 means that "gram" is faster than
"tokens". "of values" below 1 means that "matrix" is faster than "values".
"""

import argparse
import statistics
import time
from collections.abc import Callable

import torch
from torch import Tensor

from xcit.machine import processor
from xcit.ops import forms

HEADS = {128: 4, 192: 4, 384: 8}
RATIOS = (1.0, 1.5, 2.0, 3.0, 6.0)


def medians(functions: dict[str, Callable[[], Tensor]], rounds: int) -> dict[str, float]:
    """Returns each function's median time in seconds; each round calls all functions."""
    times: dict[str, list[float]] = {name: [] for name in functions}
    for number in range(rounds + 2):
        for name, function in functions.items():
            started = time.perf_counter()
            function()
            if number >= 2:
                times[name].append(time.perf_counter() - started)
    return {name: statistics.median(values) for name, values in times.items()}


def compare(batch: int, dim: int, num_tokens: int, rounds: int) -> dict[str, float]:
    """Returns the median seconds of the two ways to compute the attention and the two ways to compute the output."""
    draw = torch.Generator().manual_seed(0)
    tokens = torch.randn(batch, num_tokens, dim, generator=draw)
    qkv_weight = torch.randn(3 * dim, dim, generator=draw) * dim**-0.5
    qkv_bias = torch.randn(3 * dim, generator=draw)
    temperature = torch.ones(HEADS[dim], 1, 1)
    proj_weight, proj_bias = torch.randn(dim, dim, generator=draw) * dim**-0.5, torch.randn(dim, generator=draw)
    attention = forms.attention_from_tokens(tokens, qkv_weight, qkv_bias, temperature)

    def by_matrix() -> Tensor:
        matrix, row = forms.mixing_matrix(attention, qkv_weight, qkv_bias, proj_weight, proj_bias)
        return torch.baddbmm(row, tokens, matrix)

    return medians(
        {
            "tokens": lambda: forms.attention_from_tokens(tokens, qkv_weight, qkv_bias, temperature),
            "gram": lambda: forms.attention_from_gram(
                *forms.gram(tokens), num_tokens, qkv_weight, qkv_bias, temperature
            ),
            "values": lambda: forms.mix_values(tokens, attention, qkv_weight, qkv_bias, proj_weight, proj_bias),
            "matrix": by_matrix,
        },
        rounds,
    )


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("rounds", nargs="?", type=int, default=25)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    print(
        f"{processor()}, {arguments.threads} threads, torch {torch.__version__}, batch {arguments.batch}, "
        f"{arguments.rounds} rounds"
    )
    print(f"{'D':>4} {'N':>5} {'N/D':>5}   {'tokens':>9} {'gram':>9} of tokens   {'values':>9} {'matrix':>9} of values")
    with torch.inference_mode():
        for dim in HEADS:
            for ratio in RATIOS:
                num_tokens = int(ratio * dim)
                found = compare(arguments.batch, dim, num_tokens, arguments.rounds)
                cells = {name: f"{1000 * seconds:6.2f} ms" for name, seconds in found.items()}
                print(
                    f"{dim:4} {num_tokens:5} {ratio:5.2f}   {cells['tokens']} {cells['gram']} "
                    f"{found['gram'] / found['tokens']:8.2f}x   {cells['values']} {cells['matrix']} "
                    f"{found['matrix'] / found['values']:8.2f}x",
                    flush=True,
                )


if __name__ == "__main__":
    main()
