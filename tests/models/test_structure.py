"""How model files are written: what they import, what stands where, and how deep classes go."""

import ast
import dataclasses
import importlib
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from torch import nn

from allformers.models.registry import READING_ORDER, Entry
from allformers.nn.config import Config

MODELS = Path(__file__).parents[2] / "allformers" / "models"
NN = MODELS.parent / "nn"
FOLDERS = [entry.module.split(".")[2] for entry in READING_ORDER]
SOURCES = sorted([*MODELS.rglob("*.py"), *NN.glob("*.py")])


@cache
def tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"), str(path))


def where(path: Path, node: ast.AST) -> str:
    """A place, as an editor opens it."""
    return f"{path.relative_to(MODELS.parents[1])}:{getattr(node, 'lineno', 1)}"


def functions(path: Path) -> Iterator[ast.FunctionDef]:
    """All functions of a file, methods and inner ones included."""
    return (node for node in ast.walk(tree(path)) if isinstance(node, ast.FunctionDef))


def arguments(function: ast.FunctionDef | ast.Lambda) -> list[ast.arg]:
    """All arguments of a function."""
    given = function.args
    others = [one for one in (given.vararg, given.kwarg) if one is not None]
    return [*given.posonlyargs, *given.args, *given.kwonlyargs, *others]


