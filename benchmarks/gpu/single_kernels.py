"""Measures single kernels: compares their outputs with exact outputs, and their speed with plain PyTorch."""

import statistics
from typing import Any

import torch

from gpu.bench import Bench, Run
from gpu.problems import Problem, gram_problem, lpi_problem, training_problem
from xcit.measure.clock import ratio_of_medians

TOLERANCE = {torch.bfloat16: 1e-2, torch.float32: 1e-4, torch.float16: 2e-3}
"""Limit of norm(difference) / norm(exact output)."""

# (B, H, W, D), even and odd numbers. tests/benchmarks/gpu/kernels has more shapes.
SHAPES_CHECKED = [(4, 28, 28, 384), (3, 13, 17, 130), (64, 7, 7, 768)]

# Width, side of the token grid, and batch sizes. The first batch size of every shape is timed first.
SHAPES = {
    "small-12-p8 at 224": (384, 28, (256, 64, 1)),
    "small-12-p16 at 224": (384, 14, (256, 64, 1)),
    "small-12-p8 at 384": (384, 48, (64, 1)),
    "small-12-p8 at 1024": (384, 128, (16, 1)),
    "nano-12-p16 at 224": (128, 14, (256, 1)),
    "large-24-p8 at 224": (768, 28, (64, 1)),
    "large-24-p16 at 224": (768, 14, (256, 1)),
}


def check(bench: Bench, deadline: float) -> None:
    """Compares each form of each problem with the eager form in float64."""
    bench.report.say("\nCHECK: largest |form - exact| / |exact| of outputs and gradients; exact is eager in float64")
    for shape in [(1, 2, 2, 3)] if bench.tiny else SHAPES_CHECKED:
        batch, height, width, dim = shape
        for dtype in TOLERANCE:
            tokens = (batch, height * width, dim)
            for make, sizes in ((lpi_problem, shape), (training_problem, shape), (gram_problem, tokens)):
                if bench.out_of_time(deadline):
                    return
                with bench.report.attempt(f"check {make.__name__} {sizes} {dtype}"):
                    _check(bench, make(*sizes, dtype, bench.device), dtype)


def _check(bench: Bench, problem: Problem, dtype: torch.dtype) -> None:
    exact = problem.exact()
    errors = {}
    for name, form in problem.forms.items():
        if bench.device.type == "cuda":
            _poison(bench.device)
        outputs = problem.run(form)
        errors[name] = max(
            float((out.double() - true).norm() / true.norm().clamp(min=1e-6))
            for out, true in zip(outputs, exact, strict=True)
        )
    good = errors["triton"] <= TOLERANCE[dtype]
    shown = str(dtype).removeprefix("torch.")
    bench.report.record("check", problem=problem.name, shape=problem.shape, dtype=shown, errors=errors, ok=good)
    cells = "  ".join(f"{name} {error:.1e}" for name, error in errors.items())
    bench.report.say(f"  {'ok   ' if good else 'WRONG'} {problem.name:13s} {problem.shape:20s} {shown:9s} {cells}")


def _poison(device: torch.device) -> None:
    """Fills free memory with NaN, so that an element that a kernel does not write is NaN in its output."""
    torch.cuda.empty_cache()
    blocks = [torch.full((numbers,), torch.nan, device=device) for numbers in (2**26, *[2**17] * 64)]
    del blocks


def kernels(bench: Bench, deadline: float) -> None:
    """Times each kernel and its plain forms, eager and compiled, in the shapes of published models."""
    shapes = {"tiny": (8, 2, (1,))} if bench.tiny else SHAPES
    bench.report.say("\nKERNELS: bfloat16; time of each form divided by the kernel's time, with quartiles; floor: time")
    bench.report.say("  of a copy of the smallest possible number of bytes, as a share of the kernel's time")
    for turn in range(max(len(batches) for _, _, batches in shapes.values())):
        for name, (dim, side, batches) in shapes.items():
            if turn >= len(batches):
                continue
            batch, place = batches[turn], (bench.dtype, bench.device)
            for kind in ("lpi", "gram", "lpi-training")[: 3 if turn == 0 else 2]:
                if bench.out_of_time(deadline):
                    return
                with bench.report.attempt(f"kernels {kind} {name} batch {batch}"):
                    if kind == "gram":
                        problem = gram_problem(batch, side * side, dim, *place)
                    else:
                        make = lpi_problem if kind == "lpi" else training_problem
                        problem = make(batch, side, side, dim, *place)
                    _time(bench, name, problem)


def _time(bench: Bench, name: str, problem: Problem) -> None:
    bench.report.say(f"  {problem.name}, {name}: {problem.shape}")
    forms = problem.forms | {"eager, compiled": bench.compile(problem.forms["eager"])}
    runs: dict[str, Run] = {}
    for form_name, form in forms.items():

        def run(form: Any = form) -> object:
            return problem.run(form)

        with bench.report.attempt(f"{problem.name} {problem.shape} {form_name}"):
            run()
            if not bench.tiny:
                run()
            runs[form_name] = run
    taken = bench.clock.take_turns(runs)
    floor = problem.num_bytes / bench.copy_peak
    for form_name, seconds in taken.items():
        median = statistics.median(seconds)
        line, ratio = f"    {form_name:16s} {1000 * median:9.3f} ms", None
        if form_name == "triton":
            line += f"  floor {floor / median:.0%}"
        elif "triton" in taken:
            ratio = ratio_of_medians(seconds, taken["triton"])
            line += f"  {ratio[0]:6.2f}x ({ratio[1][0]:.2f}-{ratio[1][1]:.2f})"
        bench.report.say(line)
        values = {"problem": problem.name, "name": name, "shape": problem.shape, "form": form_name}
        bench.report.record("kernels", **values, seconds=seconds, ratio=ratio, floor_share=floor / median)
