"""Many processes training one model, on PyTorch's own engine.

`torchrun --nproc-per-node=N` starts the same program N times and tells each which one it is. Every process cuts its own
rows from the same batch; all that they exchange is gradients. Two ways to hold the model:

- `ddp`: each process has the whole model, and gradients are averaged (`DistributedDataParallel`).
- `fsdp`: each process keeps a slice of every weight, gradient and moment, and a block's weights are gathered only while
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
    """Which of how many processes this one is, and where it computes.

    Attributes:
        rank: this process's number, from 0.
        count: how many there are.
        device: where this one computes.
        parallel: how the model is held, "ddp" or "fsdp"; with one process it does not matter.
    """

    rank: int = 0
    count: int = 1
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    parallel: str = "ddp"

    @property
    def is_first(self) -> bool:
        """Whether this is the process that writes and speaks for all."""
        return self.rank == 0

    def spread(self, model: nn.Module) -> nn.Module:
        """Move a model to the device and, with several processes, connect it with its copies in the others.

        Every process must come with the same weights. What is returned is to be called for training; with `fsdp` the
        given model itself is changed: its parameters become slices.
        """
        if self.count == 1:
            return model.to(self.device)
        if self.parallel == "ddp":
            return nn.parallel.DistributedDataParallel(model.to(self.device))
        from torch.distributed.device_mesh import init_device_mesh
        from torch.distributed.fsdp import fully_shard

        mesh = init_device_mesh(self.device.type, (self.count,))
        for block in model.blocks:  # type: ignore[union-attr]
            fully_shard(block, mesh=mesh)
        fully_shard(model, mesh=mesh)
        return model

    def exchange_gradients(self, spread: nn.Module, now: bool) -> None:
        """Say whether the next backward pass ends an accumulation, and so has gradients averaged."""
        if isinstance(spread, nn.parallel.DistributedDataParallel):
            spread.require_backward_grad_sync = now
        elif self.count > 1:
            spread.set_requires_gradient_sync(now)  # type: ignore[operator]

    @contextlib.contextmanager
    def gathered(self, model: nn.Module) -> Iterator[None]:
        """Have the weights outside the blocks whole, for methods of the model other than calling it."""
        sharded = self.count > 1 and self.parallel == "fsdp"
        if sharded:
            model.unshard()  # type: ignore[operator]
        try:
            yield
        finally:
            if sharded:
                model.reshard()  # type: ignore[operator]

    def mean(self, value: Tensor) -> float:
        """The mean of one number over all processes; each gets it."""
        return self.sum(float(value)) / self.count

    def sum(self, value: float) -> float:
        """The sum of one number over all processes; each gets it."""
        if self.count == 1:
            return value
        total = torch.tensor(value, dtype=torch.float64)
        dist.all_reduce(total)
        return total.item()

    def gather(self, value: Any) -> list[Any]:
        """What each process has to give, in their order; each gets all of it."""
        if self.count == 1:
            return [value]
        values: list[Any] = [None] * self.count
        dist.all_gather_object(values, value)
        return values

    @contextlib.contextmanager
    def first_goes_first(self) -> Iterator[None]:
        """Run a block in the first process, then in the others; if it fails there, they do not wait for it forever."""
        failed = True
        try:
            if not self.is_first and any(self.gather(False)):
                raise SystemExit(2)  # the first one says why
            yield
            failed = False
        finally:
            if self.is_first:
                self.gather(failed)


ALONE = Processes()
"""One process on the processor."""


@contextlib.contextmanager
def join(device: torch.device, parallel: str = "ddp") -> Iterator[Processes]:
    """Meet the other processes that `torchrun` has started, and part from them at the end.

    Processes speak gloo between processors and NCCL between GPUs. Each takes the GPU with its own number.

    Raises:
        ValueError: `parallel` is neither "ddp" nor "fsdp".
    """
    if parallel not in PARALLEL:
        raise ValueError(f"parallel must be {' or '.join(PARALLEL)}, not {parallel!r}")
    count = int(os.environ.get("WORLD_SIZE", "1"))
    if count == 1:
        yield Processes(device=device)
        return
    if device.type == "cuda":
        device = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
        torch.cuda.set_device(device)
    dist.init_process_group("cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo")
    try:
        yield Processes(dist.get_rank(), count, device, parallel)
        dist.barrier()
    finally:
        gc.collect()  # a model that is still connected when its connection goes would abort the process
        dist.destroy_process_group()
