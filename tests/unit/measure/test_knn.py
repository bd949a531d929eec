"""Tests k-NN: compares it with scikit-learn, with hand-computed special cases, and on a small data set."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.neighbors import KNeighborsClassifier

from xcit.errors import XCiTError
from xcit.measure import knn
from xcit.measure.knn import evaluate_knn, knn_accuracies, place_of_class
from xcit.models import XCiT, XCiTConfig
from xcit.training.engine.task import Layout
from xcit.training.tasks.labelled_features import feature_cache, open_train_and_val
from xcit.zoo import get_model, save_model

TEMPERATURE = 0.07


def clusters(count: int, seed: int, num_classes: int = 7, dim: int = 12) -> tuple[np.ndarray, np.ndarray]:
    """Returns features of many lengths around a centre per class, with so much noise that k-NN makes many mistakes."""
    draw = np.random.default_rng(seed)
    centres = np.random.default_rng(99).normal(size=(num_classes, dim))
    labels = draw.integers(0, num_classes, count)
    features = centres[labels] + 1.5 * draw.normal(size=(count, dim))
    return (features * draw.uniform(0.1, 10, (count, 1))).astype(np.float32), labels


@pytest.fixture(autouse=True)
def _cache_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XCIT_CACHE", str(tmp_path / "cache"))


# On arrays


@pytest.mark.parametrize("temperature", [0.02, TEMPERATURE, 1.0])
def test_equals_scikit_learn_with_the_published_weights(temperature: float) -> None:
    train, labels = clusters(400, 0)
    val, targets = clusters(300, 1)
    ks = (1, 10, 20, 100, 200, 400)
    report = knn_accuracies(train, labels, val, targets, ks=ks, temperature=temperature)
    assert [accuracy.k for accuracy in report.accuracies] == list(ks)
    assert (report.num_train, report.num_val, report.temperature) == (400, 300, temperature)
    for accuracy in report.accuracies:
        theirs = KNeighborsClassifier(
            accuracy.k,
            metric="cosine",
            algorithm="brute",
            weights=lambda distances: np.exp((1 - distances) / temperature),
        ).fit(train, labels)
        shares = theirs.predict_proba(val)
        ranked = np.argsort(-shares, axis=1, kind="stable")
        right1 = int((ranked[:, 0] == targets).sum())
        right5 = int((ranked[:, : min(5, accuracy.k)] == targets[:, None]).any(axis=1).sum())
        assert (accuracy.num_right1, accuracy.num_right5) == (right1, right5)
        assert accuracy.top1 == pytest.approx(100 * right1 / 300, rel=1e-12)
        assert accuracy.top5 == pytest.approx(100 * right5 / 300, rel=1e-12)
        assert 60 < right1 < 290, "neither chance nor perfect, or nothing is compared"


def test_chunks_and_processes_count_each_image_once(monkeypatch: pytest.MonkeyPatch) -> None:
    train, labels = clusters(100, 0)
    val, targets = clusters(53, 1)
    whole = knn_accuracies(train, labels, val, targets, ks=(5, 20))
    monkeypatch.setattr(knn, "_MAX_SIMILARITIES", 700)  # seven images at a time
    assert knn_accuracies(train, labels, val, targets, ks=(5, 20)) == whole
    parts = [
        knn_accuracies(train, labels, val, targets, ks=(5, 20), layout=Layout(batch_size=3, rank=rank, world_size=3))
        for rank in range(3)
    ]
    for index, accuracy in enumerate(whole.accuracies):
        assert accuracy.num_right1 == sum(part.accuracies[index].num_right1 for part in parts)
        assert accuracy.num_right5 == sum(part.accuracies[index].num_right5 for part in parts)


def test_tensors_arrays_and_lengths_make_no_difference() -> None:
    train, labels = clusters(60, 0)
    val, targets = clusters(40, 1)
    report = knn_accuracies(train, labels, val, targets, ks=(9,))
    tensor, whole = torch.from_numpy(train.astype(np.float64)), torch.from_numpy(labels.astype(np.int32))
    assert knn_accuracies(tensor, whole, 1000 * val, targets.astype(np.uint8), ks=(9,)) == report


def test_pixels_are_features_too() -> None:
    draw = np.random.default_rng(0)
    dark, bright = (draw.integers(low, low + 20, (30, 5 * 5), dtype=np.uint8) for low in (1, 200))
    dark[:, :12] += 100  # a different pattern: normalisation would remove a difference in brightness
    pixels, labels = np.concatenate([dark, bright]), np.repeat([0, 1], 30)
    report = knn_accuracies(pixels[::2], labels[::2], pixels[1::2], labels[1::2], ks=(3,))
    assert report.best.top1 == 100


def test_of_equal_votes_the_lower_class_is_first() -> None:
    # Two neighbours with the same similarity, of the classes 2 and 1.
    train, labels = np.array([[1.0, 0.0], [1.0, 0.0]]), np.array([2, 1])
    val = np.array([[1.0, 0.0]] * 2)
    report = knn_accuracies(train, labels, val, np.array([1, 2]), ks=(2,))
    assert (report.accuracies[0].num_right1, report.accuracies[0].num_right5) == (1, 2)


def as_dinos_eval_knn(
    similarities: torch.Tensor, labels: torch.Tensor, targets: torch.Tensor, k: int, num_classes: int
) -> tuple[int, int]:
    """Returns the top-1 and top-5 counts of DINO's evaluation, which sorts the votes of all classes.

    "Top-5" means the first min(5, k) classes. DINO's sort has no fixed order for equal votes; in this function, the
    lower class is first.
    """
    best, neighbours = similarities.topk(k, dim=1)
    votes = torch.zeros(len(targets), k, num_classes).scatter_(2, labels[neighbours][:, :, None], 1)
    sums = (votes * (best / TEMPERATURE).exp()[:, :, None]).sum(dim=1)
    right = sums.sort(dim=1, descending=True, stable=True).indices == targets[:, None]
    return int(right[:, :1].sum()), int(right[:, : min(5, k)].sum())


@pytest.mark.parametrize("num_classes", [2, 3, 5, 7, 12])
@pytest.mark.parametrize("k", [1, 3, 5, 20])
def test_counts_as_dinos_evaluation_does_with_few_classes_too(num_classes: int, k: int) -> None:
    train, labels = clusters(60, 0, num_classes)
    val, targets = clusters(80, 1, num_classes)
    found = knn_accuracies(train, labels, val, targets, ks=(k,)).accuracies[0]
    one, other = (torch.nn.functional.normalize(torch.from_numpy(rows), dim=1) for rows in (val, train))
    theirs = as_dinos_eval_knn(one @ other.T, torch.from_numpy(labels), torch.from_numpy(targets), k, num_classes)
    assert (found.num_right1, found.num_right5) == theirs
    if num_classes <= min(5, k):
        assert found.num_right5 == 80


def test_classes_without_a_vote_come_last_and_top5_means_the_first_k_of_fewer() -> None:
    # With k = 1, the only neighbour has class 1. The classes 0 and 2, which have no vote, come after it.
    train, labels = np.eye(3), np.array([0, 1, 2])
    val = np.array([[0.1, 1.0, 0.0]] * 3)
    one, two, three = knn_accuracies(train, labels, val, labels, ks=(1, 2, 3)).accuracies
    assert (one.num_right1, one.num_right5) == (1, 1)
    assert (two.num_right1, two.num_right5) == (1, 2)
    assert (three.num_right1, three.num_right5) == (1, 3)


def test_a_class_that_the_training_images_lack_is_wrong() -> None:
    report = knn_accuracies(np.eye(2), np.array([0, 1]), np.eye(2), np.array([0, 5]), ks=(1, 2))
    assert [(a.num_right1, a.num_right5) for a in report.accuracies] == [(1, 1), (1, 1)]


def test_places_by_hand() -> None:
    weights = torch.tensor([[3.0, 2.0, 2.0, 1.0]]).expand(4, -1)
    labels = torch.tensor([[3, 1, 0, 1]]).expand(4, -1)  # votes: 2, 3, 0, 3
    assert place_of_class(weights, labels, torch.tensor([0, 1, 2, 3]), 4).tolist() == [2, 0, 3, 1]


def test_a_low_temperature_neither_overflows_nor_loses_the_nearest() -> None:
    train, labels = clusters(50, 0)
    val, targets = clusters(50, 1)
    nearest = knn_accuracies(train, labels, val, targets, ks=(1,)).accuracies[0]
    cold = knn_accuracies(train, labels, val, targets, ks=(50,), temperature=1e-6).accuracies[0]
    assert cold.num_right1 == nearest.num_right1


def test_by_itself_k_is_no_more_than_the_training_images() -> None:
    train, labels = clusters(30, 0)
    assert [a.k for a in knn_accuracies(train, labels, train, labels).accuracies] == [10, 20]
    with pytest.raises(XCiTError, match="there are only 9 training images: give a k of at most 9"):
        knn_accuracies(train[:9], labels[:9], train, labels)
    with pytest.raises(XCiTError, match="k is 31, but there are only 30 training images"):
        knn_accuracies(train, labels, train, labels, ks=(3, 31))
    report = knn_accuracies(train, labels, train, labels, ks=(30, 1), temperature=1e3)
    assert (report.accuracies[1].top1, report.best.k) == (100, 1)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"ks": ()}, "k is missing, but must be at least 1"),
        ({"ks": (3, 0)}, "k is 3, 0, but must be at least 1"),
        ({"temperature": 0.0}, "temperature is 0.0, but must be above 0"),
        ({"temperature": float("nan")}, "temperature is nan, but must be above 0"),
        (
            {"train_features": np.ones((3, 2, 2))},
            "training features must have the shape (images, numbers), and labels the shape (images,)",
        ),
        ({"train_features": np.ones((3, 5))}, "training features have 5 numbers, but validation features have 4"),
        (
            {"val_labels": np.zeros(2)},
            "validation features must have the shape (images, numbers), and labels the shape (images,), not (3, 4)",
        ),
        (
            {"val_features": np.ones((0, 4)), "val_labels": np.ones(0)},
            "validation features must have the shape (images, numbers)",
        ),
        ({"val_features": np.full((3, 4), np.nan)}, "the validation features contain NaN or infinity"),
        ({"train_labels": np.array([0, 1, -1])}, "training label -1 is not a class index"),
    ],
)
def test_what_makes_no_sense_is_told(changes: dict[str, Any], message: str) -> None:
    arguments = {
        "train_features": np.ones((3, 4)),
        "train_labels": np.arange(3),
        "val_features": np.ones((3, 4)),
        "val_labels": np.arange(3),
        "ks": (1,),
    }
    with pytest.raises(XCiTError) as caught:
        knn_accuracies(**(arguments | changes))  # type: ignore[arg-type]
    assert str(caught.value).startswith(message)
    assert "\n" not in str(caught.value)


# On a data set


def test_the_features_of_both_splits_are_compared(splits: Path, tiny: XCiT) -> None:
    seen: list[int] = []
    report = evaluate_knn(
        tiny, str(splits), ks=(1, 4), num_workers=0, batch_size=5, started=seen.append, report=seen.append
    )
    assert (report.num_train, report.num_val, report.unreadable) == (18, 9, ())
    assert report.preprocessing == (tiny.info.preprocessing if tiny.info else None)
    assert seen == [27, 5, 5, 5, 3, 5, 4]
    assert report.best.top1 > 60  # even random weights can distinguish three colours
    again = evaluate_knn(tiny, str(splits), ks=(4,), num_workers=0, report=seen.append)
    assert again.accuracies == report.accuracies[1:]
    assert seen[7:] == [18, 9], "taken from what was kept"


def test_a_file_is_measured_as_its_model(splits: Path, tiny: XCiT, tmp_path: Path) -> None:
    save_model(tiny, tmp_path / "tiny.safetensors")
    arguments: dict[str, Any] = {"ks": (3,), "num_workers": 0, "cache": False}
    found = evaluate_knn(tmp_path / "tiny.safetensors", str(splits), **arguments)
    assert found == evaluate_knn(tiny, str(splits), **arguments)
    assert not feature_cache().exists()


def test_unreadable_images_are_named_and_do_not_count(splits: Path, tiny: XCiT) -> None:
    paths = [splits / "train" / "blue" / "2.png", splits / "val" / "red" / "0.png"]
    for path in paths:
        path.write_text("text")
    expected = tuple(f"{path}: not an image that can be read (it looks like text)" for path in paths)
    for _ in range(2):  # computed, then cached
        report = evaluate_knn(tiny, str(splits), num_workers=0)
        assert (report.num_train, report.num_val, report.unreadable) == (17, 8, expected)


def test_a_supervised_classifier_s_head_is_left_out(splits: Path, tiny: XCiT) -> None:
    with_head = get_model_like(tiny, num_classes=5)
    expected = evaluate_knn(tiny, str(splits), ks=(4,), num_workers=0)
    seen: list[int] = []
    assert evaluate_knn(with_head, str(splits), ks=(4,), num_workers=0, report=seen.append) == expected
    assert seen == [18, 9], "the same backbone, so its features are kept already"
    assert with_head(torch.rand(1, 3, 16, 16)).shape == (1, 5)


def get_model_like(model: XCiT, num_classes: int) -> XCiT:
    other = XCiT(XCiTConfig(patch_size=8, embed_dim=16, depth=1, num_heads=2, num_classes=num_classes)).eval()
    other.load_state_dict(other.state_dict() | model.state_dict())
    other.info = model.info
    return other


def test_what_can_t_be_measured_is_told_in_one_line(splits: Path, tiny: XCiT, tmp_path: Path) -> None:
    def message(model: object, data: object, **options: Any) -> str:
        with pytest.raises(XCiTError) as caught:
            evaluate_knn(model, data, num_workers=0, **options)  # type: ignore[arg-type]
        assert "\n" not in str(caught.value)
        return str(caught.value)

    assert message(tiny, str(tmp_path / "no")).startswith(f"{tmp_path}/no: no such folder")
    (tmp_path / "empty").mkdir()
    expected = "expected train/<class>/<image> and val/<class>/<image>"
    assert message(tiny, str(tmp_path / "empty")) == f"{tmp_path}/empty has no folder val: {expected}, or a holdout"
    assert message(tiny, str(splits), dtype=torch.float64).startswith("dtype is torch.float64, but must be")
    assert message(tiny, str(splits), ks=(19,)) == "k is 19, but there are only 18 training images"
    patches: Any = get_model("packaged", pretrained=True)
    patches.reset_classifier(0, "none")
    assert message(patches, str(splits)).startswith("a model without pooling gives tokens")
    tiny.info = None
    assert message(tiny, str(splits)).startswith("the model has no preprocessing")
    (splits / "val").rename(tmp_path / "val")
    assert message(tiny, str(splits)) == f"{splits} has no folder val: {expected}, or a holdout"
    for name in ("blue", "green"):
        (tmp_path / "val" / name).rename(tmp_path / "val" / f"{name}ish")
    (tmp_path / "val").rename(splits / "val")
    assert message(tiny, str(splits)) == (
        f"{splits}: the training and the validation images have different classes: 'blueish', 'greenish' are not among "
        "the 3 training classes, 'blue', 'green', 'red'"
    )


def test_weights_that_give_no_numbers_are_told(splits: Path, tiny: XCiT) -> None:
    tiny.get_parameter("norm.weight").data[3] = torch.nan
    with pytest.raises(XCiTError, match="the model's features contain NaN or infinity"):
        evaluate_knn(tiny, str(splits), num_workers=0)
    assert not feature_cache().exists()


def test_lines_are_shown_unless_somebody_else_hears_of_them(
    splits: Path, tiny: XCiT, capsys: pytest.CaptureFixture[str]
) -> None:
    report = evaluate_knn(tiny, str(splits), ks=(1,), num_workers=0, cache=False)
    assert report.model == "tiny"
    found, watched = capsys.readouterr().err.splitlines()
    assert found.startswith("found 3 classes: ") and watched.startswith("validated on 9 images")
    lines: list[str] = []
    evaluate_knn(tiny, str(splits), ks=(1,), num_workers=0, cache=False, announce=lines.append)
    assert lines == [found, watched] and capsys.readouterr() == ("", "")


def test_a_class_map_joins_classes_of_both_splits(splits: Path, tiny: XCiT, tmp_path: Path) -> None:
    (splits / "val" / "green").rename(splits / "val" / "verde")
    (tmp_path / "map.json").write_text('{"blue": "cold", "green": "cold", "verde": "cold", "red": "warm"}')
    lines: list[str] = []
    path = tmp_path / "map.json"
    evaluate_knn(tiny, str(splits), class_map=path, ks=(1,), num_workers=0, cache=False, announce=lines.append)
    assert lines[0] == f"found 2 classes: cold, warm; 18 images in {splits / 'train'}, classes by {path}"
    with pytest.raises(XCiTError, match="a class map needs data that are given as a folder"):
        evaluate_knn(tiny, open_train_and_val(str(splits / "train"), 3), class_map=path)
