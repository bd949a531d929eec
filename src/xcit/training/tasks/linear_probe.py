"""A linear probe: linear classifiers on the features of a frozen model, each with its own learning rate."""

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from xcit.data.classification import LabelledImages
from xcit.data.loader import AugmentationConfig, TrainLoader, train_transform
from xcit.errors import XCiTError
from xcit.models import ModelInfo, XCiT
from xcit.seeding import mix_seeds
from xcit.training.engine.config import OptimizerConfig, RunConfig, ScheduleConfig
from xcit.training.engine.task import ALONE, Layout, Reduce
from xcit.training.tasks.base import TaskWithLoader, check_class_weights, class_weights_on, loader_config
from xcit.training.tasks.labelled_features import LabelledFeatures, pooled_feature
from xcit.zoo import save_model

AUGMENTATION = AugmentationConfig(interpolation="bilinear")
"""The published augmentation: torchvision's random resized crop and horizontal flip."""

LR_BATCH = 256
"""The global batch size to which the learning rates of a config refer."""

_ROWS_AT_ONCE = 1024


@dataclass(frozen=True, kw_only=True)
class LinearConfig:
    """The config of a linear probe; the defaults are those of DINO's authors (arXiv 2104.14294).

    Attributes:
        name: name of the model.
        backbone: digest of the model (see `backbone_digest`). A run can be resumed only with the same model.
        data: a folder or a known name (see `open_labelled_images`).
        class_map: file of a class map (see `read_class_map`); "" means that the names in the data are the classes.
        augmented: whether to train on random crops, as published. In this case, the features are computed again in each
            epoch. Otherwise, the training images are preprocessed as in evaluation, and their features are computed
            only once, so that the run is much shorter.
        lrs: learning rates for a global batch size of 256. One classifier is trained for each learning rate. In the
            run, each learning rate is multiplied by the run's global batch size / 256.
        epochs: number of epochs.
        class_weights: weight of each class in the loss, one number per class, as in torch's cross-entropy; if empty,
            all classes have the same weight.
        run: batch size, precision and other settings of the run.
    """

    name: str
    backbone: str
    data: str
    class_map: str = ""
    augmented: bool = True
    lrs: tuple[float, ...] = (0.001,)
    epochs: int = 100
    class_weights: tuple[float, ...] = ()
    run: RunConfig = field(default_factory=RunConfig)

    def __post_init__(self) -> None:
        if not self.lrs or not all(0 < lr < float("inf") for lr in self.lrs):
            raise XCiTError(f"learning rates are {', '.join(map(str, self.lrs)) or 'missing'}, must all be above 0")
        check_class_weights(self.class_weights, 0)
        if len(set(self.lrs)) < len(self.lrs):
            raise XCiTError(f"learning rates are {', '.join(map(str, self.lrs))}, must all be different")

    @property
    def optimizer(self) -> OptimizerConfig:
        """The optimiser: SGD with momentum and without weight decay.

        Its learning rate is the highest of `lrs`, multiplied by the run's global batch size / 256.
        """
        lr = max(self.lrs) * self.run.batch_size / LR_BATCH
        return OptimizerConfig(kind="sgd", lr=lr, momentum=0.9, weight_decay=0.0)

    @property
    def schedule(self) -> ScheduleConfig:
        """A cosine schedule down to 0. The learning rate changes once per epoch."""
        return ScheduleConfig(epochs=self.epochs, warmup_epochs=0, warmup_lr=0.0, min_lr=0.0, by_epoch=True)


@dataclass(frozen=True, kw_only=True)
class LinearAccuracy:
    """Results of the classifier that was trained with one learning rate.

    Attributes:
        lr: the learning rate, as given in the config.
        num_right1: number of images for which the class with the highest logit is right.
        num_right5: number of images for which the right class has one of the five highest logits.
        top1: `num_right1` as a percentage of the images.
        top5: `num_right5` as a percentage of the images.
        loss: mean cross-entropy.
    """

    lr: float
    num_right1: int
    num_right5: int
    top1: float
    top5: float
    loss: float


