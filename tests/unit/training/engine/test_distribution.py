"""Tests runs of one process; tests/integration/test_distributed.py tests runs of two processes."""

from typing import Any

import pytest
import torch
from torch import nn

from xcit.errors import XCiTError
from xcit.models import XCiT, XCiTConfig
from xcit.training.engine.batch_norm import average_statistics
from xcit.training.engine.config import RunConfig
from xcit.training.engine.distribution import Processes, whole

CPU = torch.device("cpu")


def test_one_process_is_all() -> None:
    processes = Processes(RunConfig(batch_size=12, max_device_batch=4), CPU)
    assert (processes.layout.rank, processes.layout.world_size, processes.layout.accumulation) == (0, 1, 3)
    assert processes.is_main
    assert not processes.is_sharded
    assert processes.reduce(torch.tensor([3.0])).tolist() == [3.0]
    assert processes.gather(["a"]) == ["a"]
    model = nn.Linear(2, 2)
    assert processes.share_model(processes.prepare_model(model)) is model


def test_a_second_run_in_a_process_may_have_another_precision() -> None:
    for dtype, expected in (("float32", torch.float32), ("bfloat16", torch.bfloat16), ("float32", torch.float32)):
        processes = Processes(RunConfig(dtype=dtype), CPU)  # type: ignore[arg-type]
        with processes.autocast():
            assert nn.Linear(2, 2)(torch.ones(1, 2)).dtype == expected


def test_float16_needs_a_gpu() -> None:
    with pytest.raises(XCiTError, match="float16 needs a GPU, not cpu: use bfloat16"):
        Processes(RunConfig(dtype="float16"), CPU)


def test_a_lost_process_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "x")
    with pytest.raises(XCiTError, match="WORLD_SIZE is 'x'"):
        Processes(RunConfig(), CPU)
    # The environment has only the number of processes; torchrun would also set the rank.
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.delenv("RANK", raising=False)
    with pytest.raises(XCiTError, match=r"WORLD_SIZE is 2, but .*RANK.*: start them with torchrun$"):
        Processes(RunConfig(), CPU)


def test_checkpointing_of_activations_needs_a_model_that_can() -> None:
    processes = Processes(RunConfig(grad_checkpointing=True), CPU)
    model = XCiT(XCiTConfig(patch_size=8, embed_dim=16, depth=1, num_heads=2))
    assert processes.prepare_model(model).grad_checkpointing
    with pytest.raises(XCiTError, match=r"run\.grad_checkpointing: Linear has no set_grad_checkpointing"):
        processes.prepare_model(nn.Linear(1, 1))


def test_statistics_of_batch_norms_are_averaged() -> None:
    model: Any = nn.Sequential(nn.BatchNorm2d(3), nn.Conv2d(3, 2, 1), nn.BatchNorm2d(2))
    other = [torch.randn(3), torch.rand(3), torch.randn(2), torch.rand(2)]
    own = [tensor.clone() for norm in (model[0], model[2]) for tensor in (norm.running_mean, norm.running_var)]
    average_statistics(model, lambda tensor: tensor + torch.cat(other), world_size=2)
    averaged = [tensor for norm in (model[0], model[2]) for tensor in (norm.running_mean, norm.running_var)]
    for before, added, after in zip(own, other, averaged, strict=True):
        assert torch.allclose(after, (before + added) / 2)


def test_whole_keeps_what_is_no_shard() -> None:
    state = {"a": torch.ones(2), "b": [1, {"c": (torch.zeros(1), None)}]}
    assert whole(state) == {"a": state["a"], "b": [1, {"c": (state["b"][1]["c"][0], None)}]}  # type: ignore[index]


@pytest.mark.parametrize("mode", ["all", "each"])
def test_gradients_are_clipped_together_or_tensor_by_tensor(mode: str) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 8), nn.Linear(8, 2), nn.Linear(2, 2))
    model[1].bias.requires_grad_(False)
    for factor, parameter in enumerate(model.parameters()):
        if parameter.requires_grad:
            parameter.grad = 0.2 * factor * torch.randn_like(parameter)
    model[2].bias.grad = None  # as in a frozen layer
    gradients = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    norm = torch.cat([gradient.flatten() for gradient in gradients.values()]).norm().item()
    Processes(RunConfig(), CPU).clip_gradients(model, 0.5, mode)  # type: ignore[arg-type]
    scaled = set()
    for name, parameter in model.named_parameters():
        if name not in gradients:
            assert parameter.grad is None
            continue
        own = gradients[name].norm().item() if mode == "each" else norm
        factor = min(1.0, 0.5 / (own + 1e-6))
        scaled.add(factor < 1)
        assert torch.allclose(parameter.grad, factor * gradients[name], rtol=1e-5), name
    assert scaled == ({True, False} if mode == "each" else {True})
