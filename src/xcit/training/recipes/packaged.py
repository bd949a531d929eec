"""The recipe of the model that this package contains."""

from xcit.data.loader import AugmentationConfig
from xcit.images.preprocess import Preprocessing
from xcit.training.engine.config import OptimizerConfig, RunConfig, ScheduleConfig
from xcit.training.tasks.classification import ClassificationConfig
from xcit.zoo.architectures import ARCHITECTURES


def pico_fashion_mnist() -> ClassificationConfig:
    """The packaged model: 0.4 M parameters on Fashion-MNIST, trained in one to two hours on two CPU cores.

    The model card states the command, the training time and the accuracy.
    """
    return ClassificationConfig(
        name="xcit-pico-fashion-mnist",
        model=ARCHITECTURES["pico-6-p4"],
        preprocessing=Preprocessing(image_size=28, resize_to=28, mean=(0.2860,), std=(0.3530,)),
        data="fashion-mnist",
        holdout=2000,
        augmentation=AugmentationConfig(crop="padded", padding=1, random_erasing=0.1, label_smoothing=0.1),
        optimizer=OptimizerConfig(lr=3e-3, weight_decay=0.05, clip_grad=1.0),
        schedule=ScheduleConfig(epochs=14, warmup_epochs=1, warmup_lr=1e-6, min_lr=1e-6),
        run=RunConfig(batch_size=128, ema_decay=0.999, num_workers=0, evaluate_every=7),
    )
