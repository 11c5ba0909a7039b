"""Measurements: times, peak memory, the machine's peak rates, and the results of a benchmark."""

import contextlib
import multiprocessing
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple, Self

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from allformers.benchmark.contenders import OURS, Settings
from allformers.speed.linear import pack_weight
from allformers.speed.onednn import onednn

Jobs = dict[str, Callable[[], float]]
"""A function for each contender, which does the work once and returns the time or the memory that it took."""


class Peak(NamedTuple):
    """Peak rates of the machine.

    Attributes:
        bandwidth: bytes of memory read a second, in a sum of numbers that no cache holds.
        flops: floating-point operations a second, of the fastest kernel for a linear layer on 512 rows.
    """

    bandwidth: float
    flops: float


class Measurement(NamedTuple):
    """The jobs of one row of the benchmark, and the work that they do.

    Attributes:
        jobs: for each contender; one named `ROOFLINE` is no contender, but measures the roofline.
        unit: of the numbers that a job returns.
        flops: floating-point operations of a job; 0 if they set no roofline.
        nbytes: bytes of memory that have to be read at least; 0 likewise.
        fixed: a roofline that does not depend on the machine.
        folder: of the files that the jobs read; `run` removes it after the measurement.
    """

    jobs: Jobs
    unit: str = "ms"
    flops: float = 0
    nbytes: float = 0
    fixed: float | None = None
    folder: tempfile.TemporaryDirectory[str] | None = None

    def roofline(self, peak: Peak | None) -> float | None:
        """The least that a job can take at these peak rates, or what is `fixed`; None if neither is known."""
        if self.fixed is not None or peak is None or not (self.flops or self.nbytes):
            return self.fixed
        return max(self.flops / peak.flops, self.nbytes / peak.bandwidth) * 1e3


class Result(NamedTuple):
    """The result of one row of the benchmark.

    Attributes:
        name: of the row.
        unit: ms (for decoding, of one token of every sequence), µs or MiB.
        measured: the times, or the memory, of each contender in each round.
        roofline: the least that is possible at the machine's peak rates; for calls, the time of a recorded pass, which
            is no bound; None if neither is known.
    """

    name: str
    unit: str
    measured: dict[str, list[float]]
    roofline: float | None = None

    @classmethod
    def from_record(cls, name: str, fields: dict[str, Any]) -> Self:
        """Read a row of a record, a file that `allformers bench --json` wrote.

        Raises:
            ValueError: the record is an older one, in which the roofline has another name.
        """
        if "roofline" not in fields:
            raise ValueError(
                f"the record's row {name!r} has no roofline; older records call it floor: rename it, or measure again"
            )
        return cls(name, fields["unit"], fields["measured"], fields["roofline"])

    def to_record(self) -> dict[str, Any]:
        """The fields of the row in a record."""
        return {"unit": self.unit, "roofline": self.roofline, "measured": self.measured, "ratio": self.ratio()}

    def median(self, contender: str) -> float:
        """The median of a contender's rounds."""
        return statistics.median(self.measured[contender])

    def spread(self, contender: str) -> float:
        """Half the range of a contender's rounds, relative to their median."""
        times = self.measured[contender]
        return (max(times) - min(times)) / 2 / self.median(contender)

    def ratio(self, contender: str = OURS) -> float:
        """Speed-up over the fastest peer: peer time / our time, median over rounds; likewise for memory."""
        peers = [times for name, times in self.measured.items() if not name.startswith(OURS)]
        ratios = [min(others) / ours for ours, *others in zip(self.measured[contender], *peers, strict=True)]
        return statistics.median(ratios)

    @property
    def best(self) -> str:
        """The fastest of our contenders, or the one with the least memory."""
        return min((name for name in self.measured if name.startswith(OURS)), key=self.median)


