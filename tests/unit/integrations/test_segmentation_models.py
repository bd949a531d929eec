"""Tests our pyramid as an encoder of segmentation_models_pytorch."""

import pytest
import segmentation_models_pytorch
import torch
from torch import nn

import xcit
import xcit.integrations.timm

IMAGES = torch.rand(2, 3, 64, 96, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("patch_size", [8, 16])
@pytest.mark.parametrize("decoder", ["Unet", "UnetPlusPlus", "MAnet", "Linknet", "FPN", "UPerNet", "Segformer"])
def test_a_decoder_trains_every_layer_of_our_encoder(decoder: str, patch_size: int) -> None:
    build = getattr(segmentation_models_pytorch, decoder)
    model = build(f"tu-pyramid_xcit-nano-12-p{patch_size}", encoder_weights=None, classes=3)
    assert model.encoder.out_channels == [3, 0, 128, 128, 128, 128]
    logits = model(IMAGES)
    assert logits.shape == (2, 3, 64, 96)
    nn.functional.cross_entropy(logits, torch.zeros(2, 64, 96, dtype=torch.long)).backward()
    assert all(parameter.grad is not None for parameter in model.parameters())


def test_our_weights_in_an_encoder() -> None:
    model = segmentation_models_pytorch.Unet("tu-pyramid_xcit-pico-fashion-mnist", encoder_weights=True, in_channels=1)
    own = xcit.get_backbone("packaged", pretrained=True).state_dict()
    found = model.encoder.model.model.state_dict()
    assert found.keys() == own.keys()
    assert all(torch.equal(found[name], own[name]) for name in own)


@pytest.mark.parametrize("name", ["xcit-nano-12-p16", "xcit_nano_12_p16_224"])
def test_blocks_of_one_stride_are_refused_by_it_ours_as_timms_own(name: str) -> None:
    with pytest.raises(ValueError, match="Unsupported model downsampling pattern"):
        segmentation_models_pytorch.Unet(f"tu-{name}", encoder_weights=None)
