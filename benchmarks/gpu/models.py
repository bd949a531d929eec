"""Compares whole models with timm's, which have the same weights: forward passes and training steps."""

import statistics
import time

import torch
from beside_peers.contenders import plain_model, timm_model
from beside_peers.work import Case, Inference, TrainingStep, Work
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from gpu.bench import Bench, Run
from gpu.kernels.use import use_kernels
from xcit.measure.clock import ratio_of_medians

# Contenders in the order of preparation: the last may be left out if the time is over. "xcit-plain" is our model
# without fusing. "xcit" is the fused model, but in training the unfused model. "kernels" is "xcit" with kernels for
# LPI. "gram" is "kernels" with XCA from a kernel's Gram matrix.
WIDE = ("timm", "timm-compile", "kernels-compile", "xcit-compile", "gram-compile", "xcit", "kernels", "gram",
        "xcit-plain")  # fmt: skip
NARROW = ("vit-compile", "timm-compile", "kernels-compile", "xcit-compile", "timm", "xcit", "kernels")
TRAINING = ("timm", "timm-compile", "kernels-compile", "xcit-compile", "xcit", "kernels")

LARGEST_DIFFERENCE = 0.3
"""Limit of |difference| / |timm's output|. Rounding to bfloat16 in 12 blocks of random weights can't exceed it."""


def models(bench: Bench, deadline: float) -> None:
    """Times forward passes in bfloat16; small-12-p16 is also compared with a ViT of similar FLOPs."""
    size, batch = (32, 1) if bench.tiny else (224, 256)
    contenders = {"small-12-p8": WIDE, "small-12-p16": NARROW}
    if bench.tiny:
        contenders = {"nano-12-p16": ("timm", "xcit-compile", "kernels", "gram", "vit-compile")}
    bench.report.say(f"\nMODELS: forward pass in bfloat16, batches of {batch} at {size}")
    for index, (architecture, names) in enumerate(contenders.items()):
        now = time.monotonic()
        with bench.report.attempt(f"models {architecture}"):
            case = _case(bench, architecture, size, batch, train=False)
            _time(bench, case, names, now + (deadline - now) / (len(contenders) - index))


def train(bench: Bench, deadline: float) -> None:
    """Times training steps (forward pass, cross-entropy, backward pass) in autocast to bfloat16."""
    size = 32 if bench.tiny else 224
    for batch in (2,) if bench.tiny else (256, 128, 64):
        case = _case(bench, "nano-12-p16" if bench.tiny else "small-12-p8", size, batch, train=True)
        bench.report.say(f"\nTRAIN: forward and backward pass, autocast to bfloat16, batches of {batch} at {size}")
        fits = False
        with bench.report.attempt(f"timm's step in batches of {batch}"):
            _build(bench, "timm", case)()
            fits = True
        if fits:  # else all models use the next smaller batch
            with bench.report.attempt(f"train {case.architecture}"):
                _time(bench, case, ("timm", "kernels") if bench.tiny else TRAINING, deadline)
            return


def _case(bench: Bench, architecture: str, size: int, batch: int, *, train: bool) -> Case:
    return Case(
        architecture=architecture,
        image_size=size,
        batch_size=batch,
        train=train,
        dtype="bfloat16",
        device=str(bench.device),
        threads=torch.get_num_threads(),
    )


def _build(bench: Bench, name: str, case: Case) -> Work:
    kind = name.removesuffix("-compile")
    model = _model(kind, case).to(bench.device)
    if kind in ("kernels", "gram"):  # tiny: the interpreter needs a minute for all blocks
        use_kernels(model.blocks[0] if bench.tiny else model, gram=kind == "gram")
    images = case.images()
    if not case.train:  # after fusing, so that each weight is rounded only one time
        model, images = model.to(case.torch_dtype), images.to(case.torch_dtype)
    forward = bench.compile(model) if name.endswith("-compile") else model
    if case.train:
        return TrainingStep(model, forward, images, case.labels(), case.torch_dtype)
    return Inference(forward, images)


def _model(kind: str, case: Case) -> nn.Module:
    import timm

    if kind == "vit":
        return timm.create_model("vit_small_patch16_224", img_size=case.image_size).train(case.train)
    if kind == "timm":
        return timm_model(case).train(case.train)
    model = plain_model(case).train(case.train)
    return model if case.train or kind == "xcit-plain" else model.fuse()


