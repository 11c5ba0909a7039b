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


def test_every_row_measures_every_contender_in_every_round(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(bench.ROWS, "train 4x256, memory")  # takes a process for each contender
    measured = list(bench.run(TINY, rounds=1))
    assert [row.name for row in measured] == list(bench.ROWS)
    for row in measured:
        peers = {"F.linear"} if row.name.startswith("linear") else set(bench.PEERS)
        assert set(row.measured) == {bench.OURS, *peers}
        assert all(len(times) == 1 and times[0] > 0 for times in row.measured.values())


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
        assert all(set(row.measured) == {bench.OURS, *bench.PEERS} for row in measured)
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
        sizes.append(bench._train_memory({}, config, bench.Setting(), 1, 8)[bench.OURS]())
    parameters = 12 * 1024**2
    assert sizes[1] - sizes[0] > 3.5 * parameters * 4 / 2**20
    (row,) = bench.run(TINY, ["memory"], rounds=1)
    assert row.unit == "MiB"
    assert all(100 < peak < 2000 for (peak,) in row.measured.values())


def test_the_ratio_is_the_fastest_peer_over_ours_within_a_round(monkeypatch: pytest.MonkeyPatch) -> None:
    ticks = {bench.OURS: iter([9.0, 1.0, 2.0, 4.0]), "eager": iter([9.0, 4.0, 4.0, 4.0]), "sdpa": iter([9.0] * 4)}
    jobs = {name: lambda name=name: next(ticks[name]) for name in ticks}
    monkeypatch.setattr(bench, "contenders", lambda config, device: {})
    monkeypatch.setattr(bench, "ROWS", {"row": lambda *given: jobs})
    (row,) = bench.run(TINY, rounds=3)
    assert row.ratio == 2.0  # the median of 4, 2 and 1; the first round only warms up
    assert row.median(bench.OURS) == 2.0
