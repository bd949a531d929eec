"""Makes all measurements that need a GPU: checks and times of the Triton kernels, and our models compared with timm's.

    python benchmarks/on_gpu.py --out runs/gpu [--parts check,kernels,models,train] [--minutes 7.5]
    python benchmarks/on_gpu.py --out runs/tune --parts tune            # other launch shapes of the kernels
    python benchmarks/on_gpu.py --out /tmp/gpu --device cpu --tiny   # tests the script itself, in Triton's interpreter

Times are medians of rounds in which all contenders take turns, measured by CUDA events. Ratios come with the quartiles
of the ratios of single rounds. If a measurement fails, the failure is reported, and the others continue. If a part has
used its share of the minutes, its last measurements are left out. results.json, table.txt and profile.txt are written
to the folder --out after each measurement. timm must be installed.
"""

import argparse
import os
import platform
import time
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path

SHARES = {"check": 0.15, "kernels": 0.2, "models": 0.4, "train": 0.25, "tune": 0.25}
"""Each part's share of the minutes; the next parts share the time that a part does not use."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder for the results")
    parser.add_argument("--parts", default="check,kernels,models,train", help=f"parts to run: {', '.join(SHARES)}")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--minutes", type=float, default=7.5, help="time for all parts; a measurement is never cut off")
    parser.add_argument("--tiny", action="store_true", help="use the smallest shapes")
    arguments = parser.parse_args()
    names = arguments.parts.split(",")
    if unknown := set(names) - set(SHARES):
        parser.error(f"no part is called {unknown.pop()}; the parts are: {', '.join(SHARES)}")
    if arguments.device == "cpu":
        os.environ["TRITON_INTERPRET"] = "1"  # Triton reads this when torch, timm or a kernel first imports it
    if missing := [package for package in ("triton", "timm") if find_spec(package) is None]:
        raise SystemExit(f"benchmarks/on_gpu.py needs {' and '.join(missing)}: pip install {' '.join(missing)}")
    import torch

    if arguments.device != "cpu" and not torch.cuda.is_available():
        raise SystemExit(
            "benchmarks/on_gpu.py needs a CUDA GPU, and there is none (--device cpu --tiny tests the script itself)"
        )
    from gpu import models, single_kernels, tune
    from gpu.bench import Bench, Report

    device = torch.device(arguments.device)
    parts = {
        "check": single_kernels.check,
        "kernels": single_kernels.kernels,
        "models": models.models,
        "train": models.train,
        "tune": tune.tune,
    }
    # TF32 is precise enough for attention from a float32 Gram matrix, because the tokens are bfloat16.
    torch.set_float32_matmul_precision("high")
    torch.manual_seed(0)
    started = time.monotonic()
    report = Report(arguments.out)
    bench = Bench(device, arguments.tiny, report)
    machine = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.machine()
    versions = {package: version(package) for package in ("torch", "triton", "timm")}
    speeds = {"matrix_peak": bench.matrix_peak, "copy_peak": bench.copy_peak}
    report.record("machine", name=machine, versions=versions, **speeds, parts=names, minutes=arguments.minutes)
    report.say(f"{machine}, " + ", ".join(f"{package} {number}" for package, number in versions.items()))
    report.say(
        f"matrix product in bfloat16 {bench.matrix_peak / 1e12:.0f} TFLOP/s; "
        f"copy {bench.copy_peak / 1e12:.2f} TB/s, read and written"
    )
    for index, name in enumerate(names):
        began = time.monotonic()
        left = started + 60 * arguments.minutes - began
        with report.attempt(name):
            parts[name](bench, began + left * SHARES[name] / sum(SHARES[other] for other in names[index:]))
        report.say(f"  ({name}: {time.monotonic() - began:.0f} s)")
    report.say(f"\nall in {time.monotonic() - started:.0f} s; results in {arguments.out}")
    wrong = [entry for entry in report.records.get("check", []) if not entry["ok"]]
    failures = report.records.get("failures", [])
    if wrong or failures:
        raise SystemExit(f"{len(wrong)} wrong, {len(failures)} failed")


if __name__ == "__main__":
    main()
