"""Fine-tunes the packaged model on a folder with other classes, then classifies new images of these classes.

    python examples/transfer.py FOLDER

The images are scikit-learn's handwritten digits of 8 x 8 pixels: 1,347 for training and 450 for validation. The script
takes a few minutes on one processor core. It prints the two commands that it runs, as a user would type them.
"""

import shlex
import subprocess
import sys
from pathlib import Path

import numpy as np
from PIL import Image
from sklearn.datasets import load_digits

NAMES = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")


def draw_folders(root: Path) -> None:
    """Writes images in one folder per class, as a user would store images; every fourth image is for validation."""
    digits = load_digits()
    for index, (pixels, label) in enumerate(zip(digits.images, digits.target, strict=True)):
        folder = root / ("val" if index % 4 == 0 else "train") / NAMES[label]
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray((pixels * 255 / 16).astype(np.uint8)).save(folder / f"{index:04d}.png")


def run(*words: str) -> None:
    print(f"\n$ xcit {shlex.join(words)}", flush=True)
    subprocess.run([sys.executable, "-m", "xcit", *words], check=True)


def transfer(root: Path) -> None:
    data, out = root / "digits", root / "run"
    draw_folders(data)
    run(
        *("train", "xcit-pico-fashion-mnist", "--data", str(data), "--out", str(out), "--holdout", "0"),
        *("--initialize.weights", "xcit-pico-fashion-mnist", "--model.num_classes", "0"),
        *("--schedule.epochs", "8", "--optimizer.lr", "1e-3", "--optimizer.layer_decay", "0.85"),
        *("--augmentation.flip", "0", "--run.batch_size", "32", "--run.ema_decay", "0", "--run.evaluate_every", "4"),
    )
    images = [str(next((data / "val" / name).iterdir())) for name in ("three", "eight")]
    run("predict", *images, "--model", str(out / "model.safetensors"), "--topk", "2")


if __name__ == "__main__":
    transfer(Path(sys.argv[1]))
