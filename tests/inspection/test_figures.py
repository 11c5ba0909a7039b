"""Figures: what is drawn is what was measured."""

import dataclasses
import json
import re
import xml.etree.ElementTree as ET
from html.parser import HTMLParser
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import torch

from allformers import load
from allformers.inputs.tokenizers import ByteTokenizer, GPT2Tokenizer
from allformers.inspection import Activations, capture, figures, lens
from allformers.inspection.compare import entropy
from allformers.inspection.figures import label, save, to_html, to_svg
from allformers.models.gpt2.gpt2 import GPT2, GPT2Config
from allformers.models.llama.llama import Llama, LlamaConfig
from allformers.training.curves import loss_curves

if TYPE_CHECKING:
    from matplotlib.figure import Figure

TOKENIZER = ByteTokenizer()


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
    with pytest.raises(ValueError, match=r"."):
        loss_curves([])
    with pytest.raises(ValueError, match=re.escape(str(tmp_path))):
        loss_curves([run, tmp_path])
    with pytest.raises(ValueError, match="nowhere"):
        save(loss_curves([run]), tmp_path / "nowhere" / "figure")


# -- Looking inside --------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def model() -> GPT2:
    return load("bundled")  # type: ignore[no-any-return]


def look(model: GPT2, text: str) -> tuple[Activations, list[str]]:
    token_ids = torch.tensor([TOKENIZER.encode(text)])
    with capture(model) as activations:
        model(token_ids)
    return activations, [label(TOKENIZER, int(token)) for token in token_ids[0]]


def norms(model: GPT2) -> "Figure":
    return figures.stream_norms(look(model, "for")[0])


ODD = "x = {'a': $1, '\t': 2}\nnaïve ⏎ 日本 \x00"


@pytest.mark.parametrize("text", ["f$", pytest.param(ODD, marks=pytest.mark.slow)])
def test_every_figure_can_be_drawn_of_any_text(text: str) -> None:
    model = GPT2(dataclasses.replace(GPT2Config.tiny(), num_heads=3, embedding_dim=24)).eval()
    activations, labels = look(model, text)
    made = {
        "grid": figures.attention_grid(activations, labels),
        "head": figures.attention_head(activations, labels, 1, 2),
        "arcs": figures.attention_arcs(activations, labels, 1, 2),
        "entropy": figures.head_entropy(activations),
        "norms": figures.stream_norms(activations),
        "lens": lens.logit_lens(activations, model, labels, TOKENIZER),
        "next": figures.next_tokens(activations["logits"].values[0], labels, TOKENIZER),
    }
    for name, figure in made.items():
        drawn = to_svg(figure)
        assert ET.fromstring(drawn).tag.endswith("svg"), name
        assert "mathdefault" not in drawn


def test_attention_maps_show_the_weights_and_nothing_above_the_diagonal(model: GPT2) -> None:
    activations, labels = look(model, "for x in")
    axes = figures.attention_head(activations, labels, 2, 3).axes[0]
    shown = axes.images[0].get_array()
    weights = activations["blocks.2.attention.weights"].values[0, 3]
    for looks in range(8):
        for at in range(8):
            if at > looks:
                assert shown.mask[looks, at] or torch.isnan(torch.tensor(float(shown[looks, at])))
            else:
                assert float(shown[looks, at]) == pytest.approx(weights[looks, at].item())
    assert [text.get_text() for text in axes.get_yticklabels()] == labels
    grid = figures.attention_grid(activations, labels)
    assert len(grid.axes) == 4 * 4


def test_grouped_heads_are_drawn_one_by_one() -> None:
    model = Llama(LlamaConfig.tiny()).eval()
    token_ids = torch.tensor([TOKENIZER.encode("for x")])
    with capture(model) as activations:
        model(token_ids)
    labels = [label(TOKENIZER, int(token)) for token in token_ids[0]]
    shown = figures.attention_head(activations, labels, 1, 3).axes[0].images[0].get_array()
    weights = activations["blocks.1.attention.weights"].values[0, 1, 1]  # of four heads in two groups the last
    assert float(shown[4, 2]) == pytest.approx(weights[4, 2].item())
    assert len(figures.attention_grid(activations, labels).axes) == 2 * 4
    assert len(figures.head_entropy(activations).axes[0].texts) == 2 * 4
    assert lens.lowest_entropy_head(activations)[1] in range(4)


