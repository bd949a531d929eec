import pytest
import torch
from torchvision.models.detection import FasterRCNN, MaskRCNN, RetinaNet
from torchvision.models.detection.anchor_utils import AnchorGenerator

import xcit
from xcit.integrations.torchvision import PyramidBackbone, pyramid_backbone


@pytest.fixture(scope="module")
def backbone() -> PyramidBackbone:
    torch.manual_seed(0)
    return pyramid_backbone("xcit-nano-12-p16", out_channels=32)


def test_maps_and_their_strides(backbone: PyramidBackbone) -> None:
    maps = backbone(torch.rand(1, 3, 64, 96))
    assert [*maps] == ["0", "1", "2", "3", "pool"] and backbone.training
    assert [tuple(image.shape) for image in maps.values()] == [
        (1, 32, 16, 24), (1, 32, 8, 12), (1, 32, 4, 6), (1, 32, 2, 3), (1, 32, 1, 2),
    ]  # fmt: skip


@pytest.mark.parametrize("kind", [FasterRCNN, MaskRCNN])
def test_torchvisions_detectors_train_and_detect(kind: type[FasterRCNN], backbone: PyramidBackbone) -> None:
    model = kind(backbone, num_classes=3, min_size=64, max_size=96)
    images = [torch.rand(3, 60, 80), torch.rand(3, 50, 90)]
    masks = torch.zeros(1, 60, 80, dtype=torch.uint8)
    masks[0, 10:40, 10:50] = 1
    target = {"boxes": torch.tensor([[10.0, 10.0, 50.0, 40.0]]), "labels": torch.tensor([1]), "masks": masks}
    losses = model(images[:1] * 2, [target, target])
    sum(losses.values()).backward()
    grad = backbone.body.xcit.blocks[0].get_parameter("xca.qkv.weight").grad
    assert grad is not None and grad.abs().max() > 0
    with torch.no_grad():
        found = model.eval()(images)
    assert all(len(one["boxes"]) == len(one["labels"]) for one in found)


def test_one_stage_too(backbone: PyramidBackbone) -> None:
    anchors = AnchorGenerator(tuple((size,) for size in (16, 32, 64, 128, 256)), ((1.0,),) * 5)
    model = RetinaNet(backbone, num_classes=3, anchor_generator=anchors, min_size=64, max_size=96).eval()
    with torch.no_grad():
        assert {*model([torch.rand(3, 60, 80)])[0]} == {"boxes", "labels", "scores"}


def test_published_weights_of_a_classifier_are_taken(tmp_path_factory: pytest.TempPathFactory) -> None:
    model = xcit.get_model("xcit-nano-12-p16")
    assert isinstance(model, xcit.XCiT)
    path = tmp_path_factory.mktemp("weights") / "nano.safetensors"
    xcit.save_model(model, path)
    backbone = pyramid_backbone("xcit-nano-12-p16", path)
    taken = backbone.body.xcit.state_dict()
    assert all(torch.equal(value, model.state_dict()[name]) for name, value in taken.items())
