"""Runs models on images of any size, and prints the figures of docs/any-resolution.md.

    python benchmarks/any_resolution.py [CASE ...] [--size 32768] [--memory 4 1] [--before DIR] [--folder DIR]

    gigapixel   nano-12-p16 on a tiled BigTIFF of SIZE x SIZE pixels, within 4 and 1 GB: class, CLS feature, token map
    exact       compares streaming with a pass in memory: float64 at 512 pixels, float32 at --exact-size
    photograph  small-12-p8 on 6000 x 4000 pixels, within 750 and 300 MB
    growth      compares the time at SIZE / 2 with the time at SIZE / 4
    picture     draws docs/any-resolution.png: the packaged model's attention over 2048 x 2048 pixels
    before      compares the time of a pass in memory with another checkout of this repository; DIR is its `src` folder

The weights are random: trained weights would take the same time. Each run has its own process. Runs that are compared
take turns. The case `gigapixel` needs about 7 GB of disk. On two idle cores it takes about ten minutes for both memory
bounds together.
"""

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from xcit.machine import processor

TILE = 512
NANO, SMALL = "xcit-nano-12-p16", "xcit-small-12-p8"


def texture(side: int = 4096) -> np.ndarray:
    """Returns an image (side, side, 3) that resembles a photograph: noise at all scales, with garments on it."""
    from PIL import Image

    draw = np.random.default_rng(0)
    total = np.zeros((side, side, 3), np.float32)
    for power in range(3, side.bit_length()):
        noise = draw.normal(0, 1, (2**power, 2**power, 3)).astype(np.float32)
        for channel in range(3):
            layer = Image.fromarray(noise[:, :, channel]).resize((side, side), Image.Resampling.BICUBIC)
            total[:, :, channel] += np.asarray(layer) * 2.0 ** (1.2 * (4 - power))
    pixels = np.clip(128 + 60 * total, 0, 255).astype(np.uint8)
    folder = Path(__file__).resolve().parent.parent / "src/xcit/zoo/packaged/images"
    garments = [Image.open(path).convert("RGB") for path in sorted(folder.glob("*.png"))]
    for _ in range(60):
        size = int(draw.integers(60, 500))
        garment = np.asarray(garments[draw.integers(len(garments))].resize((size, size)))
        top, left = draw.integers(0, side - size, 2)
        place = pixels[top : top + size, left : left + size]
        np.copyto(place, garment, where=garment > 40)
    return pixels


def make_tiff(path: Path, size: int) -> None:
    """Writes a tiled 8-bit RGB BigTIFF (zstd): the repeated `texture` with slow changes of brightness."""
    import tifffile

    square = texture()

    def tiles() -> Iterator[np.ndarray]:
        for top in range(0, size, TILE):
            for left in range(0, size, TILE):
                y, x = top % len(square), left % len(square)
                rows, columns = ((start + np.arange(TILE, dtype=np.float32)) / size for start in (top, left))
                light = 0.6 + 0.4 * np.sin(3 * rows)[:, None, None] * np.cos(5 * columns)[:, None]
                yield (square[y : y + TILE, x : x + TILE] * light).astype(np.uint8)

    part = path.with_suffix(".part")
    options: dict[str, Any] = {"tile": (TILE, TILE), "compression": "zstd", "photometric": "rgb", "bigtiff": True}
    tifffile.imwrite(part, tiles(), shape=(size, size, 3), dtype=np.uint8, **options)
    part.replace(path)


