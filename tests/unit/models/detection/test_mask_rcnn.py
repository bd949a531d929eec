"""Tests the whole detector: torchvision's calling convention, initial weights, training and inference."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from xcit.errors import XCiTError
from xcit.models.config import XCiTConfig
from xcit.models.detection.config import DetectorInfo, MaskRCNNConfig
from xcit.models.detection.mask_rcnn import MaskRCNN

CONFIG = MaskRCNNConfig(
    backbone=XCiTConfig(
        patch_size=8, embed_dim=32, depth=4, num_heads=2, cls_depth=0, num_classes=0, global_pool="none"
    ),
    num_classes=5,
    channels=16,
    box_features=32,
    short_side=96,
    long_side=160,
)


@pytest.fixture
def model() -> MaskRCNN:
    torch.manual_seed(0)
    built = MaskRCNN(CONFIG)
    with torch.no_grad():  # so that the model finds objects
        built.rpn.head.cls_logits.weight.mul_(20)
        built.roi_heads.box_predictor.cls_score.weight.mul_(20)
        built.roi_heads.box_predictor.bbox_pred.weight.mul_(100)
    return built.eval()


def test_detections_are_torchvisions(model: MaskRCNN) -> None:
    images = [torch.rand(3, 70, 90), torch.randint(0, 256, (3, 50, 40), dtype=torch.uint8)]
    results = model(images)
    for image, result in zip(images, results, strict=True):
        count = len(result["boxes"])
        assert count
        assert result["boxes"].shape == (count, 4)
        assert result["labels"].dtype == torch.int64 and 1 <= result["labels"].min() <= result["labels"].max() <= 5
        assert (result["scores"].diff() <= 0).all()
        assert result["masks"].shape == (count, 1, *image.shape[1:])
        assert 0 <= result["masks"].min() <= result["masks"].max() <= 1
        height, width = image.shape[1:]
        # Boxes are clipped before they are scaled back. Sizes are rounded, so boxes may exceed the image slightly.
        assert result["boxes"][:, 2].max() <= width * 1.01 and result["boxes"][:, 3].max() <= height * 1.01


def test_an_image_does_not_depend_on_the_others(model: MaskRCNN) -> None:
    one, other = torch.rand(3, 70, 90), torch.rand(3, 33, 120)
    together, alone = model([one, other])[0], model([one])[0]
    assert all(torch.equal(together[name], alone[name]) for name in alone)


def test_numbers_and_8_bits_are_one(model: MaskRCNN) -> None:
    pixels = torch.randint(0, 256, (3, 60, 60), dtype=torch.uint8)
    by_bits, by_numbers = model([pixels, pixels.float() / 255])
    assert all(torch.equal(by_bits[name], by_numbers[name]) for name in by_bits)


def test_a_higher_limit_gives_the_first_of_them(model: MaskRCNN) -> None:
    image = torch.rand(3, 70, 90)
    everything = model.detect(image)
    best = model.detect(image, min_score=everything.scores[9].item())
    assert len(everything.scores) > 9 and 0 < len(best.scores) <= 9
    assert torch.equal(best.scores, everything.scores[: len(best.scores)])


def targets() -> tuple[list[Tensor], list[dict[str, Tensor]]]:
    images = [torch.rand(3, 96, 128), torch.rand(3, 90, 100)]
    masks = torch.zeros(2, 96, 128, dtype=torch.uint8)
    masks[0, 10:50, 10:40] = masks[1, 30:60, 20:60] = 1
    full = {
        "boxes": torch.tensor([[10.0, 10, 40, 50], [20, 30, 60, 60]]),
        "labels": torch.tensor([1, 5]),
        "masks": masks,
    }
    empty = {
        "boxes": torch.zeros(0, 4),
        "labels": torch.zeros(0, dtype=torch.int64),
        "masks": torch.zeros(0, 90, 100, dtype=torch.uint8),
    }
    return images, [full, empty]


def test_training_gives_torchvisions_losses_and_reaches_every_weight(model: MaskRCNN) -> None:
    images, objects = targets()
    losses = model.train()(images, objects)
    names = {"loss_objectness", "loss_rpn_box_reg", "loss_classifier", "loss_box_reg", "loss_mask"}
    assert set(losses) == names and all(loss.ndim == 0 and loss.isfinite() for loss in losses.values())
    torch.stack(list(losses.values())).sum().backward()
    assert not [name for name, parameter in model.named_parameters() if parameter.grad is None]


def test_steps_lower_the_loss() -> None:
    torch.manual_seed(0)
    model = MaskRCNN(CONFIG).train()
    images, objects = targets()
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
    course = []
    for _ in range(12):
        loss = torch.stack(list(model(images, objects).values())).sum()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        course.append(loss.item())
    assert course[-1] < 0.7 * course[0]


def test_first_weights() -> None:
    torch.manual_seed(0)
    model = MaskRCNN(replace(CONFIG, channels=64, box_features=256))
    heads = model.roi_heads
    deviation = {
        "rpn": model.rpn.head.conv[0][0].weight.std().item(),
        "classes": heads.box_predictor.cls_score.weight.std().item(),
        "boxes": heads.box_predictor.bbox_pred.weight.std().item(),
    }
    assert deviation == pytest.approx({"rpn": 0.01, "classes": 0.01, "boxes": 0.001}, rel=0.1)
    bound = (6 / (64 * 49 + 256)) ** 0.5
    assert heads.box_head.fc6.weight.abs().max().item() == pytest.approx(bound, rel=0.01)
    bound = (6 / (64 * 9 * 2)) ** 0.5
    assert model.fpn.layer_blocks[0][0].weight.abs().max().item() == pytest.approx(bound, rel=0.01)
    assert heads.mask_head[0][0].weight.std().item() == pytest.approx((2 / (64 * 9)) ** 0.5, rel=0.1)
    biases = [module.bias for module in heads.modules() if isinstance(module, nn.Linear | nn.Conv2d)]
    assert not any(bias.any() for bias in biases if bias is not None)


def test_other_classes(model: MaskRCNN) -> None:
    model.info = DetectorInfo(name="five", class_names=tuple("abcde"), category_ids=(1, 2, 3, 4, 7))
    kept = model.roi_heads.box_head.fc6.weight.clone()
    model.reset_classifier(2)
    assert model.num_classes == model.config.num_classes == 2
    assert model.info == DetectorInfo(name="five")
    assert torch.equal(model.roi_heads.box_head.fc6.weight, kept)
    assert model.state_dict().keys() == MaskRCNN(model.config).state_dict().keys()
    found = model([torch.rand(3, 70, 90)])[0]
    assert found["labels"].max() <= 2


def test_training_needs_targets(model: MaskRCNN) -> None:
    with pytest.raises(XCiTError, match="a target for each image"):
        model.train()([torch.rand(3, 64, 64)])


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"num_classes": -1}, "num_classes is -1, but must be 0 or more"),
        ({"long_side": 50}, "long_side is 50, but must be at least short_side 96"),
        ({"anchor_scale": 0.0}, "anchor_scale is 0.0"),
        ({"mean": (0.5,)}, "mean is \\(0.5,\\), but must be 3 numbers"),
        ({"std": (0.0, 1.0, 1.0)}, "above 0"),
    ],
)
def test_impossible_configs_are_named(change: dict[str, object], words: str) -> None:
    with pytest.raises(XCiTError, match=words):
        replace(CONFIG, **change)  # type: ignore[arg-type]