def test_arcs_join_positions_that_look_at_each_other(model: GPT2) -> None:
    activations, labels = look(model, "for x in")
    weights = activations["blocks.1.attention.weights"].values[0, 0]
    drawn = figures.attention_arcs(activations, labels, 1, 0, threshold=0.1).axes[0].patches
    assert len(drawn) == int((weights.tril(-1) >= 0.1).sum())


def test_a_head_that_is_not_there_is_refused(model: GPT2) -> None:
    activations, labels = look(model, "for")
    with pytest.raises(ValueError, match=r"head 4\b.*layer 0\b.*\b4 layers.*\b4 heads"):
        figures.attention_head(activations, labels, 0, 4)


def test_the_lens_ends_with_what_the_model_answers(model: GPT2) -> None:
    activations, labels = look(model, "for x in")
    texts = [text.get_text() for text in lens.logit_lens(activations, model, labels, TOKENIZER).axes[0].texts]
    answers = activations["logits"].values[0].argmax(-1)
    last_column = texts[4::5]
    assert last_column == [label(TOKENIZER, int(token)) for token in answers]


def test_what_comes_next_is_in_order_with_probabilities(model: GPT2) -> None:
    activations, labels = look(model, "for x in")
    logits = activations["logits"].values[0]
    texts = [text.get_text() for text in figures.next_tokens(logits, labels, TOKENIZER, top=3).axes[0].texts]
    best = logits[-1].softmax(-1).topk(3)
    expected = [f"{label(TOKENIZER, int(i))}  {p:.0%}" for i, p in zip(best.indices, best.values.tolist(), strict=True)]
    assert texts[-3:] == expected


def test_entropies_are_means_over_positions(model: GPT2) -> None:
    activations, _ = look(model, "for x in")
    texts = [text.get_text() for text in figures.head_entropy(activations).axes[0].texts]
    expected = entropy(activations["blocks.3.attention.weights"].values[0]).mean(-1)
    assert texts[-4:] == [f"{bits:.1f}" for bits in expected.tolist()]


def test_labels_make_what_cannot_be_seen_visible(gpt2_vocabulary: None) -> None:
    assert [label(TOKENIZER, byte) for byte in b" \n\ta$\x00\xe9"] == ["·", "⏎", "⇥", "a", "$", "\\x00", "\\xe9"]
    tokenizer = GPT2Tokenizer()
    token_ids = tokenizer.encode(" the\n<|endoftext|>")
    assert [label(tokenizer, token) for token in token_ids] == ["·the", "⏎", "<|endoftext|>"]


def test_drawings_take_the_colour_of_the_text_around(model: GPT2, tmp_path: Path) -> None:
    drawn = to_svg(norms(model))
    assert "currentColor" in drawn
    assert figures.INK not in drawn
    _, svg = save(norms(model), tmp_path / "norms")
    assert "prefers-color-scheme" in svg.read_text()


def test_a_page_stands_alone_and_says_what_it_shows(model: GPT2) -> None:
    page = to_html("Inside: <b>", {"One & all": ("A sentence.", norms(model))})

    class Parser(HTMLParser):
        links: list[str] = []  # noqa: RUF012

        def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
            self.links += [value for name, value in attrs if name in {"src", "href", "xlink:href"} and value]

    parser = Parser()
    parser.feed(page)
    assert all(link.startswith(("#", "data:")) for link in parser.links)
    assert not re.search(r"url\((?!#)", page)
    assert "Inside: &lt;b&gt;" in page
    assert "One &amp; all" in page
    assert '<a href="#s0">' in page
