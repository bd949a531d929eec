"""The recipes for mmpretrain's 28 published configs."""

from xcit.data.loader import AugmentationConfig
from xcit.images.preprocess import published_preprocessing
from xcit.training.engine.config import OptimizerConfig, RunConfig, ScheduleConfig
from xcit.training.tasks.classification import ClassificationConfig
from xcit.zoo.architectures import ARCHITECTURES


def published(architecture: str, image_size: int) -> ClassificationConfig:
    """Mmpretrain's schedule for ImageNet-1k: 300 epochs with global batch size 1024 (at most 128 images per pass).

    The command is `xcit train xcit-small-12-p16_8xb128_in1k --data IMAGENET`. The names of the recipes for 384 pixels
    end in `-384px`, and these recipes have no RandAugment and no random erasing. The expected top-1 is unknown, because
    mmpretrain published no result of its own training. The figures in `xcit info` come from the authors' longer
    schedule (`official`).

    RandAugment is timm's implementation, which applies two of its fifteen operations to each image. mmpretrain has its
    own implementation of these operations.
    """
    strong = image_size == 224
    return ClassificationConfig(
        name=f"xcit-{architecture}_8xb128_in1k{'' if strong else '-384px'}",
        model=ARCHITECTURES[architecture],
        preprocessing=published_preprocessing("mmpretrain", image_size),
        augmentation=AugmentationConfig(
            rand_augment="rand-m9-n2-mstd0.5-inc1" if strong else "",
            random_erasing=0.25 if strong else 0.0,
            mixup=0.8,
            cutmix=1.0,
        ),
        optimizer=OptimizerConfig(lr=1e-3, weight_decay=0.05),
        schedule=ScheduleConfig(epochs=300, warmup_epochs=20, warmup_lr=1e-6, min_lr=1e-5),
        run=RunConfig(batch_size=1024, max_device_batch=128),
    )