def _time(bench: Bench, case: Case, names: tuple[str, ...], deadline: float) -> None:
    report, cuda = bench.report, bench.device.type == "cuda"
    works: dict[str, Work] = {}
    outputs: dict[str, list[Tensor]] = {}
    memory: dict[str, int] = {}
    ready: dict[str, float] = {}
    for name in names:
        if bench.out_of_time(deadline):
            break
        with report.attempt(f"{case.architecture} {name}"):
            started = time.monotonic()
            work = _build(bench, name, case)
            outputs[name] = [value.cpu() for value in work.outputs()]
            if cuda:
                work()
                before = torch.cuda.memory_allocated()
                torch.cuda.reset_peak_memory_stats()
                work()
                torch.cuda.synchronize()
                memory[name] = torch.cuda.max_memory_allocated() - before
            works[name], ready[name] = work, time.monotonic() - started
    if not works:
        return
    taken = bench.clock.take_turns(works)
    reference = next(name for name in ("timm-compile", "timm", *works) if name in works)
    flops = {kind: _flops(kind, case) for kind in ("xcit", "vit")}
    report.say(f"  {case.architecture}: speed relative to {reference}, with quartiles; share of the matrix peak")
    report.say("    (FLOPs of timm's model); memory beyond model and images; difference of logits (and gradients)")
    for name, seconds in taken.items():
        median = statistics.median(seconds)
        slower, (low, high) = ratio_of_medians(seconds, taken[reference])
        is_vit = name.startswith("vit")
        share = flops["vit" if is_vit else "xcit"] / median / bench.matrix_peak
        off = None if is_vit else _difference(outputs[name], outputs[reference])
        report.say(
            f"    {name:15s} {1000 * median:8.2f} ms  {case.batch_size / median:7.0f} images/s  "
            f"{1 / slower:5.2f}x ({1 / high:.2f}-{1 / low:.2f})  peak {share:4.0%}  "
            f"{memory.get(name, 0) / 2**20:6.0f} MiB  off {'-' if off is None else f'{off:.0e}'}  "
            f"ready in {ready[name]:.0f} s"
        )
        values = {"architecture": case.architecture, "batch": case.batch_size, "size": case.image_size}
        report.record(
            "train" if case.train else "models",
            **values,
            contender=name,
            seconds=seconds,
            reference=reference,
            speed=1 / slower,
            speed_quartiles=(1 / high, 1 / low),
            peak_share=share,
            memory=memory.get(name),
            difference=off,
            ready_seconds=ready[name],
        )
        if off is not None and not off < LARGEST_DIFFERENCE:
            report.say(f"    WRONG {name}")
            report.record("failures", what=f"{case.architecture} {name}", error=f"differs by {off}")
    for name, work in works.items() if cuda else ():
        if bench.out_of_time(deadline + 30):
            break
        with report.attempt(f"profile {name}"):
            _profile(bench, f"{case.architecture}, {'training' if case.train else 'inference'}, {name}", work)


def _difference(outputs: list[Tensor], others: list[Tensor]) -> float:
    return max(float((a - b).norm() / b.norm()) for a, b in zip(outputs, others, strict=True))


def _flops(kind: str, case: Case) -> float:
    """Returns torch's count of the FLOPs of timm's model for a batch; a training step counts as three passes."""
    import timm

    with torch.device("meta"), torch.no_grad(), FlopCounterMode(display=False) as counter:
        if kind == "vit":
            model = timm.create_model("vit_small_patch16_224", img_size=case.image_size)
        else:
            model = timm.create_model(f"xcit_{case.architecture.replace('-', '_')}_224")
        model.eval()(torch.empty(1, 3, case.image_size, case.image_size))
    return float(counter.get_total_flops() * case.batch_size * (3 if case.train else 1))


def _profile(bench: Bench, title: str, work: Run) -> None:
    """Adds the GPU kernels of one run to profile.txt; the kernel with the longest time is first."""
    from torch.profiler import ProfilerActivity, profile

    with profile(activities=[ProfilerActivity.CUDA]) as recorded:
        work()
        torch.cuda.synchronize()
    rows = sorted(recorded.key_averages(), key=lambda row: -row.self_device_time_total)
    total, count = sum(row.self_device_time_total for row in rows), sum(row.count for row in rows)
    with (bench.report.folder / "profile.txt").open("a") as file:
        file.write(f"\n{title}: {total / 1000:.2f} ms in {count} kernels\n")
        for row in rows[:25]:
            file.write(f"  {row.self_device_time_total / 1000:9.3f} ms {row.count:5d} x  {row.key[:150]}\n")
