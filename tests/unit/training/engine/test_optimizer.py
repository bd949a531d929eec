"""Tests parameter groups (weight decay, learning rate, frozen parameters), and their schedules."""

import math
from dataclasses import replace
from typing import Any, Literal

import pytest
import torch
from torch import nn

from xcit.errors import XCiTError
from xcit.models import XCiT, XCiTConfig
from xcit.training.engine.config import OptimizerConfig, ScheduleConfig
from xcit.training.engine.optimizer import WeightDecaySchedule, build_optimizer, cosine
from xcit.training.engine.schedule import build_schedule

DEPTH = 11
"""Number of blocks: so many that a sort by name would wrongly put block 10 after block 1."""

NUM_LAYERS = 1 + DEPTH + 2 + 1
DECAY = 0.5


@pytest.fixture
def model() -> XCiT:
    torch.manual_seed(0)
    return XCiT(XCiTConfig(patch_size=4, embed_dim=8, depth=DEPTH, num_heads=2, num_classes=3))


def layer_of(name: str) -> int:
    """Returns the layer of a parameter, 0..NUM_LAYERS-1, by a rule that is independent of the tested code."""
    if name.startswith(("stem.", "position.")) or name == "cls_token":
        return 0
    if name.startswith("blocks."):
        return 1 + int(name.split(".")[1])
    if name.startswith("cls_blocks."):
        return 1 + DEPTH + int(name.split(".")[1])
    return NUM_LAYERS - 2 if name.startswith("norm.") else NUM_LAYERS - 1


def group_of(optimizer: torch.optim.Optimizer, model: nn.Module) -> dict[str, dict[str, object]]:
    """Returns the group of each parameter by the parameter's name; parameters without a group are left out."""
    groups = {id(parameter): group for group in optimizer.param_groups for parameter in group["params"]}
    return {name: groups[id(parameter)] for name, parameter in model.named_parameters() if id(parameter) in groups}


@pytest.mark.parametrize("layer_decay", [1.0, DECAY])
def test_biases_and_all_of_one_dimension_are_not_decayed(model: XCiT, layer_decay: float) -> None:
    optimizer = build_optimizer(model, OptimizerConfig(weight_decay=0.05, layer_decay=layer_decay))
    groups = group_of(optimizer, model)
    assert set(groups) == {name for name, _ in model.named_parameters()}
    for name, parameter in model.named_parameters():
        assert groups[name]["weight_decay"] == (0.05 if parameter.ndim > 1 else 0.0), name


@pytest.mark.parametrize("layer_decay", [1.0, DECAY])
@pytest.mark.parametrize("undecayed", ["vectors", "vectors_and_tokens"])
def test_the_class_token_is_decayed_by_one_rule_and_not_by_the_other(
    model: XCiT, undecayed: Literal["vectors", "vectors_and_tokens"], layer_decay: float
) -> None:
    """mmpretrain and DINO apply weight decay to the class token; the authors' recipe for ImageNet does not.

    All three apply weight decay to XCA's temperatures.
    """
    config = OptimizerConfig(weight_decay=0.05, layer_decay=layer_decay, undecayed=undecayed)
    groups = group_of(build_optimizer(model, config), model)
    assert set(groups) == {name for name, _ in model.named_parameters()}
    exempt = {name for name, group in groups.items() if group["weight_decay"] == 0}
    vectors = {name for name, parameter in model.named_parameters() if parameter.ndim == 1}
    assert exempt == vectors | ({"cls_token"} if undecayed == "vectors_and_tokens" else set())
    assert {"position.projection.weight", "blocks.0.xca.temperature"} <= set(groups) - exempt


def test_a_model_without_a_class_token_has_none_to_leave_out() -> None:
    model = XCiT(XCiTConfig(patch_size=4, embed_dim=8, depth=1, cls_depth=0, global_pool="avg", num_heads=2))
    sizes = [
        [len(group["params"]) for group in build_optimizer(model, OptimizerConfig(undecayed=rule)).param_groups]
        for rule in ("vectors", "vectors_and_tokens")
    ]
    assert sizes[0] == sizes[1]


