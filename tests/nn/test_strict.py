"""Annotated variables are checked too, where beartype's import hook is installed and `ALLFORMERS_CHECKS=strict`."""

import ast
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
MODELS = ROOT / "allformers" / "models"

STRICT = """
import sys
import torch
from beartype import BeartypeConf, BeartypeDecorPlace
from beartype.claw import beartype_packages

place = BeartypeDecorPlace.FIRST  # outside of `checked`, which it leaves alone
conf = BeartypeConf(is_pep484_tower=True, claw_decor_place_func=place, claw_decor_place_type=place)
beartype_packages(("allformers.models", "allformers.nn", "allformers.generation"), conf=conf)

from allformers.generation.decoder import Decoder
from allformers.models.registry import READING_ORDER
from allformers.nn.shapes import ShapeError, unchecked

for entry in READING_ORDER:
    if entry.name not in (sys.argv[1:] or [entry.name]):
        continue
    model_class = entry.load()
    model = model_class(model_class.checkpoint_format().config_class.tiny()).eval()
    inputs = model.dummy_input(2, 12, "cpu")
    for _ in range(2):
        try:
            with torch.no_grad(), unchecked():
                model(inputs)
                if inputs.is_floating_point():  # an image, and now one that is twice as wide
                    model(inputs.repeat(1, 1, 1, 2))
                if isinstance(model, Decoder):
                    cache = model.make_cache()
                    model(inputs[:, :6], cache)
                    model(inputs[:, 6:], cache)
                    model.generate_batch([torch.tensor([1, 2, 3]), torch.tensor([4])], max_new_tokens=3)
        except ShapeError as error:
            print(entry.name, "refused:", str(error).splitlines()[0])
        else:
            print(entry.name, "passed")
"""


def strictly(root: Path, *models: str) -> list[str]:
    """The output of a process that runs each model twice, by the package that lies in this folder."""
    environment = {**os.environ, "ALLFORMERS_CHECKS": "strict", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", STRICT, *models]  # with -c, what lies in the working folder is imported first
    ran = subprocess.run(command, cwd=root, env=environment, capture_output=True, text=True, check=True)
    return ran.stdout.splitlines()


REPRESENTATIVES = ("gpt2", "mixtral", "gemma3", "bert", "deepseek-v3")
"""Models that run most of the other models' methods too, which they inherit; the slow test runs every model."""


@pytest.mark.parametrize("models", [REPRESENTATIVES, pytest.param((), marks=pytest.mark.slow, id="every")])
def test_every_annotated_variable_of_every_model_fits(models: tuple[str, ...]) -> None:
    lines = strictly(ROOT, *models)
    assert len(lines) == 2 * (len(models) or 12)
    assert all(line.endswith(" passed") for line in lines), lines


def annotated(module: Path) -> list[ast.AnnAssign]:
    """The variables of a model file's functions that have the axes of a tensor in their annotation."""
    functions = [node for node in ast.walk(ast.parse(module.read_text())) if isinstance(node, ast.FunctionDef)]
    assigned = [node for function in functions for node in ast.walk(function) if isinstance(node, ast.AnnAssign)]
    return [node for node in assigned if ast.unparse(node.annotation).startswith(("Float[", "Int[", "Bool["))]


WRONG = [
    (model, number)
    for model in ("gpt2", "llama", "mixtral", "gemma2", "bert", "vit", "deepseek_v3")
    for number in range(len(annotated(MODELS / model / f"{model}.py")))
]


@pytest.mark.slow  # a process for each
@pytest.mark.parametrize(("model", "number"), WRONG)
def test_a_wrong_annotation_fails_at_each_call_and_names_the_variable(model: str, number: int, tmp_path: Path) -> None:
    leave = shutil.ignore_patterns("__pycache__", "practice", "benchmark", "experiments", "cli", "training")
    shutil.copytree(ROOT / "allformers", tmp_path / "allformers", ignore=leave)
    module = tmp_path / "allformers" / "models" / model / f"{model}.py"
    node = annotated(module)[number]
    lines = module.read_text().splitlines()
    row, source = node.lineno - 1, ast.unparse(node.annotation).replace("'", '"')
    axes = source.split('"')[1]
    assert source in lines[row]
    lines[row] = lines[row].replace(axes, " ".join(reversed(axes.split())), 1)
    module.write_text("\n".join(lines) + "\n")
    found = strictly(tmp_path, model.replace("_", "-"))
    assert len(found) == 2
    for line in found:
        assert " refused: " in line
        assert f"variable `{ast.unparse(node.target)}`" in line
