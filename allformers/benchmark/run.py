"""Run a benchmark: each round times every contender once, one after the other."""

import contextlib
import statistics
from collections.abc import Iterator, Sequence
from typing import Any

from allformers.benchmark.contenders import FLOOR, Setting, contenders
from allformers.benchmark.measure import Limits, Row, limits
from allformers.benchmark.rows import rows_for


def run(
    config: Any,
    rows: Sequence[str] = (),
    rounds: int = 5,
    setting: Setting = Setting(),  # noqa: B008  (immutable)
) -> Iterator[Row]:
    """Measure the rows whose names contain one of `rows`, or are one of them, one after the other.

    All but those of scale if none is given.

    Raises:
        ImportError: transformers is not installed.
        ValueError: no row is called so, or there are no rounds.
    """
    there = rows_for(config)
    chosen = {
        name: make
        for name, make in there.items()
        if (
            any(part == name or (part in name and part not in there) for part in rows)
            if rows
            else not name.startswith("scale")
        )
    }
    if not chosen:
        raise ValueError(f"no row is called {' or '.join(rows)}; there are: {', '.join(there)}")
    if rounds < 1:
        raise ValueError(f"rounds must be at least 1, not {rounds}")
    models: dict[str, Any] = {}
    if any(
        any(part in name for part in ("prefill", "decode", "train", "read")) and "memory" not in name for name in chosen
    ):
        models = contenders(config, setting=setting)
    bounds: Limits | None = None
    for name, make in chosen.items():
        measurement = make(models, config, setting)
        if bounds is None and (measurement.flops or measurement.nbytes):
            bounds = limits(setting)
        measured: dict[str, list[float]] = {contender: [] for contender in measurement.jobs}
        once = measurement.unit == "MiB"  # memory is no matter of luck
        with measurement.folder or contextlib.nullcontext():
            for count in range(1 if once else rounds + 1):
                for contender, job in measurement.jobs.items():
                    taken = job()
                    if count or once:  # the first round of times only warms up
                        measured[contender].append(taken)
        least = measured.pop(FLOOR, None)
        yield Row(name, measurement.unit, measured, statistics.median(least) if least else measurement.floor(bounds))
