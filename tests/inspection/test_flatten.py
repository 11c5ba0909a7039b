"""A flattened model is the model: the same weights and logits, one class a role, and little more than live methods."""

import ast
import functools
import importlib.util
import inspect
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

from allformers.cli import app
from allformers.generation.decoder import Decoder
from allformers.inspection.flatten import flatten
from allformers.models.registry import READING_ORDER, Entry
from conftest import perturb

one_file = functools.cache(flatten)
every = pytest.mark.parametrize("entry", READING_ORDER, ids=lambda entry: entry.name)


def imported(source: str, folder: Path) -> ModuleType:
    """A module with this source."""
    path = folder / "flat.py"
    path.write_text(source, encoding="utf-8")
    spec = importlib.util.spec_from_file_location("flat", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["flat"] = module  # where dataclasses look for the types of their fields
    try:
        spec.loader.exec_module(module)
    finally:
        del sys.modules["flat"]
    return module


def inputs_of(model: Any) -> torch.Tensor:
    example = model.dummy_input(2, 40, "cpu")
    if example.is_floating_point():
        return torch.randn(example.shape)
    return torch.randint(model.config.vocab_size, example.shape)


@every
def test_it_loads_the_state_dict_and_gives_the_same_logits(entry: Entry, tmp_path: Path) -> None:
    """To the bit, with a cache and without: past Mistral's and Gemma's windows, which are 32 positions here."""
    model_class = entry.load()
    config_class = model_class.checkpoint_format().config_class
    module = imported(one_file(model_class), tmp_path)
    model = perturb(model_class(config_class.tiny()).eval())
    flat = vars(module)[model_class.__name__](vars(module)[config_class.__name__].tiny()).eval()
    flat.load_state_dict(model.state_dict())
    inputs = inputs_of(model)
    with torch.no_grad():
        assert torch.equal(flat(inputs), model(inputs))
        if isinstance(model, Decoder):
            caches = model.make_cache(), flat.make_cache()
            for part in (inputs[:, :7], inputs[:, 7:39], inputs[:, 39:]):
                assert torch.equal(flat(part, caches[1]), model(part, caches[0]))


@every
def test_each_role_is_one_class_that_extends_none_of_the_models(entry: Entry, tmp_path: Path) -> None:
    source = one_file(entry.load())
    module = imported(source, tmp_path)
    classes = {node.name for node in ast.parse(source).body if isinstance(node, ast.ClassDef)}
    for name in classes:
        bases = vars(module)[name].__mro__[1:]
        assert not any(base.__module__.startswith("allformers.models") or base.__name__ in classes for base in bases)
    assert "allformers.models" not in "".join(line for line in source.splitlines() if "import" in line)
    assert "super()." not in source.replace("super().__init__()", "").replace("super().__post_init__()", "")


@every
def test_it_is_little_longer_than_the_methods_that_are_live(entry: Entry) -> None:
    """Beside methods, fields and functions there are the heads and docstrings of classes, and the head of the file."""
    source = one_file(entry.load())

    def length(node: Any) -> int:
        first = min([node.lineno, *(decorator.lineno for decorator in getattr(node, "decorator_list", []))])
        return sum(1 for line in source.splitlines()[first - 1 : node.end_lineno] if line.strip())

    head = ast.Import | ast.ImportFrom | ast.Expr
    definitions = [node for node in ast.parse(source).body if not isinstance(node, head)]
    live = [part for node in definitions for part in (node.body if isinstance(node, ast.ClassDef) else [node])]
    live = [part for part in live if not isinstance(part, ast.Expr)]  # a class's docstring
    assert sum(map(length, definitions)) < 1.1 * sum(map(length, live))


def test_each_inherited_definition_says_where_it_is_written() -> None:
    """The line is the one at which the file has it."""
    root = Path(inspect.getfile(READING_ORDER[0].load())).parents[1]
    for entry in READING_ORDER:
        for line in one_file(entry.load()).splitlines():
            code, _, place = line.rpartition("  # ")
            if ".py, line " in place:
                file, number = place.split(", line ")
                original = (root / file).read_text(encoding="utf-8").splitlines()[int(number) - 1].strip()
                assert original.split("(")[0].split()[0] == code.strip().split("(")[0].split()[0]


def test_the_command_shows_a_model_or_one_of_its_classes(tmp_path: Path) -> None:
    shown = CliRunner().invoke(app, ["show", "gemma3"])
    assert shown.exit_code == 0
    assert shown.stdout == one_file(next(entry for entry in READING_ORDER if entry.name == "gemma3").load())
    one = CliRunner().invoke(app, ["show", "gemma3-1b", "Gemma3Attention"])
    assert one.exit_code == 0
    assert one.stdout.startswith("class Gemma3Attention(nn.Module):\n")
    assert one.stdout in shown.stdout
    written = CliRunner().invoke(app, ["show", "gemma3", "--output", str(tmp_path / "gemma3.py")])
    assert written.exit_code == 0
    assert (tmp_path / "gemma3.py").read_text(encoding="utf-8") == shown.stdout
    assert CliRunner().invoke(app, ["show", "Gemma3", "Gemma3Attention"]).stdout == one.stdout


def test_what_cannot_be_shown_is_refused_by_name() -> None:
    refused = [(["gemma3", "Attenton"], "Gemma3Attention"), (["no-such-model"], "the models are gpt2, llama")]
    refused += [(["gpt2", "--output", "no-folder/gpt2.py"], "no-folder")]
    for command, expected in refused:
        shown = CliRunner().invoke(app, ["show", *command])
        assert shown.exit_code != 0
        assert expected in str(shown.exception)
    with pytest.raises(ValueError, match="Linear"):
        flatten(torch.nn.Linear)