def peak(settings: Settings = Settings(), rounds: int = 5) -> Peak:  # noqa: B008  (immutable)
    """Measure the peak rates of the machine, with as many threads as the contenders have."""
    dtype = getattr(torch, settings.dtype)
    numbers = torch.ones(2**27, device=settings.device)
    x = torch.randn(512, 768).to(settings.device, dtype)
    weights = [torch.randn(3072, 768).to(settings.device, dtype) for _ in range(8)]
    kernels: list[Callable[[], object]] = [lambda: [F.linear(x, weight) for weight in weights]]
    packed = [pack_weight(weight) for weight in weights]
    if all(one is not None for one in packed):
        kernels.append(lambda: [onednn(x, one) for one in packed if one is not None])

    def best(job: Callable[[], object]) -> float:
        return min(timed(settings, job) for _ in range(rounds + 1)) / 1e3

    with torch.inference_mode():
        flops = 2 * x.numel() * 3072 * len(weights)
        return Peak(numbers.nbytes / best(numbers.sum), flops / min(best(kernel) for kernel in kernels))


def flops_of(model: Any, inputs: Tensor) -> float:
    """The floating-point operations of one forward pass."""
    with torch.inference_mode(), FlopCounterMode(display=False) as counter:
        model(inputs)
    return counter.get_total_flops()


def weight_bytes_read(model: Any) -> float:
    """Bytes of the weights that a decoding step multiplies by, so without embeddings; 0 if a router selects them."""
    if "experts" in model.config.axes:
        return 0
    looked_up = {id(part.weight) for part in model.modules() if isinstance(part, torch.nn.Embedding)}
    multiplied = {id(part.weight) for part in model.modules() if isinstance(part, torch.nn.Linear)}
    return sum(one.nbytes for one in model.parameters() if id(one) in multiplied or id(one) not in looked_up)


def _now(settings: Settings) -> float:
    """The time in milliseconds, after the device has finished its queue."""
    if settings.device.startswith("cuda"):
        torch.cuda.synchronize(settings.device)
    return time.perf_counter() * 1e3


def timed(settings: Settings, job: Callable[..., object], *args: object) -> float:
    """Call a function and return the time that it took, in milliseconds."""
    start = _now(settings)
    job(*args)
    return _now(settings) - start


class TimestampStreamer:
    """A streamer for transformers' `generate` that records the time of each new token."""

    def __init__(self) -> None:
        self.times: list[float] = []

    def put(self, token: object) -> None:
        """Record the time of a token."""
        self.times.append(time.perf_counter() * 1e3)

    def end(self) -> None:
        """Do nothing: transformers calls this after the last token."""


def in_own_process(function: Callable[..., float], *args: Any) -> float:
    """Call a function in a new process, which does nothing else, and return its result."""
    spawn = multiprocessing.get_context("spawn")
    threads = (torch.get_num_threads(),)
    with ProcessPoolExecutor(1, mp_context=spawn, initializer=torch.set_num_threads, initargs=threads) as pool:
        return pool.submit(function, *args).result()


def peak_memory(settings: Settings) -> float:
    """The peak memory of this process in MiB; on a GPU, of the GPU's memory."""
    if settings.device.startswith("cuda"):
        return torch.cuda.max_memory_allocated(settings.device) / 2**20
    status = Path("/proc/self/status")
    if status.exists():  # Linux, where ru_maxrss would include the memory from before exec
        line = next(line for line in status.read_text(encoding="utf-8").splitlines() if line.startswith("VmHWM"))
        return int(line.split()[1]) / 2**10
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**20 if sys.platform == "darwin" else 2**10)


def added_memory(settings: Settings, job: Callable[[], object]) -> float:
    """The peak memory of a job in MiB, beyond the memory that this process holds before it."""
    if settings.device.startswith("cuda"):
        torch.cuda.reset_peak_memory_stats(settings.device)
    with contextlib.suppress(OSError):  # an earlier peak would hide that of the job, so it is reset
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
    before = peak_memory(settings)
    job()
    return peak_memory(settings) - before
