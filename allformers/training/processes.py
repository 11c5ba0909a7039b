"""Data-parallel training in several processes, with PyTorch's DDP and FSDP.

`torchrun --nproc-per-node=N` starts the same program N times and tells each which one it is. Every process cuts its own
rows from the same batch; all that they exchange is gradients. Two ways to hold the model:

- `ddp`: each process has the whole model, and gradients are averaged (`DistributedDataParallel`).
- `fsdp`: each process keeps a shard of every weight, gradient and moment, and a block's weights are gathered only while
  the block runs (`fully_shard`; Rajbhandari et al. 2019, "ZeRO", arXiv:1910.02054): for models that one device cannot
  hold.
"""

import contextlib
import gc
import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

PARALLEL = ("ddp", "fsdp")


@dataclass(frozen=True)
class Processes:
    """The rank of this process, the number of processes, and the device of this one.

    Attributes:
        rank: this process's number, from 0.
        world_size: the number of processes.
        device: where this one computes.
        parallel: how the model is held, "ddp" or "fsdp"; with one process it does not matter.
    """

    rank: int = 0
    world_size: int = 1
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    parallel: str = "ddp"

    @property
    def is_main_process(self) -> bool:
        """True for the process of rank 0, which writes files and prints for all."""
        return self.rank == 0

    def wrap(self, model: nn.Module) -> nn.Module:
        """Move a model to the device and, with several processes, wrap it for data parallelism.

        Every process must come with the same weights. Call the returned module in training: its backward pass averages
        gradients over the processes. With `fsdp` the given model itself is changed: its parameters become shards.
        """
        if self.world_size == 1:
            return model.to(self.device)
        if self.parallel == "ddp":
            return nn.parallel.DistributedDataParallel(model.to(self.device))
        from torch.distributed.device_mesh import init_device_mesh
        from torch.distributed.fsdp import fully_shard

        mesh = init_device_mesh(self.device.type, (self.world_size,))
        for block in model.blocks:  # type: ignore[union-attr]
            fully_shard(block, mesh=mesh)
        fully_shard(model, mesh=mesh)
        return model

    def set_gradient_sync(self, wrapped: nn.Module, enabled: bool) -> None:
        """Turn on the averaging of gradients for the next backward pass, or off while they are accumulated."""
        if isinstance(wrapped, nn.parallel.DistributedDataParallel):
            wrapped.require_backward_grad_sync = enabled
        elif self.world_size > 1:
            wrapped.set_requires_gradient_sync(enabled)  # type: ignore[operator]

    @contextlib.contextmanager
    def unsharded(self, model: nn.Module) -> Iterator[None]:
        """Unshard the weights outside the blocks, for methods of the model other than its forward pass."""
        sharded = self.world_size > 1 and self.parallel == "fsdp"
        if sharded:
            model.unshard()  # type: ignore[operator]
        try:
            yield
        finally:
            if sharded:
                model.reshard()  # type: ignore[operator]

    def mean(self, value: Tensor) -> float:
        """All-reduce one number to its mean over the processes."""
        return self.sum(float(value)) / self.world_size

    def sum(self, value: float) -> float:
        """All-reduce one number to its sum over the processes."""
        if self.world_size == 1:
            return value
        total = torch.tensor(value, dtype=torch.float64)
        dist.all_reduce(total)
        return total.item()

    def gather(self, value: Any) -> list[Any]:
        """All-gather one object of each process into a list, ordered by rank."""
        if self.world_size == 1:
            return [value]
        values: list[Any] = [None] * self.world_size
        dist.all_gather_object(values, value)
        return values

    @contextlib.contextmanager
    def main_process_first(self) -> Iterator[None]:
        """Run a block in the main process, then in the others, which exit if it has failed there, and do not wait."""
        failed = True
        try:
            if not self.is_main_process and any(self.gather(False)):
                raise SystemExit(2)  # the main process says why
            yield
            failed = False
        finally:
            if self.is_main_process:
                self.gather(failed)


SINGLE_PROCESS = Processes()
"""A single process on the CPU: the default where nothing is parallel."""


@contextlib.contextmanager
def process_group(device: torch.device, parallel: str = "ddp") -> Iterator[Processes]:
    """Initialise the process group of the processes that `torchrun` has started, and destroy it at the end.

    The backend is gloo between CPUs and NCCL between GPUs. Each process takes the GPU of its local rank.

    Raises:
        ValueError: `parallel` is neither "ddp" nor "fsdp".
    """
    if parallel not in PARALLEL:
        raise ValueError(f"parallel must be {' or '.join(PARALLEL)}, not {parallel!r}")
    world_size = int(os.environ.get("WORLD_SIZE", "1"))
    if world_size == 1:
        yield Processes(device=device)
        return
    if device.type == "cuda":
        device = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
        torch.cuda.set_device(device)
    dist.init_process_group("cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo")
    try:
        yield Processes(dist.get_rank(), world_size, device, parallel)
        dist.barrier()
    finally:
        gc.collect()  # release the model before the process group is destroyed; the process would abort otherwise
        dist.destroy_process_group()
