"""Recipes for DINO pre-training: one for each of the four published backbones, and a small one for Fashion-MNIST."""

from dataclasses import replace

from xcit.data.multi_crop import MultiCropConfig
from xcit.images.preprocess import Preprocessing, published_preprocessing
from xcit.models.dino import DINOHeadConfig
from xcit.training.engine.config import OptimizerConfig, RunConfig, ScheduleConfig
from xcit.training.tasks.dino import DINOConfig, TeachingConfig
from xcit.zoo.architectures import ARCHITECTURES

DINO_ARCHITECTURES = ("small-12-p16", "small-12-p8", "medium-24-p16", "medium-24-p8")
"""The architectures of the published DINO backbones."""


def dino(architecture: str) -> DINOConfig:
    """DINO on ImageNet-1k without labels: 100 epochs with global batch size 512 (at most 64 images per forward pass).

    The command is `torchrun --nproc-per-node 8 -m xcit train dino_xcit-small-12-p16_in1k --data IMAGENET`. The settings
    are the defaults of the authors' code for a node with eight GPUs. The learning rate is 5e-4 * batch size / 256.
    For the published backbones, the authors changed some settings. The changes are in files on the authors' server, but
    not in their code. The expected k-NN top-1 is unknown, because nobody has run this recipe yet. The goal is the k-NN
    top-1 of the published backbone, which `xcit info` prints.

    This recipe differs from the authors' code in two points. The warm-up reaches the full learning rate one step later.
    The precision is bfloat16, but the last matrix product of the head is in float32. The authors used float16
    (`--run.dtype float16`), but advised against float16 for patch sizes below 16.
    """
    return DINOConfig(
        name=f"dino_xcit-{architecture}_in1k",
        model=replace(ARCHITECTURES[architecture], num_classes=0, drop_path_rate=0.1),
        preprocessing=published_preprocessing("mmpretrain", 224),
        head=DINOHeadConfig(out_dim=65536, hidden_dim=2048, bottleneck_dim=256, norm_last_layer=True),
        crops=MultiCropConfig(num_local=8, local_size=96, global_scale=(0.4, 1.0), local_scale=(0.05, 0.4)),
        dino=TeachingConfig(
            student_temperature=0.1,
            teacher_temperature=0.04,
            first_teacher_temperature=0.04,
            warmup_epochs=0,
            teacher_momentum=0.996,
            center_momentum=0.9,
            freeze_last_layer=1,
        ),
        optimizer=OptimizerConfig(
            lr=5e-4 * 512 / 256, weight_decay=0.04, final_weight_decay=0.4, clip_grad=3.0, clip_mode="each"
        ),
        schedule=ScheduleConfig(epochs=100, warmup_epochs=10, warmup_lr=0.0, min_lr=1e-6),
        run=RunConfig(batch_size=512, max_device_batch=64, dtype="bfloat16", sync_batch_norm=True, num_workers=10),
    )


def dino_pico_fashion_mnist() -> DINOConfig:
    """Our own recipe: DINO on Fashion-MNIST without labels, trained in an hour on two CPU cores.

    In pilot runs of a few minutes, the mean of the patch tokens became a much better feature than the class token, and
    four wide blocks gave better results than six narrow blocks. Garments differ mostly by their outline on a black
    background. Therefore the crops show more of the image than the published crops, and are never solarized. The
    results are in docs/dino.md.
    """
    return DINOConfig(
        name="dino_xcit-pico_fashion-mnist",
        model=replace(
            ARCHITECTURES["pico-6-p4"],
            patch_size=8,
            embed_dim=128,
            num_heads=8,
            depth=4,
            cls_depth=0,
            global_pool="avg",
            num_classes=0,
        ),
        preprocessing=Preprocessing(image_size=28, resize_to=28, mean=(0.2860,), std=(0.3530,)),
        data="fashion-mnist",
        head=DINOHeadConfig(out_dim=1024, hidden_dim=256, bottleneck_dim=64),
        crops=MultiCropConfig(
            num_local=2,
            local_size=20,
            global_scale=(0.3, 1.0),
            local_scale=(0.15, 0.5),
            blur=(0.2, 0.2, 0.2),
            blur_radius=(0.1, 1.0),
            solarize=0.0,
        ),
        dino=TeachingConfig(teacher_momentum=0.98, freeze_last_layer=0),
        optimizer=OptimizerConfig(
            lr=1.5e-3, weight_decay=0.04, final_weight_decay=0.1, clip_grad=3.0, clip_mode="each"
        ),
        schedule=ScheduleConfig(epochs=6, warmup_epochs=0, warmup_steps=200, warmup_lr=0.0, min_lr=1e-6),
        run=RunConfig(batch_size=64, num_workers=1, log_every=10),
    )
