"""Figures: what is drawn is what was measured."""

import json
from pathlib import Path

import pytest

from allformers.figures import loss_curves, save


@pytest.fixture
def run(tmp_path: Path) -> Path:
    folder = tmp_path / "my-run"
    folder.mkdir()
    lines = [{"step": step, "loss": 5 / step, "tokens": 100 * step, "seconds": step / 2} for step in range(1, 5)]
    lines[1]["validation_loss"] = 3.0
    lines[3]["validation_loss"] = 1.5
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder


@pytest.mark.parametrize(("by", "places"), [("steps", [1, 2, 3, 4]), ("tokens", [100, 200, 300, 400])])
def test_curves_go_through_the_figures_of_the_metrics(run: Path, by: str, places: list[int]) -> None:
    (axes,) = loss_curves([run], by).axes
    training, validation = axes.lines
    assert list(training.get_xdata()) == places
    assert list(training.get_ydata()) == [5.0, 2.5, 5 / 3, 1.25]
    assert list(validation.get_xdata()) == places[1::2]
    assert list(validation.get_ydata()) == [3.0, 1.5]
    assert axes.get_xlabel() == by
    names = [text.get_text() for text in axes.get_legend().get_texts()]
    assert names == ["my-run, training", "my-run, validation: 1.500 at the end"]


def test_a_figure_is_saved_twice_and_the_same_each_time(run: Path, tmp_path: Path) -> None:
    contents = []
    for name in ("a", "b.png"):
        paths = save(loss_curves([run]), tmp_path / name)
        assert [path.suffix for path in paths] == [".png", ".svg"]
        contents.append([path.read_bytes() for path in paths])
    assert contents[0] == contents[1]


def test_what_cannot_be_drawn_is_said(run: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="nothing to draw"):
        loss_curves([])
    with pytest.raises(ValueError, match="holds no metrics of a run"):
        loss_curves([run, tmp_path])
    with pytest.raises(ValueError, match=r"there is no folder .*nowhere to put the figure in"):
        save(loss_curves([run]), tmp_path / "nowhere" / "figure")
