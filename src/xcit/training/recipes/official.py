"""The authors' recipes for ImageNet-1k (arXiv 2106.09681, and their code of July 2021), without and with a teacher."""

from dataclasses import replace

from xcit.data.loader import AugmentationConfig
from xcit.images.preprocess import published_preprocessing
from xcit.training.engine.config import OptimizerConfig, RunConfig, ScheduleConfig
from xcit.training.tasks.classification import ClassificationConfig
from xcit.training.tasks.distillation import DistillationConfig
from xcit.zoo.architectures import ARCHITECTURES

DEIT_TEACHER = "timm/regnety_160.deit_in1k"
"""The RegNetY-16GF that was DeiT's teacher (82.9% top-1 at 224 pixels). XCiT's authors used the same teacher."""

DROP_PATH_RATES = {
    "nano-12": 0.0,
    "tiny-12": 0.0,
    "tiny-24": 0.05,
    "small-12": 0.05,
    "small-24": 0.1,
    "medium-24": 0.15,
    "large-24": 0.2,
}
"""The rate of stochastic depth for each model size, the same in all XCA blocks. For the sources, see `official`."""


def official(architecture: str) -> ClassificationConfig:
    """The authors' schedule: 400 epochs with global batch size 1024 (at most 128 images per forward pass).

    The command is `xcit train xcit-small-12-p16_official_in1k --data IMAGENET`. The result is a moving average of the
    weights. The expected top-1 is the authors' figure for the 224-pixel checkpoint without distillation, which
    `xcit info` prints. The authors measured this figure with the preprocessing of this recipe.

    The rates of stochastic depth have three sources. The rate 0.05 for small-12 is from the authors' published command.
    The rates 0 for tiny-12, 0.1 for small-24 and 0.15 for medium-24 are from the authors' detection and segmentation
    configs. The rates 0 for nano-12, 0.05 for tiny-24 and 0.2 for large-24 are our choice, similar to the other rates.

    The authors set colour jitter to 0.4, but timm ignores colour jitter when RandAugment is on. Therefore this recipe
    has no colour jitter.

    This recipe differs from the authors' training in four points. The learning rate changes at every step instead of
    every epoch. The cosine begins after the warm-up, and not at the start of the run. The averaged weights are
    evaluated, while the authors evaluated the trained weights. The precision is float32, while the authors used
    float16 (`--run.dtype float16`).

    Patch-stem surgery copies the stem of a trained model, and freezes it. The authors needed patch-stem surgery to keep
    the training of their largest models stable. Patch-stem surgery needs a trained model of the same width
    and patch size. The command is
    `xcit train xcit-large-24-p8_official_in1k --initialize.stem xcit-large-24-p8_3rdparty_in1k`.
    """
    return ClassificationConfig(
        name=f"xcit-{architecture}_official_in1k",
        model=replace(ARCHITECTURES[architecture], drop_path_rate=drop_path_rate(architecture)),
        preprocessing=published_preprocessing("official", 224),
        augmentation=AugmentationConfig(
            rand_augment="rand-m9-mstd0.5-inc1",
            random_erasing=0.25,
            mixup=0.8,
            cutmix=1.0,
            switch=0.5,
            label_smoothing=0.1,
            num_repeats=3,
        ),
        optimizer=OptimizerConfig(lr=5e-4 * 1024 / 512, weight_decay=0.05, undecayed="vectors_and_tokens"),
        schedule=ScheduleConfig(epochs=400, warmup_epochs=5, warmup_lr=1e-6, min_lr=1e-5),
        run=RunConfig(batch_size=1024, max_device_batch=128, ema_decay=0.99996, sync_batch_norm=True),
    )


def official_distilled(architecture: str) -> ClassificationConfig:
    """The authors' schedule with a teacher: half of the loss is hard distillation from DeiT's RegNetY-16GF.

    The command is `xcit train xcit-small-12-p16_official-dist_in1k --data IMAGENET`. timm downloads the teacher, which
    is a file of about 330 MB. The expected top-1 is the authors' figure for the distilled 224-pixel checkpoint, which
    `xcit info` prints. Another teacher is possible, as in `--distillation.teacher xcit-large-24-p8_3rdparty_in1k`. With
    `--distillation.kind soft`, the model learns the teacher's probabilities instead of the teacher's top-1 class.
    """
    return replace(
        official(architecture),
        name=f"xcit-{architecture}_official-dist_in1k",
        distillation=DistillationConfig(teacher=DEIT_TEACHER, kind="hard", alpha=0.5),
    )


def drop_path_rate(architecture: str) -> float:
    """Returns the rate of stochastic depth for an architecture with a name like `<size>-<depth>-p<patch>`."""
    return DROP_PATH_RATES[architecture.rpartition("-")[0]]