def test_a_model_that_names_no_tokens_is_refused() -> None:
    with pytest.raises(
        XCiTError, match=r"but a Linear has no method no_weight_decay, .* set optimizer\.undecayed to vectors"
    ):
        build_optimizer(nn.Linear(2, 2), OptimizerConfig(undecayed="vectors_and_tokens"))


def test_without_layer_decay_all_learn_alike(model: XCiT) -> None:
    groups = build_optimizer(model, OptimizerConfig(lr=0.1)).param_groups
    assert len(groups) == 2
    assert all(group["lr"] == 0.1 and "lr_scale" not in group for group in groups)


def test_each_layer_away_from_the_head_learns_more_slowly(model: XCiT) -> None:
    groups = group_of(build_optimizer(model, OptimizerConfig(layer_decay=DECAY)), model)
    for name, group in groups.items():
        assert group["lr_scale"] == DECAY ** (NUM_LAYERS - 1 - layer_of(name)), name


def test_the_schedule_scales_each_group_from_the_first_step_on(model: XCiT) -> None:
    optimizer = build_optimizer(model, OptimizerConfig(lr=0.1, layer_decay=DECAY))
    schedule = build_schedule(
        optimizer, ScheduleConfig(epochs=4, warmup_epochs=1, warmup_lr=1e-3, min_lr=1e-4), steps_per_epoch=5
    )
    for num_done, lr in ((0, 1e-3), (1, 1e-3 + (0.1 - 1e-3) / 5), (5, 0.1), (20, 1e-4)):
        schedule.step_update(num_done)
        for name, group in group_of(optimizer, model).items():
            expected = lr * DECAY ** (NUM_LAYERS - 1 - layer_of(name))
            assert group["lr"] == pytest.approx(expected, rel=1e-9), (num_done, name)


def test_weights_move_by_their_own_learning_rate(model: XCiT) -> None:
    optimizer = build_optimizer(model, OptimizerConfig(lr=1e-3, weight_decay=0.0, layer_decay=DECAY))
    build_schedule(optimizer, ScheduleConfig(warmup_epochs=0), steps_per_epoch=5).step_update(0)
    before = {name: parameter.detach().double() for name, parameter in model.named_parameters()}
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    for name, parameter in model.named_parameters():
        # AdamW's first step has the size of the learning rate, independent of the gradient.
        moved = (before[name] - parameter.double()).abs().mean().item()
        assert moved == pytest.approx(1e-3 * DECAY ** (NUM_LAYERS - 1 - layer_of(name)), rel=0.05), name