class LinearHeads(nn.Module):
    """Several linear classifiers, which start with the same random weights."""

    def __init__(self, num_heads: int, dim: int, num_classes: int) -> None:
        super().__init__()
        start = torch.empty(num_classes, dim).normal_(std=0.01)
        self.weight = nn.Parameter(start.repeat(num_heads, 1, 1))
        self.bias = nn.Parameter(torch.zeros(num_heads, num_classes))

    def forward(self, features: Tensor) -> Tensor:
        """Maps features (B, D) to the logits of all classifiers (B, num_heads, num_classes)."""
        return torch.einsum("bd,hcd->bhc", features, self.weight) + self.bias


class LinearTask(TaskWithLoader):
    """The task of a linear probe. `model` contains only the classifiers to train, and not the frozen model.

    Attributes:
        accuracies: results of the last evaluation, one for each learning rate.
    """

    watch = "top1"

    def __init__(
        self,
        config: LinearConfig,
        backbone: XCiT,
        network: XCiT,
        info: ModelInfo,
        train: LabelledImages | LabelledFeatures,
        val: LabelledFeatures,
        layout: Layout,
    ) -> None:
        """Creates the classifiers and the loader.

        Args:
            config: the config of the run.
            backbone: the frozen model, for the export.
            network: the same model, fused or in evaluation mode, on the run's device; it computes the features.
            info: classes and preprocessing of the exported classifier.
            train: the training images if `config.augmented` is true, otherwise their features.
            val: the features of the validation images.
            layout: rank of this process, and number of processes.
        """
        self.config, self.backbone, self.network, self.info, self._val = config, backbone, network, info, val
        self.accuracies: tuple[LinearAccuracy, ...] = ()
        check_class_weights(config.class_weights, len(info.class_names))
        torch.manual_seed(config.run.seed)
        self.model: nn.Module = LinearHeads(len(config.lrs), network.embed_dim, len(info.class_names))
        # In SGD without weight decay, scaling a loss has the same effect as scaling the learning rate.
        self._shares = [lr / max(config.lrs) for lr in config.lrs]
        self._loader: TrainLoader[Any] | _FeatureLoader
        if isinstance(train, LabelledFeatures):
            self._loader = _FeatureLoader(train, layout, seed=config.run.seed)
        else:
            self._loader = TrainLoader(
                train,
                train_transform(AUGMENTATION, info.preprocessing),
                loader_config(config.run, layout),
            )

    @property
    def best(self) -> LinearAccuracy:
        """The result with the highest top-1 accuracy, or the first of several results with this accuracy."""
        return max(self.accuracies, key=lambda accuracy: accuracy.num_right1)

    def train_batches(self, epoch: int, first_step: int = 0) -> Iterator[tuple[Tensor, Tensor]]:
        """Yields this process's parts of an epoch's batches: images (B, C, h, w) or features (B, D), labels (B,)."""
        return self._loader.batches(epoch, first_step)

    def loss(self, model: nn.Module, batch: Any) -> dict[str, Tensor]:
        """Returns the weighted sum of the classifiers' cross-entropies.

        The weight of a classifier is its learning rate, divided by the highest learning rate.
        """
        inputs, labels = batch
        if self.config.augmented:
            with torch.no_grad():
                inputs = pooled_feature(self.network, inputs)
        logits = model(inputs.float())
        weights = class_weights_on(labels.device, self.config.class_weights)
        losses = [F.cross_entropy(logits[:, head].float(), labels, weights) for head in range(len(self._shares))]
        total = torch.stack([loss * share for loss, share in zip(losses, self._shares, strict=True)]).sum()
        if len(losses) == 1:
            return {"loss": total}
        names = (f"loss_lr{lr:g}" for lr in self.config.lrs)
        return {"loss": total} | {name: loss.detach() for name, loss in zip(names, losses, strict=True)}

    def evaluate(
        self, model: nn.Module, layout: Layout = ALONE, reduce: Reduce = lambda tensor: tensor
    ) -> dict[str, float]:
        """Returns top-1 and top-5 accuracy (percent) and the loss of the best classifier on the validation images.

        If there are several classifiers, the method also returns the top-1 accuracy of each classifier.
        """
        features, labels = self._val.features, self._val.labels
        num_heads, num_images = len(self.config.lrs), len(labels)
        # The three rows are `num_right1`, `num_right5` and the sum of the losses.
        sums = torch.zeros(3, num_heads, dtype=torch.float64, device=features.device)
        with torch.inference_mode():
            for rows in torch.arange(layout.rank, num_images, layout.world_size).split(_ROWS_AT_ONCE):
                logits, targets = model(features[rows]).float(), labels[rows]
                right = logits.topk(min(5, logits.shape[2]), dim=2).indices == targets[:, None, None]
                sums[0] += right[:, :, 0].sum(dim=0)
                sums[1] += right.any(dim=2).sum(dim=0)
                repeated = targets[:, None].expand(-1, num_heads)
                sums[2] += F.cross_entropy(logits.transpose(1, 2), repeated, reduction="none").double().sum(dim=0)
        self.accuracies = tuple(
            LinearAccuracy(
                lr=lr,
                num_right1=round(right1),
                num_right5=round(right5),
                top1=100 * right1 / num_images,
                top5=100 * right5 / num_images,
                loss=loss / num_images,
            )
            for lr, right1, right5, loss in zip(self.config.lrs, *reduce(sums).tolist(), strict=True)
        )
        figures = {"top1": self.best.top1, "top5": self.best.top5, "val_loss": self.best.loss}
        if num_heads > 1:
            figures |= {f"top1_lr{accuracy.lr:g}": accuracy.top1 for accuracy in self.accuracies}
        return figures

    def export(self, model: nn.Module, path: Path) -> None:
        """Writes the whole classifier (backbone and best head) to one safetensors file that `xcit predict` can load."""
        head = self.accuracies.index(self.best)
        num_classes = len(self.info.class_names)
        exported = XCiT(replace(self.backbone.config, num_classes=num_classes, drop_path_rate=0.0))
        state = {name: tensor for name, tensor in self.backbone.state_dict().items() if not name.startswith("head.")}
        own = model.state_dict()
        exported.load_state_dict(state | {f"head.{name}": own[name][head] for name in ("weight", "bias")})
        exported.info = self.info
        save_model(exported, path)


class _FeatureLoader:
    """A loader of shuffled batches of features and labels, divided among the processes as in `TrainLoader`.

    Every process knows all unreadable images, so only the main process reports them.
    """

    def __init__(self, data: LabelledFeatures, layout: Layout, *, seed: int) -> None:
        self._data, self._layout, self._seed = data, layout, seed
        self.num_steps = len(data.labels) // layout.batch_size
        self.num_inputs = len(data.labels) + len(data.unreadable)
        self.unreadable = list(data.unreadable) if layout.rank == 0 else []

    def batches(self, epoch: int, first_step: int = 0) -> Iterator[tuple[Tensor, Tensor]]:
        layout, features, labels = self._layout, self._data.features, self._data.labels
        generator = torch.Generator().manual_seed(mix_seeds(self._seed, epoch))
        order = torch.randperm(len(labels), generator=generator).to(labels.device)
        for step in range(first_step, self.num_steps):
            batch = order[step * layout.batch_size : (step + 1) * layout.batch_size]
            for turn in range(layout.accumulation):
                rows = batch[layout.part(turn) :: layout.num_parts]
                yield features[rows], labels[rows]

    def close(self) -> None:
        pass  # no processes read data, so there is nothing to close
