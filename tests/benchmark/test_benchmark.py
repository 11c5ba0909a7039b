"""The benchmark: everybody computes the same, every row runs, and the ratio says what it claims."""

import dataclasses

import pytest
import torch

from allformers.benchmark import rows as rows_module
from allformers.benchmark import run as run_module
from allformers.benchmark.contenders import (
    OURS,
    PACKED,
    PEERS,
    RECOMPUTING,
    Settings,
    contender,
    contenders,
    largest_difference,
)
from allformers.benchmark.measure import Measurement, Peak, Result, flops_of, peak, weight_bytes_read
from allformers.benchmark.run import run
from allformers.models.gpt2.gpt2 import GPT2Config

TINY = dataclasses.replace(GPT2Config.tiny(), embedding_dim=16, num_layers=1, mlp_dim=32)


def test_all_contenders_compute_the_same_logits() -> None:
    models = contenders(TINY)
    assert largest_difference(models, torch.randint(256, (2, 9))) < 5e-6


ROWS = [name for name in rows_module.ROWS if not any(part in name for part in ("memory", "import"))]
"""All rows but those that take a process for each contender."""

DAILY = ("prefill 8x128",)


@pytest.mark.parametrize("name", [pytest.param(row, marks=() if row in DAILY else pytest.mark.slow) for row in ROWS])
def test_every_row_takes_time(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run_module, "peak", lambda settings: Peak(1e9, 1e9))
    monkeypatch.setattr("allformers.benchmark.rows.compile_steps", lambda model: model)  # how fast it is matters not
    (row,) = run(TINY, [name], rounds=1)
    assert row.name == name
    assert len(row.measured) > 1
    assert OURS in row.measured
    assert all(times > 0 for (times,) in row.measured.values())


def test_what_grows_with_scale_is_measured_only_if_it_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run_module, "contenders", lambda config, settings: {})
    asked: list[str] = []
    rows = {name: lambda *_, name=name: asked.append(name) or Measurement({}) for name in rows_module.ROWS}
    monkeypatch.setattr(rows_module, "ROWS", rows)
    list(run(TINY, rounds=1))
    assert asked == [name for name in rows_module.ROWS if not name.startswith("scale")]
    asked.clear()
    list(run(TINY, ["train 4x256", "decode"], rounds=1))
    assert asked == ["decode 128+64, batch 1", "decode 128+64, batch 8", "train 4x256"]


def test_the_roofline_is_the_longer_of_reading_and_multiplying() -> None:
    machine = Peak(bandwidth=1e6, flops=1e9)
    assert Measurement({}, flops=3e6, nbytes=2e3).roofline(machine) == pytest.approx(3)
    assert Measurement({}, flops=1e6, nbytes=2e3).roofline(machine) == pytest.approx(2)
    assert Measurement({}, fixed=5).roofline(None) == 5
    assert Measurement({}).roofline(machine) is None


def test_what_a_step_has_to_read_is_what_it_multiplies_by() -> None:
    ours = contender(OURS, TINY)
    parameters = sum(one.numel() for one in ours.parameters())
    assert weight_bytes_read(ours) == 4 * (parameters - ours.position_embedding.weight.numel())
    untied = contender(OURS, dataclasses.replace(TINY, tie_embeddings=False))
    assert weight_bytes_read(untied) == weight_bytes_read(ours)


@pytest.mark.slow
def test_the_machines_peak_is_of_rates_that_can_be() -> None:
    found = peak(rounds=1)
    assert 1e8 < found.bandwidth < 1e13
    assert 1e9 < found.flops < 1e15


def test_a_pass_takes_two_operations_a_weight_and_token() -> None:
    wide = dataclasses.replace(TINY, embedding_dim=256, mlp_dim=1024)
    ours = contender(OURS, wide)
    matrices = 12 * 256**2 + 256 * 256
    assert flops_of(ours, torch.zeros(1, 32, dtype=torch.long)) == pytest.approx(2 * matrices * 32, rel=0.02)


def test_encoders_and_experts_are_the_same_models_too() -> None:
    from allformers.models.bert.bert import BertConfig
    from allformers.models.mixtral.mixtral import MixtralConfig
    from allformers.models.vit.vit import ViTConfig

    for config in (BertConfig.tiny(), ViTConfig.tiny(), MixtralConfig.tiny()):
        models = contenders(config)
        given = models[OURS].dummy_input(2, 9, "cpu")
        assert largest_difference(models, given) < 5e-6


@pytest.mark.slow
def test_encoders_have_rows_of_their_own() -> None:
    from allformers.models.bert.bert import BertConfig
    from allformers.models.vit.vit import ViTConfig

    for config in (BertConfig.tiny(), ViTConfig.tiny()):
        measured = list(run(config, rounds=1))
        assert [row.name for row in measured] == ["forward 1", "forward 8"]
        assert all(set(row.measured) == {OURS, PACKED, *PEERS} for row in measured)
        with pytest.raises(ValueError, match=r"decode.*forward 1, forward 8"):
            next(run(config, ["decode"]))


def test_training_can_be_measured_in_bfloat16(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(rows_module.ROWS, "train 4x256, memory")
    (row,) = run(TINY, ["train 4x256"], rounds=1, settings=Settings(precision="bfloat16"))
    assert row.unit == "ms"


@pytest.mark.slow
def test_memory_is_that_of_a_process_which_only_trains() -> None:
    """A model with a megabyte more of weights takes four more: itself, its gradient and two moments."""
    sizes = []
    for width in (64, 1024):
        config = dataclasses.replace(TINY, embedding_dim=width, mlp_dim=4 * width)
        sizes.append(rows_module._train_memory({}, config, Settings(), 1, 8).jobs[OURS]())
    parameters = 12 * 1024**2
    assert sizes[1] - sizes[0] > 3.5 * parameters * 4 / 2**20
    for row in run(TINY, ["memory"], rounds=1):
        assert row.unit == "MiB"
        assert {OURS, *PEERS} <= set(row.measured) <= {OURS, RECOMPUTING, *PEERS}
        if row.name.startswith("train"):
            assert all(100 < taken < 2000 for (taken,) in row.measured.values())


@pytest.mark.slow
def test_importing_is_measured_beside_pytorch() -> None:
    (row,) = run(TINY, ["import"], rounds=1)
    assert set(row.measured) == {OURS, "import torch"}


def test_the_ratio_is_the_fastest_peer_over_ours_within_a_round(monkeypatch: pytest.MonkeyPatch) -> None:
    ticks = {OURS: iter([9.0, 1.0, 2.0, 4.0]), "eager": iter([9.0, 4.0, 4.0, 4.0]), "sdpa": iter([9.0] * 4)}
    jobs = {name: lambda name=name: next(ticks[name]) for name in ticks}
    monkeypatch.setattr(rows_module, "ROWS", {"row": lambda *given: Measurement(jobs)})
    (row,) = run(TINY, rounds=3)
    assert row.ratio() == 2.0  # the median of 4, 2 and 1; the first round only warms up
    assert row.median(OURS) == 2.0
    assert row.spread(OURS) == 0.75


def test_a_row_goes_to_a_record_and_back_and_an_older_record_is_refused() -> None:
    row = Result("decode", "ms", {OURS: [2.0], "eager": [3.0]}, 1.5)
    assert Result.from_record("decode", row.to_record()) == row
    older = {"floor" if name == "roofline" else name: value for name, value in row.to_record().items()}
    with pytest.raises(ValueError, match=r"decode.*roofline.*floor"):
        Result.from_record("decode", older)
