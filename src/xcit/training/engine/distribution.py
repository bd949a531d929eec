"""The processes of a run: their devices, precision, shared model and communication.

A run has one process, or the processes that torchrun started. torch copies (DDP) or shards (FSDP2) the model.
"""

import inspect
import os
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, Literal, Protocol, runtime_checkable

import torch
from torch import Tensor, distributed, nn
from torch.nn.parallel import DistributedDataParallel

from xcit.errors import XCiTError
from xcit.training.engine.batch_norm import average_statistics, synchronise
from xcit.training.engine.config import RunConfig
from xcit.training.engine.task import Layout, divide

_CLIP_EPS = 1e-6
"""A number that is added to a norm before a division by the norm, as in torch's own clipping."""


@runtime_checkable
class _Checkpointing(Protocol):
    """A model that can recompute its activations in the backward pass. The method has the same name as in timm."""

    def set_grad_checkpointing(self, enable: bool) -> None: ...


class Processes:
    """This process of a run, and its communication with the other processes.

    Attributes:
        device: the device on which this process computes.
        layout: the division of a global batch among the processes.
    """

    def __init__(self, run: RunConfig, device: torch.device) -> None:
        """Connects this process to the other processes, if torchrun started several.

        Raises:
            XCiTError: if the processes can't connect, the batch can't be divided among them, or settings of the
                run contradict each other.
        """
        if run.dtype == "float16" and device.type != "cuda":
            raise XCiTError(f"run.dtype float16 needs a GPU, not {device}: use bfloat16")
        if run.dtype == "float16" and run.parallel == "fsdp2":
            raise XCiTError("run.dtype float16 can't be combined with run.parallel fsdp2: use bfloat16")
        world_size = num_started_processes()
        if world_size > 1:
            if device.type != "cpu":
                device = torch.device(device.type, int(os.environ.get("LOCAL_RANK", "0")))
            if not distributed.is_initialized():
                _join(device, world_size)
        if device.type == "cuda" and device.index is not None:
            torch.cuda.set_device(device)
        self._run = run
        self.device = device
        self.scaler = torch.amp.GradScaler(device.type, enabled=run.dtype == "float16")
        """The gradient scaler. It scales the loss if the dtype is float16; otherwise it does nothing."""
        self.layout: Layout = divide(
            run.batch_size,
            max_device_batch=run.max_device_batch,
            rank=distributed.get_rank() if world_size > 1 else 0,
            world_size=world_size,
        )

    @property
    def is_main(self) -> bool:
        """Whether this is the main process. Only the main process writes files and prints."""
        return self.layout.rank == 0

    @property
    def is_sharded(self) -> bool:
        """Whether the model is sharded, so that each process stores only a part of every weight."""
        return self._run.parallel == "fsdp2" and self.layout.world_size > 1

    def prepare_model(self, model: nn.Module) -> nn.Module:
        """Moves a model to this process's device, and sets up synchronised batch norms and gradient checkpointing.

        Each of the two is set up only if it is turned on in the settings of the run. Call this method before
        `share_model`.

        Raises:
            XCiTError: if the run uses gradient checkpointing, and the model does not support it.
        """
        if self._run.sync_batch_norm and self.layout.world_size > 1:
            model = synchronise(model, self.device)
        if self._run.grad_checkpointing:
            if not isinstance(model, _Checkpointing):
                raise XCiTError(f"run.grad_checkpointing: {type(model).__name__} has no set_grad_checkpointing")
            model.set_grad_checkpointing(True)
        return model.to(self.device)

    def share_model(self, model: nn.Module) -> nn.Module:
        """Shares a model among the processes, and returns the module to call in training.

        With "ddp" and several processes, this module is a wrapper that synchronises the gradients of the copies. In all
        other cases it is the model itself. With "fsdp2", the model is sharded in place, and its parameters keep their
        order and names. Before the call, the weights must be the same in all processes.
        """
        if self._run.compile:
            model.compile()
        if self.is_sharded:
            return self.shard(model)
        if self.layout.world_size == 1:
            return model
        devices = None if self.device.type == "cpu" else [self.device]
        # DDP must not copy batch-norm statistics from the first process before each step: `after_step` averages them.
        if "forward_sync_buffers" in inspect.signature(DistributedDataParallel).parameters:  # from torch 2.13 on
            return DistributedDataParallel(model, device_ids=devices, forward_sync_buffers=False)
        return DistributedDataParallel(model, device_ids=devices, broadcast_buffers=False)

    def shard(self, model: nn.Module) -> nn.Module:
        """Shards a model in place with FSDP2. Each block in a ModuleList is gathered separately."""
        from torch.distributed.device_mesh import init_device_mesh
        from torch.distributed.fsdp import fully_shard

        mesh = init_device_mesh(self.device.type, (self.layout.world_size,))
        lists = [module for module in model.modules() if isinstance(module, nn.ModuleList)]
        for blocks in reversed(lists):  # inner modules must be sharded first
            for block in blocks:
                if not isinstance(block, nn.ModuleList):  # a ModuleList is never called
                    fully_shard(block, mesh=mesh)
        fully_shard(model, mesh=mesh)
        return model

    @contextmanager
    def accumulating(self, model: nn.Module, *, last: bool) -> Iterator[None]:
        """Returns a context for the forward and backward pass of one part of a batch (see `Layout`).

        Gradients are synchronised among the processes only in the last part of each process.
        """
        if self.is_sharded:
            model.set_requires_gradient_sync(last)  # type: ignore[operator]
        waiting: AbstractContextManager[Any] = nullcontext()
        if not last and isinstance(model, DistributedDataParallel):
            waiting = model.no_sync()
        with waiting:
            yield

    def autocast(self) -> AbstractContextManager[Any]:
        """Returns a context in which the forward pass computes in the run's precision."""
        dtype = self._run.dtype
        return torch.autocast(self.device.type, getattr(torch, dtype), enabled=dtype != "float32")

    def backward(self, loss: Tensor) -> None:
        """Runs the backward pass. If the dtype is float16, the loss is scaled first."""
        self.scaler.scale(loss).backward()

    def clip_gradients(self, model: nn.Module, max_norm: float, mode: Literal["all", "each"]) -> None:
        """Scales gradients down to a norm of at most `max_norm`.

        Mode "all" limits the norm of all gradients together. Mode "each" limits the norm of each parameter's gradient.
        """
        if mode == "all":
            nn.utils.clip_grad_norm_(model.parameters(), max_norm)
            return
        for parameter in model.parameters():
            if parameter.grad is not None:
                norm = _gathered(parameter.grad.norm())
                parameter.grad.mul_((max_norm / (norm + _CLIP_EPS)).clamp(max=1))

    def step(self, optimizer: torch.optim.Optimizer) -> None:
        """Makes an optimiser step. If the dtype is float16 and a gradient overflowed, the step is skipped."""
        self.scaler.step(optimizer)
        self.scaler.update()

    def after_step(self, model: nn.Module) -> None:
        """Averages the statistics of batch norms over the processes, if `sync_batch_norm` is off."""
        if self.layout.world_size > 1 and not self._run.sync_batch_norm:
            average_statistics(model, self.reduce, self.layout.world_size)

    def reduce(self, tensor: Tensor) -> Tensor:
        """Returns the sum of a tensor over all processes. Every process gets the same sum."""
        total = tensor.clone()
        if self.layout.world_size > 1:
            distributed.all_reduce(total)
        return total

    def gather(self, lines: list[str]) -> list[str]:
        """Returns the `lines` that all processes passed, in the order of the processes."""
        if self.layout.world_size == 1:
            return lines
        gathered: list[list[str]] = [[]] * self.layout.world_size
        distributed.all_gather_object(gathered, lines)
        return [line for of_one in gathered for line in of_one]

    def close(self) -> None:
        """Leaves the process group, if there are several processes."""
        if self.layout.world_size > 1:
            distributed.destroy_process_group()


