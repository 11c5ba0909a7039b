"""The hunts: the symptom is what the task says, and the tools lead to the mistake as the hints say."""

import importlib
import re
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

import allformers
from allformers.inspection import capture, compare_models, compare_texts
from allformers.practice.course import Entry, entries, find
from allformers.practice.folder import Folder
from allformers.practice.loading import Loader

TEXT = torch.tensor([list(b"The for statement is used to iterate over the elements of a sequence")])
HUNTS = [entry for entry in entries() if entry.load().bug is not None]


@pytest.fixture
def started(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Folder]:
    """A folder in which every hunt is started, and from which Python imports."""
    folder = Folder(tmp_path)
    for entry in HUNTS:
        folder.start(entry)
    monkeypatch.syspath_prepend(str(tmp_path))
    yield folder
    for entry in HUNTS:
        sys.modules.pop(entry.stem, None)


def blocks(text: str) -> str:
    """The code in a piece of Markdown."""
    return textwrap.dedent("\n".join(re.findall(r"^    .*$|^$", text, re.MULTILINE)))


def models(name: str) -> tuple[torch.nn.Module, torch.nn.Module]:
    """The bundled model through a hunt's code, and as it is."""
    trained = allformers.load("bundled").eval()
    model = importlib.import_module(find(name).stem).GPT2(trained.config).eval()
    model.load_state_dict(trained.state_dict())
    return model, trained


@pytest.mark.parametrize("entry", HUNTS, ids=lambda entry: entry.name)
def test_a_symptom_is_what_the_task_says(entry: Entry, started: Folder, capsys: pytest.CaptureFixture[str]) -> None:
    shown, _, printed = entry.task.partition("It prints:\n")
    names: dict[str, object] = {}
    exec(blocks(shown), names)
    if printed:
        expected = re.match(r"\n((?:    .*\n)+)", printed).group(1)
        assert capsys.readouterr().out == textwrap.dedent(expected)
        exec(blocks(printed.removeprefix(f"\n{expected}")), names)


@pytest.mark.parametrize("entry", HUNTS, ids=lambda entry: entry.name)
def test_a_mistake_is_found_beside_another_change(entry: Entry, started: Folder) -> None:
    with started.file(entry).open("a", encoding="utf-8") as file:
        file.write("\nCHANGED = True\n")
    *_, last = Loader(started).run_checks(entry)
    assert (last.state, last.check) == ("failed", "property")


@pytest.mark.parametrize(
    ("name", "agrees", "differs"),
    [
        ("hunt-transposed", "blocks.0.attention.merged", "blocks.0.attention"),
        ("hunt-scale", "blocks.0.attention.mask", "blocks.0.attention.queries"),
        ("hunt-gelu", "blocks.0.mlp.x", "blocks.0.mlp.activated"),
    ],
)
def test_what_is_captured_leads_to_the_mistake(name: str, agrees: str, differs: str, started: Folder) -> None:
    model, trained = models(name)
    found = compare_models(model, trained, TEXT[0])
    assert found.first_difference == "blocks.0"
    assert found.differences[0] == 0
    with capture(model, "blocks.0.*.*", "blocks.0.attention", "blocks.0.mlp") as ours:
        model(TEXT)
    with capture(trained, "blocks.0.*.*", "blocks.0.attention", "blocks.0.mlp") as theirs:
        trained(TEXT)
    apart = {n: float((ours[n].values.double() - theirs[n].values.double()).abs().max()) for n in ours}
    first = next(n for n in apart if apart[n])
    assert (list(apart)[list(apart).index(first) - 1], first) == (agrees, differs)
    hints = " ".join(find(name).load().hints)
    assert all(n.rpartition(".")[2] in hints for n in (agrees, differs))


def test_scores_without_their_scale_are_too_large_by_the_number_in_the_hint(started: Folder) -> None:
    model, trained = models("hunt-scale")
    with capture(model, "blocks.0.attention.*") as ours, capture(trained, "blocks.0.attention.*") as theirs:
        model(TEXT)
        trained(TEXT)
    quotient = ours["blocks.0.attention.scores"].values / theirs["blocks.0.attention.scores"].values
    seen = quotient[ours["blocks.0.attention.mask"].values.expand_as(quotient)]
    assert float(seen.std()) < 1e-3
    assert f"{seen.mean():.3f}" in find("hunt-scale").load().hints[1]
    assert 32 in trained.config.axes.values()


def test_a_softmax_along_queries_is_found_by_two_texts(started: Folder) -> None:
    model, trained = models("hunt-softmax")
    texts = [torch.tensor(list(b"A class is red")), torch.tensor(list(b"A class is new"))]
    _, (compared,) = compare_texts(model, texts)
    assert compared.divergence_position == 11
    assert min(compared.divergence[:11]) > 1e-7
    assert max(compare_texts(trained, texts)[1][0].divergence[:11]) < 1e-9

    runs = []
    for text in texts:
        with capture(model, "blocks.0.attention.*") as one:
            model(torch.stack([text]))
        runs.append(one)
    apart = {}
    for name, tensor in runs[0].items():
        before = tuple(slice(11) if axis in ("seq", "seq_k") else slice(None) for axis in tensor.axes)
        apart[name] = float((tensor.values[before].double() - runs[1][name].values[before].double()).abs().max())
    assert next(name for name in apart if apart[name] > 1e-5) == "blocks.0.attention.weights"
    columns = runs[0]["blocks.0.attention.weights"].values.sum(dim=-2)
    assert torch.allclose(columns, torch.ones(()))


def test_a_position_that_is_not_counted_on_is_found_in_the_embedding(started: Folder) -> None:
    model, trained = models("hunt-cache")
    assert compare_models(model, trained, TEXT[0]).first_difference is None
    with capture(model, "embed", "blocks.*", "logits") as whole:
        model(TEXT)
    cache = model.make_cache()
    model(TEXT[:, :-1], cache)
    with capture(model, "embed", "blocks.*", "logits") as last:
        model(TEXT[:, -1:], cache)
    apart = [name for name in last if not torch.allclose(last[name].values[:, -1], whole[name].values[:, -1])]
    assert apart[0] == "embed"
    at_start = model.token_embedding(TEXT[:, -1]) + model.position_embedding.weight[0]
    assert torch.allclose(last["embed"].values[:, -1], at_start)