def child(request: dict[str, Any]) -> dict[str, Any]:
    """Does one streamed run in this process."""
    import torch

    from xcit import get_model
    from xcit.images.preprocess import Preprocessing
    from xcit.machine import resident_memory
    from xcit.streaming import Budget, NpyMap, Wanted, encode, format_size, open_rows

    torch.manual_seed(0)
    model = get_model(request["model"]).fuse()
    last = model.config.depth + model.config.cls_depth - 1
    target = NpyMap(Path(request["folder"]) / "map.npy")
    before = resident_memory() or 0
    wanted = Wanted(class_tokens=frozenset({last}), maps={last: target} if request["map"] else {})
    budget = Budget(memory=request["memory"], scratch=Path(request["folder"]) / "scratch")
    with open_rows(request["image"]) as rows:
        opened = (resident_memory() or 0) - before
        found = encode(model, rows, wanted, preprocessing=Preprocessing(), memory=budget)
    with torch.inference_mode():
        logits = model.head(found.taken.class_tokens[last][None].to(next(model.parameters()).dtype))
    if request["map"]:
        target.finish()
    report = found.report
    assert report.peak_bytes is not None
    return {
        "seconds": report.seconds,
        "peak": report.peak_bytes + opened,
        "planned": report.plan.peak_bytes,
        "place": report.plan.place,
        "read": report.bytes_read,
        "written": report.bytes_written,
        "pixels": report.height * report.width,
        "class": int(logits.argmax()),
        "cls": found.taken.class_tokens[last].tolist(),
        "line": report.line(),
        "scratch": format_size(report.plan.scratch_bytes),
    }


def stream(folder: Path, model: str, image: Path, memory: int | None, *, map_: bool = False) -> dict[str, Any]:
    """Does one streamed run in a new process."""
    request = {"model": model, "image": str(image), "memory": memory, "map": map_, "folder": str(folder)}
    shutil.rmtree(folder / "scratch", ignore_errors=True)  # else an interrupted run is resumed
    done = subprocess.run(
        [sys.executable, __file__, "--child", json.dumps(request)], stdout=subprocess.PIPE, text=True, check=True
    )
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


