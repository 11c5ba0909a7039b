"""The loop of the benchmark: each round times every contender once, one after the other."""

import contextlib
import statistics
from collections.abc import Iterator, Sequence
from typing import Any

from allformers.benchmark.contenders import ROOFLINE, Settings, contenders
from allformers.benchmark.measure import Peak, Result, peak
from allformers.benchmark.rows import rows_for


def run(
    config: Any,
    rows: Sequence[str] = (),
    rounds: int = 5,
    settings: Settings = Settings(),  # noqa: B008  (immutable)
) -> Iterator[Result]:
    """Measure the rows whose names are or contain one of `rows`, one after the other, and yield each result.

    Without `rows`, measure all but those of scale.

    Raises:
        ImportError: transformers is not installed.
        ValueError: no row has such a name, or there are no rounds.
    """
    available = rows_for(config)
    chosen = {
        name: make
        for name, make in available.items()
        if (
            any(part == name or (part in name and part not in available) for part in rows)
            if rows
            else not name.startswith("scale")
        )
    }
    if not chosen:
        raise ValueError(f"no row is called {' or '.join(rows)}; there are: {', '.join(available)}")
    if rounds < 1:
        raise ValueError(f"rounds must be at least 1, not {rounds}")
    models: dict[str, Any] = {}
    if any(
        any(part in name for part in ("prefill", "decode", "train", "forward")) and "memory" not in name
        for name in chosen
    ):
        models = contenders(config, settings=settings)
    machine: Peak | None = None
    for name, make in chosen.items():
        measurement = make(models, config, settings)
        if machine is None and (measurement.flops or measurement.nbytes):
            machine = peak(settings)
        measured: dict[str, list[float]] = {contender: [] for contender in measurement.jobs}
        once = measurement.unit == "MiB"  # memory does not vary
        with measurement.folder or contextlib.nullcontext():
            for count in range(1 if once else rounds + 1):
                for contender, job in measurement.jobs.items():
                    taken = job()
                    if count or once:  # the first round of times is the warm-up
                        measured[contender].append(taken)
        timed = measured.pop(ROOFLINE, None)
        roofline = statistics.median(timed) if timed else measurement.roofline(machine)
        yield Result(name, measurement.unit, measured, roofline)