def _join(device: torch.device, world_size: int) -> None:
    try:
        distributed.init_process_group(distributed.get_default_backend_for_device(device))
    except (ValueError, distributed.DistError) as error:
        raise XCiTError(
            f"WORLD_SIZE is {world_size}, but the processes can't connect to each other "
            f"({str(error).splitlines()[0]}): start them with torchrun"
        ) from error


def num_started_processes() -> int:
    """Returns the number of processes that torchrun started for this run, or 1 if torchrun was not used.

    Raises:
        XCiTError: if the environment variable WORLD_SIZE is not a number.
    """
    count = os.environ.get("WORLD_SIZE", "1")
    if not count.isdecimal():
        raise XCiTError(f"WORLD_SIZE is {count!r}, but must be the number of processes: start them with torchrun")
    return int(count)


def whole(value: Any) -> Any:
    """Returns a state dict in which every sharded tensor is gathered. All processes must call this function."""
    return _map_tensors(value, _gathered)


def sharded_like(value: Any, parameter: Tensor) -> Any:
    """Shards a whole tensor in the same way as a sharded parameter of the same shape.

    If the parameter is not sharded, or if `value` is not a tensor of the same shape, `value` is returned unchanged.
    """
    from torch.distributed.tensor import DTensor, distribute_tensor

    if isinstance(parameter, DTensor) and isinstance(value, Tensor) and value.shape == parameter.shape:
        return distribute_tensor(value.to(parameter.device), parameter.device_mesh, parameter.placements)
    return value


def _map_tensors(value: Any, function: Callable[[Tensor], Tensor]) -> Any:
    if isinstance(value, Tensor):
        return function(value)
    if isinstance(value, dict):
        return {key: _map_tensors(part, function) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(_map_tensors(part, function) for part in value)
    return value


def _gathered(tensor: Tensor) -> Tensor:
    full: Tensor = tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor
    return full
