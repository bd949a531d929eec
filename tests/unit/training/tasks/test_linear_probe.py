"""Tests the task of the linear probe: compares its numbers with plain PyTorch, and tests the exported classifier."""

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from xcit.config import load_yaml, save_yaml
from xcit.data.classification import open_labelled_images
from xcit.errors import XCiTError
from xcit.models import ModelInfo, XCiT
from xcit.training.engine.config import RunConfig
from xcit.training.engine.optimizer import build_optimizer
from xcit.training.engine.schedule import build_schedule
from xcit.training.engine.task import ALONE, Layout
from xcit.training.tasks.labelled_features import LabelledFeatures, pooled_feature
from xcit.training.tasks.linear_probe import LinearConfig, LinearHeads, LinearTask
from xcit.zoo import load_file

CLASSES = ("blue", "green", "red")


def features(count: int, seed: int, dim: int = 16) -> LabelledFeatures:
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(0, len(CLASSES), (count,), generator=generator)
    noise = torch.randn(count, dim, generator=generator)
    return LabelledFeatures(features=noise + F.one_hot(labels, dim), labels=labels, unreadable=("a line",))


def make_config(**changes: Any) -> LinearConfig:
    fields: Any = {"name": "tiny", "backbone": "0" * 64, "data": "d", "augmented": False, "epochs": 3}
    return LinearConfig(**(fields | {"run": RunConfig(batch_size=8, num_workers=0)} | changes))


def make_task(tiny: XCiT, config: LinearConfig, train: Any = None, layout: Layout | None = None) -> LinearTask:
    assert tiny.info is not None
    info = ModelInfo(name="tiny-linear", preprocessing=tiny.info.preprocessing, class_names=CLASSES)
    return LinearTask(
        config,
        tiny,
        tiny.fuse(),
        info,
        train or features(50, 0),
        features(30, 1),
        layout or Layout(batch_size=config.run.batch_size),
    )


def learn(task: LinearTask) -> list[dict[str, Tensor]]:
    """Makes the training steps as the engine does; returns the losses of each step."""
    optimizer = build_optimizer(task.model, task.config.optimizer)
    schedule = build_schedule(optimizer, task.config.schedule, task.num_steps)
    losses, done = [], 0
    for epoch in range(task.config.epochs):
        for batch in task.train_batches(epoch):
            schedule.step_update(done)
            optimizer.zero_grad()
            losses.append(task.loss(task.model, batch))
            losses[-1]["loss"].backward()
            optimizer.step()
            done += 1
    return losses


def test_the_published_protocol_is_the_default() -> None:
    config = LinearConfig(name="n", backbone="b", data="d", run=RunConfig(batch_size=1024))
    assert (config.augmented, config.lrs, config.epochs) == (True, (0.001,), 100)
    optimizer = build_optimizer(torch.nn.Linear(2, 2), config.optimizer)
    assert isinstance(optimizer, torch.optim.SGD)
    for group in optimizer.param_groups:
        assert group["lr"] == pytest.approx(0.001 * 1024 / 256)
        assert (group["momentum"], group["weight_decay"], group["nesterov"], group["dampening"]) == (0.9, 0, False, 0)


def test_the_learning_rate_is_torch_s_cosine_an_epoch() -> None:
    config = make_config(epochs=10, lrs=(0.3,))
    ours = build_optimizer(torch.nn.Linear(2, 2), config.optimizer)
    theirs = torch.optim.SGD(torch.nn.Linear(2, 2).parameters(), lr=0.3 * 8 / 256)
    schedule = build_schedule(ours, config.schedule, steps_per_epoch=7)
    reference = torch.optim.lr_scheduler.CosineAnnealingLR(theirs, 10, eta_min=0)
    for epoch in range(10):
        for step in (0, 1, 6):
            schedule.step_update(7 * epoch + step)
            assert ours.param_groups[0]["lr"] == pytest.approx(theirs.param_groups[0]["lr"], rel=1e-9)
        theirs.step()
        reference.step()