def imported(path: Path) -> Iterator[str]:
    """All modules that a file imports, wherever it does so."""
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.Import):
            yield from (name.name for name in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, where(path, node)
            yield str(node.module)


# How deep


def depth(part: type) -> int:
    """The number of classes, from a class up, that models define."""
    return sum(base.__module__.startswith("allformers.models.") for base in part.__mro__)


def classes(entry: Entry) -> list[Any]:
    """A model and its variants."""
    return [entry.load(), *entry.load().checkpoint_format().variants()]


@pytest.mark.parametrize("entry", READING_ORDER, ids=lambda entry: entry.name)
def test_a_model_and_each_of_its_parts_is_at_most_three_classes_deep(entry: Entry) -> None:
    for model_class in classes(entry):
        model = model_class(model_class.checkpoint_format().config_class.tiny())
        assert {type(part).__name__: depth(type(part)) for part in model.modules() if depth(type(part)) > 3} == {}
        assert depth(model_class) >= 1


def test_no_class_of_a_model_file_goes_deeper_than_three() -> None:
    """Those too that the smallest configurations do not use. Configurations may, since each only changes numbers."""
    found = []
    for path in MODELS.glob("*/*.py"):
        module = importlib.import_module(f"allformers.models.{path.parent.name}.{path.stem}".removesuffix(".__init__"))
        parts = [one for one in vars(module).values() if isinstance(one, type) and issubclass(one, nn.Module)]
        found += [part.__qualname__ for part in parts if depth(part) > 3]
    assert found == []


# What stands where


def is_configuration(node: ast.stmt) -> bool:
    """Whether a statement is a configuration, or names a type for one."""
    if isinstance(node, ast.ClassDef):
        return any(isinstance(one, ast.Call) and ast.unparse(one.func) == "dataclass" for one in node.decorator_list)
    if isinstance(node, ast.Assign):
        return isinstance(node.value, ast.Subscript) and ast.unparse(node.value.value) in {"Literal", "Annotated"}
    return False


def computes(node: ast.stmt) -> bool:
    """Whether a statement is a part of a model, or a function."""
    return isinstance(node, ast.FunctionDef) or (isinstance(node, ast.ClassDef) and not is_configuration(node))


@pytest.mark.parametrize("folder", FOLDERS)
def test_between_the_imports_and_what_computes_stands_the_configuration_alone(folder: str) -> None:
    path = MODELS / folder / f"{folder}.py"
    docstring, *statements = tree(path).body
    assert isinstance(docstring, ast.Expr)
    imports = [place for place, node in enumerate(statements) if isinstance(node, ast.Import | ast.ImportFrom)]
    assert imports == list(range(len(imports)))  # at the top, in one piece
    rest = statements[len(imports) :]
    first = next(place for place, node in enumerate(rest) if computes(node))
    assert first >= 1
    assert [where(path, node) for node in rest[:first] if not is_configuration(node)] == []
    assert [where(path, node) for node in rest[first:] if not computes(node)] == []  # no constants, no tables


@pytest.mark.parametrize("folder", FOLDERS)
def test_a_configuration_is_one_and_its_methods_make_sizes_or_axes(folder: str) -> None:
    module = importlib.import_module(f"allformers.models.{folder}.{folder}")
    made = [one for one in vars(module).values() if isinstance(one, type) and issubclass(one, Config)]
    own = [one for one in made if one.__module__ == module.__name__]
    assert own
    for config_class in own:
        assert dataclasses.is_dataclass(config_class)
        assert config_class.__dataclass_params__.frozen  # type: ignore[attr-defined]
        assert all(field.kw_only for field in dataclasses.fields(config_class))


ALLOWED = {"torch", "einops", "jaxtyping", *sys.stdlib_module_names}
BASES = {"allformers.generation.decoder", "allformers.checkpoints.pretrained"}


@pytest.mark.parametrize("folder", FOLDERS)
def test_a_model_file_imports_what_models_share_and_earlier_models(folder: str) -> None:
    earlier = {f"allformers.models.{one}.{one}" for one in FOLDERS[: FOLDERS.index(folder)]}
    path = MODELS / folder / f"{folder}.py"
    found = {
        name
        for name in imported(path)
        if name.split(".")[0] not in ALLOWED and not name.startswith("allformers.nn.") and name not in earlier
    }
    assert found <= BASES
    assert len(found) <= 1


@pytest.mark.parametrize("folder", FOLDERS)
def test_the_tables_import_their_kinds_of_rows_their_model_and_earlier_tables(folder: str) -> None:
    earlier = {f"allformers.models.{one}.checkpoint" for one in FOLDERS[: FOLDERS.index(folder)]}
    own = {f"allformers.models.{folder}.{path.stem}" for path in (MODELS / folder).glob("*.py")}
    for_errors = {"allformers.checkpoints", "allformers.messages"}
    allowed = {"allformers.checkpoints.tables", *for_errors, *own, *earlier}
    found = set(imported(MODELS / folder / "checkpoint.py")) - allowed
    assert {name for name in found if name.split(".")[0] not in sys.stdlib_module_names} == set()


def test_a_folder_holds_a_model_its_tables_and_no_more() -> None:
    there = {path.relative_to(MODELS).as_posix() for path in MODELS.rglob("*.py")}
    expected = {f"{one}/{file}.py" for one in FOLDERS for file in ("__init__", one, "checkpoint")}
    assert there == expected | {"__init__.py", "registry.py", "gpt2/variants.py", "mistral/variants.py"}


# Names and types


def test_a_configuration_has_a_type() -> None:
    found = [
        where(path, argument)
        for path in SOURCES
        for function in functions(path)
        for argument in arguments(function)
        if argument.arg == "config" and (argument.annotation is None or ast.unparse(argument.annotation) == "Any")
    ]
    assert found == []


def test_an_axis_has_one_name() -> None:
    """Queries stand along `seq`, and keys along `seq_k`."""
    assert [str(path) for path in SOURCES if "seq_q" in path.read_text(encoding="utf-8")] == []


@pytest.mark.parametrize("entry", READING_ORDER, ids=lambda entry: entry.name)
def test_a_model_takes_the_configuration_of_its_own_type(entry: Entry) -> None:
    for model_class in classes(entry):
        config_class = model_class.checkpoint_format().config_class
        model = model_class(config_class.tiny())
        assert type(model.config) is config_class
        for path, part in model.named_modules():
            assert type(getattr(part, "config", model.config)) is config_class, path
            assert set(vars(part).get("axes", {})) <= set(model.config.axes) | {"expert_mlp"}, path


def test_the_tests_of_structure_notice() -> None:
    """What each of them looks for is found where it is."""
    constant, table, helper = ast.parse("A = 1\nB = {'a': 1}\ndef c(): ...").body
    assert not any(is_configuration(node) or computes(node) for node in (constant, table))
    assert computes(helper)
    source = "A = Literal['b']\n@dataclass(frozen=True)\nclass C: ...\nclass D(nn.Module): ..."
    alias, config, part = ast.parse(source).body
    assert [is_configuration(node) for node in (alias, config, part)] == [True, True, False]
    deep = type("Deep", (type("Deeper", (READING_ORDER[3].load(),), {"__module__": "allformers.models.x"}),), {})
    assert depth(deep) == 4
