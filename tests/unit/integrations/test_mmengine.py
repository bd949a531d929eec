"""Tests our backbones in mmengine's registries and in its Runner."""

import runpy
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from mmengine.config import Config
from mmengine.registry import MODELS, Registry
from torch import Tensor, nn

import xcit
from xcit.errors import XCiTError
from xcit.integrations.mmengine import XCiTBackbone, XCiTPyramidBackbone

NANO = "nano-12-p16"
IMAGES = torch.rand(2, 3, 64, 96, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module", autouse=True)
def _mmengine_alone() -> Iterator[None]:
    """Hides transformers: mmengine would import it for an optimiser, and the import takes longer than these tests."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, "transformers", None)
        import mmengine.runner  # noqa: F401

        yield


def build(kind: str, **arguments: Any) -> Any:
    return MODELS.build({"type": kind, "arch": NANO, **arguments})


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Writes the file of a classifier."""
    path = tmp_path_factory.mktemp("weights") / "nano.safetensors"
    xcit.save_model(xcit.get_model(f"xcit-{NANO}"), path)
    return path


def test_a_name_is_found_from_the_registries_of_their_packages_and_is_registered_once() -> None:
    theirs = Registry("model", parent=MODELS, scope="theirs")
    for name, kind in (("XCiTBackbone", XCiTBackbone), ("XCiTPyramidBackbone", XCiTPyramidBackbone)):
        assert theirs.get(name) is kind
        assert theirs.get(f"mmengine.{name}") is kind
        assert list(MODELS.module_dict.values()).count(kind) == 1
    built = theirs.build({"type": "XCiTPyramidBackbone", "arch": NANO})
    assert isinstance(built, XCiTPyramidBackbone)


@pytest.mark.parametrize("patch_size", [8, 16])
def test_a_pyramid_is_what_their_necks_and_heads_take(patch_size: int) -> None:
    backbone = build("XCiTPyramidBackbone", arch=f"nano-12-p{patch_size}", drop_path_rate=0.1, with_cp=True)
    assert backbone.training
    assert backbone.config.drop_path_rate == 0.1
    maps = backbone(IMAGES)
    assert isinstance(maps, tuple)
    assert [tuple(features.shape) for features in maps] == [(2, 128, 64 // s, 96 // s) for s in (4, 8, 16, 32)]
    sum(features.square().sum() for features in maps).backward()
    assert all(parameter.grad is not None for parameter in backbone.parameters())


@torch.no_grad()
@pytest.mark.parametrize("by", ["pretrained", "init_cfg"])
def test_weights_of_a_file(weights: Path, by: str) -> None:
    given: Any = str(weights) if by == "pretrained" else {"type": "Pretrained", "checkpoint": str(weights)}
    own: Any = xcit.get_model(weights)
    out_indices = (2, 4, 6, 10)
    pyramid = build("XCiTPyramidBackbone", out_indices=out_indices, drop_path_rate=0.1, **{by: given}).eval()
    expected = own.forward_intermediates(IMAGES, out_indices, intermediates_only=True)
    assert torch.equal(pyramid(IMAGES)[2], expected[2])  # at the patch's own stride, the map is not resized
    classifier = build("XCiTBackbone", drop_path_rate=0.1, **{by: given}).eval()
    assert torch.equal(classifier(IMAGES)[-1], own.forward_head(own.forward_features(IMAGES), pre_logits=True))


@torch.no_grad()
def test_the_published_weights_of_a_name() -> None:
    own: Any = xcit.get_model("packaged", pretrained=True)
    images = torch.rand(2, 1, 28, 28)
    for arch in ("packaged", "pico-6-p4"):
        backbone = build("XCiTBackbone", arch=arch, pretrained=True).eval()
        assert torch.equal(own.head(backbone(images)[-1]), own(images))
    pyramid = build("XCiTPyramidBackbone", arch="packaged", pretrained=True).eval()
    assert torch.equal(pyramid(images)[-1], xcit.get_backbone("packaged", True, pyramid=True)(images)[-1])


@torch.no_grad()
@pytest.mark.parametrize(
    ("out_type", "out_indices"),
    [("cls_token", (-1,)), ("featmap", (3, 5, 13)), ("featmap", (1, -9)), ("avg_featmap", -5), ("raw", (11, 12))],
)
def test_outputs_are_those_of_extract_feat(weights: Path, out_type: Any, out_indices: int | tuple[int, ...]) -> None:
    backbone = build("XCiTBackbone", pretrained=str(weights), out_type=out_type, out_indices=out_indices).eval()
    own: Any = xcit.get_model(weights)
    expected = own.extract_feat(IMAGES, "backbone", out_type=out_type, out_indices=out_indices)
    found = backbone(IMAGES)
    assert len(found) == len(expected)
    assert all(torch.equal(one, other) for one, other in zip(found, expected, strict=True))


def test_maps_of_the_first_blocks_leave_the_others_out() -> None:
    backbone = build("XCiTBackbone", out_type="featmap", out_indices=(1, 3), in_channels=5)
    assert (backbone.xcit.config.depth, backbone.xcit.config.cls_depth) == (4, 0)
    sum(features.sum() for features in backbone(torch.rand(2, 5, 32, 32))).backward()
    assert all(parameter.grad is not None for parameter in backbone.parameters())


@pytest.mark.parametrize("kind", ["XCiTBackbone", "XCiTPyramidBackbone"])
def test_what_is_frozen_stays_so_in_training(kind: str) -> None:
    norms_held = build(kind, norm_eval=True).train()
    norms = [module for module in norms_held.xcit.modules() if isinstance(module, nn.BatchNorm2d)]
    assert norms
    assert not any(norm.training for norm in norms)
    assert norms_held.xcit.blocks[0].training
    assert all(parameter.requires_grad for parameter in norms_held.parameters())
    frozen = build(kind, frozen=True).train()
    assert not any(module.training for module in frozen.xcit.modules())
    assert not any(parameter.requires_grad for parameter in frozen.xcit.parameters())
    if kind == "XCiTPyramidBackbone":
        assert all(parameter.requires_grad for parameter in frozen.pyramid.parameters())
        assert frozen.pyramid.training


def test_the_runner_trains_from_our_weights_and_saves_what_we_read(tmp_path: Path, weights: Path) -> None:
    from mmengine.model import BaseModel
    from mmengine.runner import Runner

    class Toy(BaseModel):
        """A model with a backbone and a linear layer on all maps."""

        def __init__(self, backbone: Config) -> None:
            super().__init__()
            self.backbone = MODELS.build(backbone)
            self.head = nn.Linear(4 * 128, 10)

        def forward(self, inputs: Tensor, labels: Tensor, mode: str = "tensor") -> dict[str, Tensor]:
            pooled = [features.mean((2, 3)) for features in self.backbone(inputs)]
            return {"loss": nn.functional.cross_entropy(self.head(torch.cat(pooled, dim=1)), labels)}

    pairs = [(torch.rand(3, 32, 32), torch.tensor(index)) for index in range(4)]
    config = Config(
        {"type": "XCiTPyramidBackbone", "arch": NANO, "pretrained": str(weights), "out_indices": [2, 4, 6, 11]}
    )
    model = Toy(config)
    start = {name: tensor.clone() for name, tensor in model.backbone.state_dict().items()}
    model.init_weights()
    assert all(torch.equal(tensor, start[name]) for name, tensor in model.backbone.state_dict().items())
    runner = Runner(
        model=model,
        work_dir=str(tmp_path),
        train_dataloader={
            "batch_size": 2,
            "dataset": pairs,
            "sampler": {"type": "DefaultSampler", "shuffle": False},
            "collate_fn": {"type": "default_collate"},
        },
        train_cfg={"by_epoch": False, "max_iters": 2},
        optim_wrapper={"optimizer": {"type": "AdamW", "lr": 1e-3}},
        default_hooks={"checkpoint": {"type": "CheckpointHook", "by_epoch": False, "interval": 2}},
        log_level="ERROR",
        experiment_name=tmp_path.name,
    )
    runner.train()
    trained = model.backbone.state_dict()
    learned = [name for name, parameter in model.backbone.named_parameters() if not torch.equal(parameter, start[name])]
    assert learned == [name for name, _ in model.backbone.named_parameters()]
    again = xcit.get_backbone(f"xcit-{NANO}", tmp_path / "iter_2.pth", pyramid=True).state_dict()
    assert again.keys() == trained.keys()
    assert all(torch.equal(again[name], trained[name]) for name in trained)


@pytest.mark.parametrize(
    ("kind", "arguments", "message"),
    [
        ("XCiTBackbone", {"arch": "smal-12-p16"}, "no model is called 'smal-12-p16'; did you mean"),
        ("XCiTBackbone", {"out_indices": (3, 14)}, r"out_indices is \(3, 14\): the model has 14 blocks"),
        ("XCiTBackbone", {"out_indices": ()}, r"out_indices is \(\)"),
        ("XCiTBackbone", {"out_indices": (3, -1)}, "block 3 has no class token: the class token enters at block 12"),
        ("XCiTBackbone", {"out_type": "map"}, "out_type is 'map', but must be one of cls_token"),
        ("XCiTBackbone", {"in_channels": 5, "pretrained": True}, f"xcit-{NANO}: the weights are for 3 channels, not 5"),
        ("XCiTPyramidBackbone", {"out_indices": (3, 5)}, "out_indices must contain 4 blocks"),
        ("XCiTPyramidBackbone", {"init_cfg": {"type": "Kaiming"}}, "init_cfg is {'type': 'Kaiming'}: a backbone of"),
        (
            "XCiTPyramidBackbone",
            {"pretrained": True, "init_cfg": {"type": "Pretrained", "checkpoint": "a.pth"}},
            "two sources of weights were given: pretrained True and init_cfg",
        ),
        ("XCiTPyramidBackbone", {"pretrained": "nowhere.pth"}, "nowhere.pth"),
    ],
)
def test_a_mistake_is_one_line(kind: str, arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(XCiTError, match=message) as error:
        build(kind, **arguments)
    assert "\n" not in str(error.value)


def test_without_mmengine_one_line_names_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "mmengine.registry", None)
    with pytest.raises(XCiTError, match=r"^xcit.integrations.mmengine needs mmengine: pip install mmengine$"):
        runpy.run_path(str(Path(xcit.__file__).parent / "integrations/mmengine.py"))
