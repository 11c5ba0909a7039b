"""The rules of the house, read off the source of every module: named operations, named axes, checks, imports, docs."""

import ast
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

from allformers.models.registry import READING_ORDER
from allformers.nn.axes import AXES
from allformers.practice.named import UNNAMED, violations

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "allformers"
MODULES = sorted(PACKAGE.rglob("*.py"))

NAMED_ONLY = [
    *sorted((PACKAGE / "models").rglob("*.py")),
    *sorted((PACKAGE / "practice" / "exercises").glob("*.py")),
    *(p for room in ("nn", "generation", "speed", "inspection") for p in sorted((PACKAGE / room).glob("*.py"))),
]
"""Where every operation that rearranges, joins, splits or contracts axes has to be a named one."""

LOCAL_AXES = {
    "_": "any axis",
    "...": "any number of axes",
    "inputs": "of a linear layer, whose widths are whatever its user makes them",
    "outputs": "of a linear layer",
    "groups": "of its weights, each with one scale",
    "nibble": "the two halves of a byte",
    "half": "half a group: one weight in each byte's lower half, or upper half",
    "window": "the last positions of a text that fit the context",
    "total": "a prompt and its continuation together",
    "stops": "stop tokens",
    "text": "positions of a whole corpus",
    "train_seq": "the part of a corpus to learn from",
    "validation_seq": "the part of a corpus to measure on",
    "positions": "any number of axes of positions",
    "width": "whatever a norm normalises",
    "routed": "the tokens that one expert gets",
    "selected": "the rows of a batch that a cache keeps",
    "best": "the strongest experts of a group",
}
"""Names beside the vocabulary: of generic code, and of axes that only one function has."""


@cache
def tree(module: Path) -> ast.Module:
    return ast.parse(module.read_text(encoding="utf-8"), str(module))


def where(module: Path, line: int) -> str:
    """A place, as an editor opens it."""
    return f"{module.relative_to(ROOT)}:{line}"


def test_operations_on_axes_are_named() -> None:
    found = [f"{where(module, line)}: {what}" for module in NAMED_ONLY for line, what in violations(tree(module))]
    assert found == []


def test_unnamed_operations_are_found() -> None:
    lines = [f"y = x.{name}(0)" for name in sorted(UNNAMED)]
    lines += [
        "y = x @ x",
        "y = x[None]",
        "y = x[:, None]",
        "torch.matmul(x, x)",
        "x.split(2)",
        "y = x.T",
        "nn.TransformerEncoder()",
    ]
    for line in lines:
        assert list(violations(ast.parse(line))), line


def test_named_operations_are_allowed() -> None:
    lines = ['rearrange(x, "a b -> b a")', 'repeat(x, "a -> a b", b=2)', 'einsum(x, y, "a b, b c -> a c")', "x[:, 1:]"]
    lines += ['"a b".split()', 'name.split(".")', 'pattern.split("->")']
    lines += ["torch.cat([x, x], dim=1)", "F.softmax(x, dim=-1)", "x[..., :3, :]", "f: Callable[[int], None]"]
    for line in lines:
        assert not list(violations(ast.parse(line))), line


def axis_names(module: Path) -> Iterator[tuple[int, str]]:
    """Every axis named in an einops pattern, a weight table or a jaxtyping annotation."""
    for node in ast.walk(tree(module)):
        written: list[ast.expr] = []
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
            if node.func.id in {"rearrange", "repeat", "reduce"}:
                written = node.args[1:2]
            elif node.func.id == "einsum":
                written = node.args[-1:]
            elif node.func.id in {"Weight", "linear", "norm"}:
                written = node.args[2:3]
        elif (
            isinstance(node, ast.Subscript)
            and isinstance(node.value, ast.Name)
            and node.value.id in {"Float", "Int", "Integer", "Bool", "Shaped"}
            and isinstance(node.slice, ast.Tuple)
        ):
            written = node.slice.elts[1:]
        for text in written:
            if isinstance(text, ast.Constant) and isinstance(text.value, str):
                for name in re.findall(r"\.\.\.|\w+", text.value):
                    if not name.isdigit():
                        yield text.lineno, name