def test_heads_start_alike_from_the_published_normal() -> None:
    torch.manual_seed(0)
    heads = LinearHeads(2, 400, 50)
    assert heads.weight.std().item() == pytest.approx(0.01, rel=0.02)
    assert torch.equal(heads.weight[0], heads.weight[1])
    assert not heads.bias.any()
    x = torch.randn(4, 400)
    torch.testing.assert_close(heads(x)[:, 1], F.linear(x, heads.weight[1], heads.bias[1]))


def test_learns_as_plain_torch_does(tiny: XCiT) -> None:
    config = make_config(lrs=(3.0,))
    task = make_task(tiny, config)
    linear = torch.nn.Linear(16, 3)
    linear.load_state_dict({name: tensor[0].clone() for name, tensor in task.model.state_dict().items()})
    optimizer = torch.optim.SGD(linear.parameters(), lr=3.0 * 8 / 256, momentum=0.9)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 3)
    for epoch in range(3):
        for x, y in task.train_batches(epoch):
            optimizer.zero_grad()
            F.cross_entropy(linear(x), y).backward()
            optimizer.step()
        schedule.step()
    losses = learn(task)
    assert len(losses) == 3 * (50 // 8)
    assert losses[-1].keys() == {"loss"}
    torch.testing.assert_close(task.model.state_dict()["weight"][0], linear.weight.detach(), rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(task.model.state_dict()["bias"][0], linear.bias.detach(), rtol=1e-4, atol=1e-6)


def test_each_of_several_learning_rates_learns_as_alone(tiny: XCiT) -> None:
    lrs = (0.1, 3.0, 0.7)
    together = make_task(tiny, make_config(lrs=lrs))
    losses = learn(together)
    for head, lr in enumerate(lrs):
        alone = make_task(tiny, make_config(lrs=(lr,)))
        own = learn(alone)
        for name in ("weight", "bias"):
            torch.testing.assert_close(
                together.model.state_dict()[name][head], alone.model.state_dict()[name][0], rtol=1e-4, atol=1e-6
            )
        assert losses[-1][f"loss_lr{lr:g}"].item() == pytest.approx(own[-1]["loss"].item(), rel=1e-4)


def test_batches_are_divided_and_each_image_comes_once(tiny: XCiT) -> None:
    config = make_config()
    whole = make_task(tiny, config)
    parts = [
        make_task(tiny, config, layout=Layout(batch_size=8, rank=rank, world_size=2, accumulation=2)) for rank in (0, 1)
    ]
    assert [part.unreadable for part in parts] == [["a line"], []]  # only one process counts it
    assert whole.num_inputs == 51
    for epoch in (0, 1):
        batches = list(whole.train_batches(epoch))
        assert len(batches) == whole.num_steps == 6
        rows = torch.cat([x for x, _ in batches])
        assert len(rows.unique(dim=0)) == 48
        first, second = (list(part.train_batches(epoch)) for part in parts)
        for step, (x, y) in enumerate(batches):
            turns = [first[2 * step], second[2 * step], first[2 * step + 1], second[2 * step + 1]]
            for place, (part, labels) in enumerate(turns):
                assert torch.equal(part, x[place::4])
                assert torch.equal(labels, y[place::4])
        resumed = list(whole.train_batches(epoch, first_step=4))
        assert all(torch.equal(one[0], other[0]) for one, other in zip(resumed, batches[4:], strict=True))
    epochs = [next(whole.train_batches(epoch))[0] for epoch in (0, 1)]
    assert not torch.equal(*epochs)


def test_figures_are_counts_over_all_processes(tiny: XCiT) -> None:
    task = make_task(tiny, make_config(lrs=(0.1, 9.0)))
    learn(task)
    figures = task.evaluate(task.model)
    val = features(30, 1)
    with torch.inference_mode():
        logits = task.model(val.features)
    for head, accuracy in enumerate(task.accuracies):
        right = logits[:, head].argmax(dim=1) == val.labels
        assert accuracy.num_right1 == int(right.sum())
        assert accuracy.top1 == pytest.approx(100 * accuracy.num_right1 / 30)
        assert (accuracy.num_right5, accuracy.top5) == (30, 100)  # all of three classes
        assert accuracy.loss == pytest.approx(F.cross_entropy(logits[:, head], val.labels).item(), rel=1e-5)
    best = max(task.accuracies, key=lambda accuracy: accuracy.num_right1)
    assert task.best == best
    assert figures == {
        "top1": best.top1,
        "top5": best.top5,
        "val_loss": best.loss,
        "top1_lr0.1": task.accuracies[0].top1,
        "top1_lr9": task.accuracies[1].top1,
    }

    sums: list[Tensor] = []

    def note(own: Tensor) -> Tensor:
        sums.append(own)
        return own

    for rank in range(2):
        task.evaluate(task.model, Layout(batch_size=8, rank=rank, world_size=2), note)
    task.evaluate(task.model, ALONE, lambda _: sums[0] + sums[1])
    assert [accuracy.num_right1 for accuracy in task.accuracies] == [round(n) for n in (sums[0] + sums[1])[0].tolist()]
    assert task.best == best


def test_augmented_batches_are_images_of_a_model_that_stays_as_it_is(tiny: XCiT, splits: Path) -> None:
    before = {name: tensor.clone() for name, tensor in tiny.state_dict().items()}
    images = open_labelled_images(str(splits), "train")
    task = make_task(tiny, make_config(augmented=True, data=str(splits), lrs=(9.0,)), images)
    assert (task.num_steps, task.num_inputs, task.unreadable) == (2, 18, [])
    batch = next(task.train_batches(0))
    assert batch[0].shape == (8, 3, 16, 16)
    with torch.inference_mode():
        logits = task.model(pooled_feature(tiny, batch[0]))[:, 0]
    assert task.loss(task.model, batch)["loss"].item() == pytest.approx(F.cross_entropy(logits, batch[1]).item())
    losses = learn(task)
    assert losses[-1]["loss"] < losses[0]["loss"]
    assert all(torch.equal(tensor, before[name]) for name, tensor in tiny.state_dict().items())
    assert all(parameter.grad is None for parameter in tiny.parameters())


def test_exports_the_whole_classifier_with_the_best_head(tiny: XCiT, tmp_path: Path) -> None:
    tiny.reset_classifier(7)  # the head of another classifier, which the probe replaces
    task = make_task(tiny, make_config(lrs=(1e-6, 9.0)))
    learn(task)
    task.evaluate(task.model)
    assert task.best.lr == 9.0
    task.export(task.model, tmp_path / "model.safetensors")
    model = load_file(tmp_path / "model.safetensors")
    assert model.info == task.info
    images = torch.rand(2, 3, 16, 16)
    with torch.inference_mode():
        expected = task.model(pooled_feature(tiny, images))[:, 1]
        torch.testing.assert_close(model(images), expected)


def test_a_config_is_a_file(tmp_path: Path) -> None:
    config = make_config(lrs=(0.1, 1e-5))
    save_yaml(config, tmp_path / "config.yaml")
    assert load_yaml(LinearConfig, tmp_path / "config.yaml") == config


@pytest.mark.parametrize(
    ("lrs", "message"),
    [
        ((), "learning rates are missing, must all be above 0"),
        ((0.1, 0.0), "learning rates are 0.1, 0.0, must all be above 0"),
        ((float("inf"),), "learning rates are inf, must all be above 0"),
        ((0.1, 0.1), "learning rates are 0.1, 0.1, must all be different"),
    ],
)
def test_learning_rates_that_are_none(lrs: tuple[float, ...], message: str) -> None:
    with pytest.raises(XCiTError) as caught:
        make_config(lrs=lrs)
    assert str(caught.value) == message
