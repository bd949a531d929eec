"""Shows the main features without network access: the packaged model on packaged images, and on photographs.

`make demo` runs this script. The two photographs come with scikit-learn.
"""

import sys
from pathlib import Path

import sklearn.datasets
import torch

import xcit
from xcit.cli.predict import packaged_images


def classify_packaged_images() -> bool:
    """Prints the predicted class of each packaged image, and whether it is the class in the file's name."""
    paths = packaged_images()
    print("The packaged model, trained on Fashion-MNIST, on images of its test split:\n")
    print(f"  {'file':18s} {'class':14s} {'score':>6s}")
    num_right = 0
    for path, prediction in zip(paths, xcit.predict(paths), strict=True):
        best = prediction.classes[0]
        right = best.name.lower().replace("/", "-").replace(" ", "-") == path.stem
        num_right += right
        print(f"  {path.name:18s} {best.name:14s} {best.score:6.1%}  {'right' if right else 'WRONG'}")
    print(f"\n  {num_right} of {len(paths)} right")
    return num_right == len(paths)


def encode_photographs() -> None:
    """Shows that images can have any size, and the shapes of the features."""
    folder = Path(sklearn.datasets.__file__).parent / "images"
    photographs = [folder / "china.jpg", folder / "flower.jpg"]
    print("\nTwo photographs, scaled for the packaged model; each gives one feature vector:\n")
    for features in xcit.extract_features(photographs):
        (vector,) = features.layers.values()
        print(f"  {Path(features.source).name:12s} {vector.shape[0]} numbers, the first {vector[0]:+.3f}")
    print("\nThe same photographs at full size (no multiple of the patch size), in a nano model with random weights")
    print("(pretrained=True would download the published weights):\n")
    model = xcit.get_model("xcit-nano-12-p16")
    for path in photographs:
        image = torch.tensor(sklearn.datasets.load_sample_image(path.name)).permute(2, 0, 1)[None] / 255
        with torch.inference_mode():
            (feature_map,) = model.extract_feat(image, out_type="featmap")
        print(f"  {path.name:12s} {tuple(image.shape)} -> feature map {tuple(feature_map.shape)}")


if __name__ == "__main__":
    all_right = classify_packaged_images()
    encode_photographs()
    sys.exit(0 if all_right else 1)
