"""What is measured and how: times, peaks of memory, and the limits of the machine."""

import contextlib
import multiprocessing
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from allformers.benchmark.contenders import OURS, Setting
from allformers.speed.linear import pack_weight
from allformers.speed.onednn import onednn

Jobs = dict[str, Callable[[], float]]
"""What each contender does, and how long it then says that it took."""


class Limits(NamedTuple):
    """What the machine can do at best.

    Attributes:
        read: bytes a second, summing up numbers that no cache holds.
        multiply: floating-point operations a second, of the fastest kernel for a linear layer on 512 rows.
    """

    read: float
    multiply: float


class Measurement(NamedTuple):
    """What is to be measured in one row.

    Attributes:
        jobs: for each contender, what it does; `FLOOR` is none, but the least that they could take.
        unit: of what a job returns.
        flops: floating-point operations that it takes; 0 if that sets no limit.
        nbytes: bytes of memory that have to be read at least, likewise.
        fixed: a floor that does not depend on the machine.
        folder: of the files that the jobs read; `run` removes it when all is measured.
    """

    jobs: Jobs
    unit: str = "ms"
    flops: float = 0
    nbytes: float = 0
    fixed: float | None = None
    folder: tempfile.TemporaryDirectory[str] | None = None

    def floor(self, limits: Limits | None) -> float | None:
        """The least that a job can take on a machine with these limits, if that is known."""
        if self.fixed is not None or limits is None or not (self.flops or self.nbytes):
            return self.fixed
        return max(self.flops / limits.multiply, self.nbytes / limits.read) * 1e3


class Row(NamedTuple):
    """One row of the result.

    Attributes:
        name: what was done.
        unit: ms (for decoding, of one token of every sequence), µs or MiB.
        measured: for each contender, of each round.
        floor: the least that it could be.
    """

    name: str
    unit: str
    measured: dict[str, list[float]]
    floor: float | None = None

    def median(self, contender: str) -> float:
        """What a contender took, the median over rounds."""
        return statistics.median(self.measured[contender])

    def spread(self, contender: str) -> float:
        """Half of how far the rounds lie apart, in parts of the median."""
        times = self.measured[contender]
        return (max(times) - min(times)) / 2 / self.median(contender)

    def ratio(self, contender: str = OURS) -> float:
        """How many times as much as one of ours the most frugal peer takes, the median over rounds; above 1, we win."""
        peers = [times for name, times in self.measured.items() if not name.startswith(OURS)]
        ratios = [min(others) / ours for ours, *others in zip(self.measured[contender], *peers, strict=True)]
        return statistics.median(ratios)

    @property
    def best(self) -> str:
        """Which of ours takes least."""
        return min((name for name in self.measured if name.startswith(OURS)), key=self.median)


def limits(setting: Setting = Setting(), rounds: int = 5) -> Limits:  # noqa: B008  (immutable)
    """Measure what the machine can do at best, now and on as many threads as everybody has."""
    dtype = getattr(torch, setting.dtype)
    numbers = torch.ones(2**27, device=setting.device)
    x = torch.randn(512, 768).to(setting.device, dtype)
    weights = [torch.randn(3072, 768).to(setting.device, dtype) for _ in range(8)]
    kernels: list[Callable[[], object]] = [lambda: [F.linear(x, weight) for weight in weights]]
    packed = [pack_weight(weight) for weight in weights]
    if all(one is not None for one in packed):
        kernels.append(lambda: [onednn(x, one) for one in packed if one is not None])

    def best(job: Callable[[], object]) -> float:
        return min(timed(setting, job) for _ in range(rounds + 1)) / 1e3

    with torch.inference_mode():
        flops = 2 * x.numel() * 3072 * len(weights)
        return Limits(numbers.nbytes / best(numbers.sum), flops / min(best(kernel) for kernel in kernels))


def flops_of(model: Any, given: Tensor) -> float:
    """The floating-point operations of one forward pass."""
    with torch.inference_mode(), FlopCounterMode(display=False) as counter:
        model(given)
    return counter.get_total_flops()


def weights_read(model: Any) -> float:
    """Bytes of all weights that a step multiplies by: what is only looked up does not count; 0 if a router chooses."""
    if "experts" in model.config.axes:
        return 0
    looked_up = {id(part.weight) for part in model.modules() if isinstance(part, torch.nn.Embedding)}
    multiplied = {id(part.weight) for part in model.modules() if isinstance(part, torch.nn.Linear)}
    return sum(one.nbytes for one in model.parameters() if id(one) in multiplied or id(one) not in looked_up)


def _now(setting: Setting) -> float:
    """The time, in milliseconds, when the device has done what it was asked to."""
    if setting.device.startswith("cuda"):
        torch.cuda.synchronize(setting.device)
    return time.perf_counter() * 1e3


def timed(setting: Setting, job: Callable[..., object], *given: object) -> float:
    """How long something takes, in milliseconds."""
    start = _now(setting)
    job(*given)
    return _now(setting) - start


class Clock:
    """A streamer, as the reference calls what it hands each new token to, that only notes when it comes."""

    def __init__(self) -> None:
        self.times: list[float] = []

    def put(self, token: object) -> None:
        """Note when a token comes."""
        self.times.append(time.perf_counter() * 1e3)

    def end(self) -> None:
        """Take note that there are no more: nothing to do."""


def alone(function: Callable[..., float], *given: Any) -> float:
    """What a function returns in a process that does nothing else."""
    spawn = multiprocessing.get_context("spawn")
    threads = (torch.get_num_threads(),)
    with ProcessPoolExecutor(1, mp_context=spawn, initializer=torch.set_num_threads, initargs=threads) as alone:
        return alone.submit(function, *given).result()


def peak(setting: Setting) -> float:
    """The most memory, in MiB, that this process has taken; on a GPU, of the GPU's."""
    if setting.device.startswith("cuda"):
        return torch.cuda.max_memory_allocated(setting.device) / 2**20
    status = Path("/proc/self/status")
    if status.exists():  # Linux; its getrusage would count what the process was before it became this one
        line = next(line for line in status.read_text(encoding="utf-8").splitlines() if line.startswith("VmHWM"))
        return int(line.split()[1]) / 2**10
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**20 if sys.platform == "darwin" else 2**10)


def growth(setting: Setting, job: Callable[[], object]) -> float:
    """The memory, in MiB, that something takes beside what this process holds; an earlier peak would hide it."""
    if setting.device.startswith("cuda"):
        torch.cuda.reset_peak_memory_stats(setting.device)
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
    before = peak(setting)
    job()
    return peak(setting) - before
