"""The benchmark: everybody computes the same, every row runs, and the ratio says what it claims."""

import dataclasses

import pytest
import torch

from allformers import bench, speed
from allformers.models.gpt2.gpt2 import GPT2Config

TINY = dataclasses.replace(GPT2Config.tiny(), embedding_dim=16, num_layers=1, mlp_dim=32)


def test_all_contenders_compute_the_same_logits() -> None:
    models = bench.contenders(TINY)
    assert bench.largest_difference(models, torch.randint(256, (2, 9))) < 5e-6


ALONE = ("memory", "import")
"""Rows that take a process for each contender."""


def test_every_row_measures_every_contender_in_every_round(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench, "limits", lambda setting: bench.Limits(1e9, 1e9))
    monkeypatch.setattr(speed, "_compile", lambda graph, given: graph)  # how fast it is does not matter here
    for name in [name for name in bench.ROWS if any(part in name for part in ALONE)]:
        monkeypatch.delitem(bench.ROWS, name)
    monkeypatch.setattr(GPT2Config, "presets", classmethod(lambda cls: {"tiny": lambda: TINY, "other": cls.gpt2_small}))
    measured = list(bench.run(TINY, ["prefill", "decode", "train", "call", "linear", "scale"], rounds=1))
    assert [row.name for row in measured] == [*bench.ROWS, "scale: tiny, 1x128"]
    for row in measured:
        assert all(len(times) == 1 and times[0] > 0 for times in row.measured.values())
        peers = {"F.linear"} if row.name.startswith("linear") else set(bench.PEERS)
        beside = {bench.UNCHECKED} if row.name.startswith("call") else {bench.PACKED}
        if row.name.startswith("decode"):
            beside = {bench.PACKED, bench.STEPS}
        if row.name.startswith("train"):
            beside = {bench.RECOMPUTING}
        if row.name == "scale: tiny, 1x128":
            beside = set()
        assert set(row.measured) == {bench.OURS, *beside, *peers}
        assert row.floor is not None
        assert bench.FLOOR not in row.measured


def test_what_grows_with_scale_is_measured_only_if_it_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench, "contenders", lambda config, setting: {})
    asked: list[str] = []
    rows = {name: lambda *_, name=name: asked.append(name) or bench.Measurement({}) for name in bench.ROWS}
    monkeypatch.setattr(bench, "ROWS", rows)
    list(bench.run(TINY, rounds=1))
    assert asked == [name for name in bench.ROWS if not name.startswith("scale")]
    asked.clear()
    list(bench.run(TINY, ["train 4x256", "decode"], rounds=1))
    assert asked == ["decode 128+64, batch 1", "decode 128+64, batch 8", "train 4x256"]


def test_the_floor_is_the_longer_of_reading_and_multiplying() -> None:
    limits = bench.Limits(read=1e6, multiply=1e9)
    assert bench.Measurement({}, flops=3e6, nbytes=2e3).floor(limits) == pytest.approx(3)
    assert bench.Measurement({}, flops=1e6, nbytes=2e3).floor(limits) == pytest.approx(2)
    assert bench.Measurement({}, fixed=5).floor(None) == 5
    assert bench.Measurement({}).floor(limits) is None


def test_what_a_step_has_to_read_is_what_it_multiplies_by() -> None:
    ours = bench.contender(bench.OURS, TINY)
    parameters = sum(one.numel() for one in ours.parameters())
    assert bench._weights_read(ours) == 4 * (parameters - ours.position_embedding.weight.numel())
    untied = bench.contender(bench.OURS, dataclasses.replace(TINY, tie_embeddings=False))
    assert bench._weights_read(untied) == bench._weights_read(ours)


def test_the_machines_limits_are_rates_that_can_be() -> None:
    limits = bench.limits(rounds=1)
    assert 1e8 < limits.read < 1e13
    assert 1e9 < limits.multiply < 1e15


def test_a_pass_takes_two_operations_a_weight_and_token() -> None:
    wide = dataclasses.replace(TINY, embedding_dim=256, mlp_dim=1024)
    ours = bench.contender(bench.OURS, wide)
    matrices = 12 * 256**2 + 256 * 256
    assert bench.flops_of(ours, torch.zeros(1, 32, dtype=torch.long)) == pytest.approx(2 * matrices * 32, rel=0.02)


def test_encoders_and_experts_are_the_same_models_too() -> None:
    from allformers.models.bert.bert import BertConfig
    from allformers.models.mixtral.mixtral import MixtralConfig
    from allformers.models.vit.vit import ViTConfig

    for config in (BertConfig.bert_tests(), ViTConfig.vit_tests(), MixtralConfig.mixtral_tiny()):
        models = bench.contenders(config)
        given = models[bench.OURS].example(2, 9, "cpu")
        assert bench.largest_difference(models, given) < 5e-6
    for config in (BertConfig.bert_tests(), ViTConfig.vit_tests()):
        measured = list(bench.run(config, rounds=1))
        assert [row.name for row in measured] == ["read 1", "read 8"]
        assert all(set(row.measured) == {bench.OURS, bench.PACKED, *bench.PEERS} for row in measured)
        with pytest.raises(ValueError, match="no row is called decode; there are: read 1, read 8"):
            next(bench.run(config, ["decode"]))


def test_training_can_be_measured_in_bfloat16(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(bench.ROWS, "train 4x256, memory")
    (row,) = bench.run(TINY, ["train 4x256"], rounds=1, setting=bench.Setting(precision="bfloat16"))
    assert row.unit == "ms"


@pytest.mark.slow
def test_memory_is_that_of_a_process_which_only_trains() -> None:
    """A model with a megabyte more of weights takes four more: itself, its gradient and two moments."""
    sizes = []
    for width in (64, 1024):
        config = dataclasses.replace(TINY, embedding_dim=width, mlp_dim=4 * width)
        sizes.append(bench._train_memory({}, config, bench.Setting(), 1, 8).jobs[bench.OURS]())
    parameters = 12 * 1024**2
    assert sizes[1] - sizes[0] > 3.5 * parameters * 4 / 2**20
    for row in bench.run(TINY, ["memory"], rounds=1):
        assert row.unit == "MiB"
        assert {bench.OURS, *bench.PEERS} <= set(row.measured) <= {bench.OURS, bench.RECOMPUTING, *bench.PEERS}
        if row.name.startswith("train"):
            assert all(100 < peak < 2000 for (peak,) in row.measured.values())


@pytest.mark.slow
def test_importing_is_measured_beside_pytorch() -> None:
    (row,) = bench.run(TINY, ["import"], rounds=1)
    assert set(row.measured) == {bench.OURS, "import torch"}


def test_the_ratio_is_the_fastest_peer_over_ours_within_a_round(monkeypatch: pytest.MonkeyPatch) -> None:
    ticks = {bench.OURS: iter([9.0, 1.0, 2.0, 4.0]), "eager": iter([9.0, 4.0, 4.0, 4.0]), "sdpa": iter([9.0] * 4)}
    jobs = {name: lambda name=name: next(ticks[name]) for name in ticks}
    monkeypatch.setattr(bench, "ROWS", {"row": lambda *given: bench.Measurement(jobs)})
    (row,) = bench.run(TINY, rounds=3)
    assert row.ratio() == 2.0  # the median of 4, 2 and 1; the first round only warms up
    assert row.median(bench.OURS) == 2.0
    assert row.spread(bench.OURS) == 0.75