class InMemory:
    """A process that runs a model on a square tensor on request, with this code or the code of another checkout."""

    def __init__(self, model: str, size: int, source: Path | None = None) -> None:
        code = (
            "import sys, time, torch\nfrom xcit import get_model\ntorch.manual_seed(0)\n"
            f"model = get_model({model!r}).fuse()\nimage = torch.randn(1, 3, {size}, {size})\n"
            "with torch.inference_mode():\n    model(image)\n    for line in sys.stdin:\n"
            "        began = time.perf_counter()\n        model(image)\n"
            "        print(time.perf_counter() - began, flush=True)\n"
        )
        environment = dict(os.environ) | ({} if source is None else {"PYTHONPATH": str(source)})
        self._process = subprocess.Popen(
            [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
        )

    def seconds(self) -> float:
        """Returns the seconds of one pass."""
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.write("\n")
        self._process.stdin.flush()
        return float(self._process.stdout.readline())

    def close(self) -> None:
        """Ends the process."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait()


def image_of(folder: Path, size: int) -> Path:
    """Returns the path of the BigTIFF of size x size pixels, and writes the file if it does not exist."""
    path = folder / f"picture-{size}.tif"
    if not path.exists():
        say(f"making {path.name} ...")
        make_tiff(path, size)
    return path


def gigapixel(arguments: argparse.Namespace) -> None:
    """Prints time and memory for each memory bound, and compares the time per pixel with passes in memory."""
    image = image_of(arguments.folder, arguments.size)
    say(f"{NANO} on {arguments.size} x {arguments.size} pixels, {image.stat().st_size / 1e9:.2f} GB of tiles")
    say(
        "| bound | tokens in | seconds | MP/s | peak above model | planned | read, written | a pixel beside 4096 px | "
        "of the matrix peak |"
    )
    say("| ---: | --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: |")
    for bound in arguments.memory:
        memory = round(bound * 10**9)
        times, rates = whole_times(arguments, rounds=2), [matrix_rate()]
        found = stream(arguments.folder, NANO, image, memory, map_=True)
        times += whole_times(arguments, rounds=2)
        rates.append(matrix_rate())
        a_pixel = found["seconds"] / found["pixels"] / (statistics.median(times) / 4096**2)
        say(
            f"| {bound:g} GB | {found['place']} | {found['seconds']:.0f} | "
            f"{found['pixels'] / 1e6 / found['seconds']:.2f} | "
            f"{found['peak'] / 1e6:,.0f} MB | {found['planned'] / 1e6:,.0f} MB | {found['read'] / 1e9:.1f}, "
            f"{found['written'] / 1e9:.1f} GB | {a_pixel:.2f} | "
            f"{operations_a_pixel(NANO) * found['pixels'] / found['seconds'] / max(rates):.0%} |"
        )


def matrix_rate() -> float:
    """Returns the FLOP/s of products of two float32 matrices of 2048 x 2048: the median of 15 products."""
    import torch

    from xcit import ops

    left, right = torch.randn(2, 2048, 2048).unbind()
    seconds = []
    for _ in range(15):
        began = time.perf_counter()
        ops.linear(left, right)
        seconds.append(time.perf_counter() - began)
    return float(2 * 2048**3 / statistics.median(seconds))


def operations_a_pixel(name: str) -> float:
    """Returns the FLOPs per pixel, as torch counts them. This number hardly depends on the image's size."""
    from xcit import get_model
    from xcit.measure.complexity import complexity

    return complexity(get_model(name), 1024).torch_flops / 1024**2


def whole_times(arguments: argparse.Namespace, *, rounds: int) -> list[float]:
    """Returns the seconds of passes in memory at 4096 pixels, with the other checkout's code if --before is given."""
    before = InMemory(NANO, 4096, arguments.before)
    times = [before.seconds() for _ in range(rounds)]
    before.close()
    return times


def exact(arguments: argparse.Namespace) -> None:
    """Compares streaming with a pass in memory: prints the largest difference divided by the largest value."""
    import torch

    from xcit import XCiT, get_model
    from xcit.images.preprocess import Preprocessing, normalize
    from xcit.streaming import ArrayMap, Budget, Wanted, encode, open_rows

    torch.manual_seed(0)
    model, spec = get_model(NANO), Preprocessing()
    for name, value in model.state_dict().items():
        if value.is_floating_point() and "running_var" not in name:
            value.add_(torch.randn_like(value) * 0.02)
    for size, reference in ((512, torch.float64), (arguments.exact_size, torch.float32)):
        pixels = texture(size) if size <= 4096 else np.tile(texture(), (-(-size // 4096), -(-size // 4096), 1))
        pixels = pixels[:size, :size]
        target, last = ArrayMap(), 13
        wanted = Wanted(class_tokens=frozenset({last}), maps={last: target})
        with open_rows(pixels) as rows:
            # 400 MB in addition to the map. Tokens that do not fit in memory are stored in scratch files.
            budget = Budget(memory=400 * 10**6 + target.memory((size // 16, size // 16), 128), scratch=arguments.folder)
            found = encode(model, rows, wanted, preprocessing=spec, memory=budget)
        from PIL import Image

        whole: XCiT = get_model(NANO)
        whole.load_state_dict(model.state_dict())
        whole = whole.to(reference) if reference is torch.float64 else whole.fuse()
        with torch.inference_mode():
            image = normalize(Image.fromarray(pixels), spec)[None].to(reference)
            (expected,) = whole.extract_feat(image, out_type="raw")
        del image
        differences = {
            "CLS": (found.taken.class_tokens[last] - expected[0, 0]).abs().max() / expected[0, 0].abs().max(),
            "map": (torch.from_numpy(target.array).flatten(0, 1) - expected[0, 1:]).abs().max() / expected.abs().max(),
        }
        shown = ", ".join(f"{name} {float(value):.1e}" for name, value in differences.items())
        say(f"{size} x {size}, tokens in {found.report.plan.place}; {str(reference)[6:]} in memory: {shown}")


def photograph(arguments: argparse.Namespace) -> None:
    """Runs small-12-p8 on a photograph."""
    from PIL import Image

    path = arguments.folder / "photograph.jpg"
    if not path.exists():
        Image.fromarray(np.tile(texture(), (1, 2, 1))[:4000, :6000]).save(path, quality=92)
    for bound in (750 * 10**6, 300 * 10**6):
        found = stream(arguments.folder, SMALL, path, bound)
        say(
            f"{SMALL} on 6000 x 4000 pixels within {bound / 1e6:.0f} MB, tokens in {found['place']}: "
            f"{found['seconds']:.0f} s, {found['peak'] / 1e6:.0f} MB above the loaded model, planned "
            f"{found['planned'] / 1e6:.0f} MB"
        )


def growth(arguments: argparse.Namespace) -> None:
    """Prints the time at SIZE / 2 divided by the time at SIZE / 4; the two sizes take turns."""
    small, large = (image_of(arguments.folder, arguments.size // share) for share in (4, 2))
    ratios, times = [], []
    for _ in range(3):
        first, second = (stream(arguments.folder, NANO, path, 4 * 10**9)["seconds"] for path in (small, large))
        ratios.append(second / first)
        times.append((first, second))
    say(
        f"{arguments.size // 4} to {arguments.size // 2} px: {statistics.median(ratios):.2f} times the time, of {times}"
    )


def before(arguments: argparse.Namespace) -> None:
    """Compares passes in memory with passes of the other checkout; the two take turns."""
    if arguments.before is None:
        sys.exit("the case `before` needs --before DIR: the `src` folder of the other checkout")
    for size, rounds in ((224, 25), (2048, 9), (4096, 3)):
        ours, theirs = InMemory(NANO, size), InMemory(NANO, size, arguments.before)
        pairs = [(ours.seconds(), theirs.seconds()) for _ in range(rounds)]
        ratio = statistics.median(a / b for a, b in pairs)
        say(f"{NANO} in memory at {size} px: {ratio:.2f} times the time of the other checkout, median of {rounds}")
        ours.close()
        theirs.close()


def picture(arguments: argparse.Namespace) -> None:
    """Draws the picture of the page."""
    import tifffile

    from xcit.explain import class_attention

    path = arguments.folder / "garments.tif"
    tifffile.imwrite(path, texture(2048), tile=(256, 256), compression="zstd", photometric="rgb")
    (maps,) = class_attention(path, full_size=True, memory="150MB")
    maps.draw(Path(__file__).resolve().parent.parent / "docs" / "any-resolution.png")


CASES = {
    "gigapixel": gigapixel,
    "exact": exact,
    "photograph": photograph,
    "growth": growth,
    "picture": picture,
    "before": before,
}


def run_cases(cases: Mapping[str, Callable[[argparse.Namespace], None]], arguments: argparse.Namespace) -> None:
    """Prints the machine, and runs the requested cases; if none is requested, runs all cases that can run."""
    arguments.folder.mkdir(parents=True, exist_ok=True)
    import torch

    say(f"{processor()}, {torch.get_num_threads()} threads; torch {torch.__version__}; load {os.getloadavg()[0]:.1f}")
    for case in arguments.cases or [name for name in cases if name != "before" or arguments.before]:
        began = time.perf_counter()
        cases[case](arguments)
        say(f"({case}: {time.perf_counter() - began:.0f} s, load {os.getloadavg()[0]:.1f})")


def say(line: str) -> None:
    print(line, flush=True)


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("cases", nargs="*", metavar="CASE", choices=[*CASES, []], help=", ".join(CASES))
    parser.add_argument("--size", type=int, default=32768, help="side of the image in pixels, a multiple of 512")
    parser.add_argument("--exact-size", type=int, default=8192, help="side in pixels for the case `exact`")
    parser.add_argument(
        "--memory", type=float, nargs="+", default=[4, 1], help="memory bounds of the case `gigapixel`, in GB"
    )
    parser.add_argument("--before", type=Path, help="`src` folder of another checkout")
    parser.add_argument(
        "--folder", type=Path, default=Path("any-resolution"), help="folder for images and scratch files"
    )
    parser.add_argument("--child", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child:
        say(json.dumps(child(json.loads(arguments.child))))
        return
    run_cases(CASES, arguments)


if __name__ == "__main__":
    main()
