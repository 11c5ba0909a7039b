"""The benchmark: everybody computes the same, every row runs, and the ratio says what it claims."""

import dataclasses

import pytest
import torch

from allformers import bench
from allformers.models.gpt2.gpt2 import GPT2Config

TINY = dataclasses.replace(GPT2Config.tiny(), embedding_dim=16, num_layers=1, mlp_dim=32)


def test_all_contenders_compute_the_same_logits() -> None:
    models = bench.contenders(TINY)
    assert bench.largest_difference(models, torch.randint(256, (2, 9))) < 5e-6


def test_every_row_times_every_contender_in_every_round() -> None:
    timings = list(bench.run(TINY, rounds=1))
    assert [timing.row for timing in timings] == list(bench.ROWS)
    for timing in timings:
        peers = {"F.linear"} if timing.row.startswith("linear") else set(bench.PEERS)
        assert set(timing.milliseconds) == {bench.OURS, *peers}
        assert all(len(times) == 1 and times[0] > 0 for times in timing.milliseconds.values())


def test_the_ratio_is_the_fastest_peer_over_ours_within_a_round(monkeypatch: pytest.MonkeyPatch) -> None:
    ticks = {bench.OURS: iter([9.0, 1.0, 2.0, 4.0]), "eager": iter([9.0, 4.0, 4.0, 4.0]), "sdpa": iter([9.0] * 4)}
    jobs = {name: lambda name=name: next(ticks[name]) for name in ticks}
    monkeypatch.setattr(bench, "contenders", lambda config: {})
    monkeypatch.setattr(bench, "ROWS", {"row": lambda models: jobs})
    (timing,) = bench.run(TINY, rounds=3)
    assert timing.ratio == 2.0  # the median of 4, 2 and 1; the first round only warms up
    assert timing.median(bench.OURS) == 2.0