def test_by_epoch_the_learning_rate_stands_still_for_an_epoch(model: XCiT) -> None:
    config = ScheduleConfig(epochs=4, warmup_epochs=1, warmup_lr=0.0, min_lr=0.0)
    optimizers = [build_optimizer(model, OptimizerConfig(lr=0.1)) for _ in range(2)]
    by_step, by_epoch = (
        build_schedule(optimizer, replace(config, by_epoch=by_epoch), steps_per_epoch=5)
        for optimizer, by_epoch in zip(optimizers, (False, True), strict=True)
    )
    for num_done in range(21):
        by_epoch.step_update(num_done)
        by_step.step_update(num_done // 5 * 5)
        assert optimizers[1].param_groups[0]["lr"] == optimizers[0].param_groups[0]["lr"]
    assert optimizers[1].param_groups[0]["lr"] == 0


@pytest.mark.parametrize("layer_decay", [1.0, DECAY])
def test_sgd_has_the_same_groups(model: XCiT, layer_decay: float) -> None:
    config = OptimizerConfig(weight_decay=0.05, layer_decay=layer_decay)
    adamw, sgd = (build_optimizer(model, replace(config, kind=kind)) for kind in ("adamw", "sgd"))
    assert isinstance(sgd, torch.optim.SGD)
    assert [group["momentum"] for group in sgd.param_groups] == [0.9] * len(adamw.param_groups)
    for one, other in zip(adamw.param_groups, sgd.param_groups, strict=True):
        assert one["weight_decay"] == other["weight_decay"]
        assert one.get("lr_scale") == other.get("lr_scale")
        assert all(a is b for a, b in zip(one["params"], other["params"], strict=True))


@pytest.mark.parametrize("layer_decay", [1.0, DECAY])
def test_what_is_frozen_is_left_out(model: XCiT, layer_decay: float) -> None:
    model.stem.requires_grad_(False)
    model.blocks[0].requires_grad_(False)
    groups = group_of(build_optimizer(model, OptimizerConfig(layer_decay=layer_decay)), model)
    trained = {name for name, _ in model.named_parameters() if not name.startswith(("stem.", "blocks.0."))}
    assert set(groups) == trained
    if layer_decay < 1:  # other layers keep their numbers
        assert groups["blocks.1.xca.qkv.weight"]["lr_scale"] == DECAY ** (NUM_LAYERS - 3)


def test_nothing_to_train_is_an_error(model: XCiT) -> None:
    with pytest.raises(XCiTError, match="every parameter is frozen: there is nothing left to train"):
        build_optimizer(model.requires_grad_(False), OptimizerConfig())


def test_layers_of_an_unknown_model_can_t_be_told_apart() -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    assert len(build_optimizer(model, OptimizerConfig()).param_groups) == 2
    with pytest.raises(XCiTError, match=r"layer_decay is 0\.5, but a Sequential has no method group_matcher"):
        build_optimizer(model, OptimizerConfig(layer_decay=0.5))


@pytest.mark.parametrize("cls_depth", [0, 1])
def test_the_head_is_last_for_other_depths_of_class_attention(cls_depth: int) -> None:
    model = XCiT(
        XCiTConfig(
            patch_size=4,
            embed_dim=8,
            depth=2,
            num_heads=2,
            cls_depth=cls_depth,
            num_classes=3,
            global_pool="cls" if cls_depth else "avg",
        )
    )
    groups = group_of(build_optimizer(model, OptimizerConfig(layer_decay=DECAY)), model)
    assert groups["head.weight"]["lr_scale"] == 1
    assert groups["stem.0.conv.weight"]["lr_scale"] == DECAY ** (3 + cls_depth)


def test_half_a_cosine() -> None:
    assert (cosine(2.0, 5.0, 0.0), cosine(2.0, 5.0, 1.0)) == (2.0, 5.0)
    assert cosine(2.0, 5.0, 0.5) == pytest.approx(3.5)


@pytest.mark.parametrize("layer_decay", [1.0, DECAY])
def test_weight_decay_moves_by_a_cosine_where_there_is_any(model: XCiT, layer_decay: float) -> None:
    config = OptimizerConfig(weight_decay=0.04, final_weight_decay=0.4, layer_decay=layer_decay)
    optimizer = build_optimizer(model, config)
    num_steps = 20
    schedule = WeightDecaySchedule(optimizer, 0.4, num_steps)
    for step in range(num_steps):
        schedule.step_update(step)
        expected = 0.4 + 0.5 * (0.04 - 0.4) * (1 + math.cos(math.pi * step / num_steps))
        for name, group in group_of(optimizer, model).items():
            decay = expected if model.get_parameter(name).ndim > 1 else 0.0
            assert group["weight_decay"] == pytest.approx(decay, abs=1e-12), (step, name)


def test_weight_decay_stays_without_an_end_for_it(model: XCiT) -> None:
    optimizer = build_optimizer(model, OptimizerConfig(weight_decay=0.04))
    WeightDecaySchedule(optimizer, None, num_steps=20).step_update(19)
    assert {group["weight_decay"] for group in optimizer.param_groups} == {0.0, 0.04}


def test_learning_rate_is_linear_then_a_cosine(model: XCiT) -> None:
    optimizer = build_optimizer(model, OptimizerConfig(lr=1e-3))
    config = ScheduleConfig(epochs=10, warmup_epochs=2, warmup_lr=0.0, min_lr=1e-6)
    schedule = build_schedule(optimizer, config, steps_per_epoch=7)
    for step in range(70):
        schedule.step_update(step)
        if step < 14:
            expected = 1e-3 * step / 14
        else:
            expected = 1e-6 + 0.5 * (1e-3 - 1e-6) * (1 + math.cos(math.pi * (step - 14) / (70 - 14)))
        assert [group["lr"] for group in optimizer.param_groups] == pytest.approx([expected] * 2, rel=1e-9)


def test_an_end_of_the_weight_decay_needs_a_beginning() -> None:
    with pytest.raises(XCiTError, match=r"weight_decay is 0\.0, but must be above 0 if final_weight_decay is set"):
        OptimizerConfig(weight_decay=0.0, final_weight_decay=0.4)
    with pytest.raises(XCiTError, match=r"final_weight_decay is -1\.0, but must be 0 or more"):
        OptimizerConfig(final_weight_decay=-1.0)


@pytest.mark.parametrize("layer_decay", [1.0, DECAY])
def test_a_straight_line_under_its_warm_up(model: XCiT, layer_decay: float) -> None:
    """mmseg's schedule by iteration t: poly of power 1; for t < T, multiplied by 1 - (1 - t / T) * (1 - ratio)."""
    optimizer = build_optimizer(model, OptimizerConfig(lr=6e-5, layer_decay=layer_decay))
    ratio, num_warm, num_steps = 1e-6, 15, 160
    config = ScheduleConfig(kind="linear", epochs=8, warmup_steps=num_warm, warmup_lr=6e-5 * ratio, min_lr=0.0)
    schedule = build_schedule(optimizer, config, steps_per_epoch=20)
    for step in range(num_steps):
        schedule.step_update(step)
        expected = 6e-5 * (1 - step / num_steps)
        if step < num_warm:
            expected *= 1 - (1 - step / num_warm) * (1 - ratio)
        assert max(group["lr"] for group in optimizer.param_groups) == pytest.approx(expected, rel=1e-9)
        lowest = DECAY ** (NUM_LAYERS - 1) if layer_decay < 1 else 1.0
        assert min(group["lr"] for group in optimizer.param_groups) == pytest.approx(expected * lowest, rel=1e-9)


def test_milestones_under_their_warm_up(model: XCiT) -> None:
    """mmdet's schedule: multiplied by 0.1 at each milestone, and by the warm-up factor of the test above."""
    optimizer = build_optimizer(model, OptimizerConfig(lr=1e-4))
    config = ScheduleConfig(
        kind="milestones", epochs=6, milestones=(3, 5), decay=0.1, warmup_steps=8, warmup_lr=1e-7, min_lr=0.0
    )
    schedule = build_schedule(optimizer, config, steps_per_epoch=5)
    for step in range(30):
        schedule.step_update(step)
        expected = 1e-4 * (1.0 if step < 15 else 0.1 if step < 25 else 0.01)
        if step < 8:
            expected *= 1 - (1 - step / 8) * (1 - 1e-3)
        assert optimizer.param_groups[0]["lr"] == pytest.approx(expected, rel=1e-9), step


def test_a_cosine_with_its_warm_up_in_steps(model: XCiT) -> None:
    rates: list[Any] = []
    for config in (
        ScheduleConfig(epochs=4, warmup_epochs=1),
        ScheduleConfig(epochs=4, warmup_epochs=3, warmup_steps=5),
    ):
        optimizer = build_optimizer(model, OptimizerConfig())
        schedule = build_schedule(optimizer, config, steps_per_epoch=5)
        rates.append([])
        for step in range(20):
            schedule.step_update(step)
            rates[-1].append(optimizer.param_groups[0]["lr"])
    assert rates[0] == rates[1]


def test_layer_norms_alone_are_not_decayed(model: XCiT) -> None:
    model.stem.requires_grad_(False)
    groups = group_of(build_optimizer(model, OptimizerConfig(undecayed="layer_norms", weight_decay=0.01)), model)
    assert set(groups) == {name for name, _ in model.named_parameters() if not name.startswith("stem.")}
    for name, group in groups.items():
        is_layer_norm = "norm" in name and ".lpi." not in name
        assert group["weight_decay"] == (0.0 if is_layer_norm else 0.01), name


def test_impossible_schedules() -> None:
    with pytest.raises(XCiTError, match="milestones is \\(\\), but must be given only for kind milestones"):
        ScheduleConfig(kind="milestones")
    with pytest.raises(XCiTError, match="must be given only for kind milestones"):
        ScheduleConfig(milestones=(3,))
    with pytest.raises(XCiTError, match="in rising order"):
        ScheduleConfig(kind="milestones", milestones=(5, 3))
    with pytest.raises(XCiTError, match=r"layer_decay is 0\.5, but must be 1 with undecayed layer_norms"):
        OptimizerConfig(layer_decay=0.5, undecayed="layer_norms")