def test_every_axis_is_in_the_vocabulary() -> None:
    known = AXES.keys() | LOCAL_AXES
    named = [(where(module, line), name) for module in MODULES for line, name in axis_names(module)]
    assert [(place, name) for place, name in named if name not in known] == []


def test_the_vocabulary_is_used() -> None:
    assert AXES.keys() & LOCAL_AXES == set()
    used = {name for module in MODULES for _, name in axis_names(module)}
    assert set(AXES) - used == set()
    assert set(LOCAL_AXES) - used == set()


def functions(source: ast.Module) -> Iterator[ast.FunctionDef]:
    """Functions of a module and methods of its classes, but not functions inside functions."""
    for node in source.body:
        body = node.body if isinstance(node, ast.ClassDef) else [node]
        yield from (inner for inner in body if isinstance(inner, ast.FunctionDef))


def takes_named_tensors(function: ast.FunctionDef) -> bool:
    arguments = function.args
    annotations = [a.annotation for a in [*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs]]
    annotations += [function.returns, arguments.vararg.annotation if arguments.vararg else None]
    names = {node.id for a in annotations if a is not None for node in ast.walk(a) if isinstance(node, ast.Name)}
    return bool(names & {"Float", "Int", "Integer", "Bool", "Shaped"})


def test_every_function_with_named_tensors_checks_them() -> None:
    unchecked = [
        f"{where(module, function.lineno)}: {function.name}"
        for module in MODULES
        for function in functions(tree(module))
        if takes_named_tensors(function)
        and "checked" not in {d.id for d in function.decorator_list if isinstance(d, ast.Name)}
    ]
    assert unchecked == []


@pytest.mark.parametrize(
    ("statement", "unwanted"),
    [
        ("import allformers.cli", {"torch", "transformers", "tiktoken", "matplotlib"}),
        (
            "import allformers, allformers.training.recipes; allformers.load('bundled')",
            {"huggingface_hub", "matplotlib", "pooch", "tiktoken", "torch._dynamo", "transformers"},
        ),
    ],
)
def test_imports_stay_light(statement: str, unwanted: set[str]) -> None:
    code = f"import sys; {statement}; print(' '.join(sys.modules))"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert unwanted & set(loaded) == set()


def layers(name: str) -> list[str]:
    """The layers of a contract about imports whose name begins so, lowest first."""
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["importlinter"]
    (contract,) = (one for one in settings["contracts"] if one["type"] == "layers" and one["name"].startswith(name))
    return contract["layers"][::-1]


def test_the_contract_about_models_has_all_of_them_in_reading_order() -> None:
    assert layers("Models") == [entry.module.split(".")[2] for entry in READING_ORDER]
    assert set(layers("Models")) == {path.parent.name for path in PACKAGE.glob("models/*/__init__.py")}


def test_the_contract_about_rooms_has_all_of_them() -> None:
    named = {room.strip().removeprefix("allformers.") for layer in layers("Rooms") for room in layer.split("|")}
    assert named == {path.parent.name for path in PACKAGE.glob("*/__init__.py")}


def undocumented(module: Path) -> Iterator[str]:
    """What is public in a module and has no docstring."""
    source = tree(module)
    if source.body and not ast.get_docstring(source):
        yield f"{where(module, 1)}: the module"
    for node in source.body:
        members = node.body if isinstance(node, ast.ClassDef) else []
        for item in [node, *members]:
            named = isinstance(item, ast.FunctionDef | ast.ClassDef) and not item.name.startswith("_")
            inside_private = isinstance(node, ast.ClassDef) and node.name.startswith("_")
            if named and not inside_private and not ast.get_docstring(item):
                yield f"{where(module, item.lineno)}: {item.name}"


def test_everything_public_is_documented() -> None:
    assert [what for module in MODULES for what in undocumented(module)] == []
