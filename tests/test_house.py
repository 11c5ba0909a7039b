"""The rules of the house, read off the source of every module: named operations, named axes, checks, imports, docs."""

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

from allformers.models import READING_ORDER
from allformers.practice.named import UNNAMED, violations
from allformers.shapes import AXES

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "allformers"
MODULES = sorted(PACKAGE.rglob("*.py"))

NAMED_ONLY = [
    *sorted((PACKAGE / "models").rglob("*.py")),
    *sorted((PACKAGE / "practice" / "exercises").glob("*.py")),
    *(PACKAGE / f"{n}.py" for n in ("sampling", "generation", "cache", "rotary", "speed")),
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
    "tokens": "positions of all sequences, in one row",
    "members": "the experts of one group",
    "best": "the strongest of them",
    "some": "the tokens that one expert gets",
}
"""Names for generic code, which no model uses."""

MAY_IMPORT = {
    "__init__": {"models", "checkpoints"},
    "__main__": {"cli"},
    "shapes": set(),
    "files": set(),
    "images": {"checkpoints", "shapes"},
    "linear": set(),
    "speed": {"cache", "generation", "linear", "shapes"},
    "cache": {"shapes"},
    "rotary": {"configuration", "shapes"},
    "sampling": {"shapes"},
    "generation": {"cache", "sampling", "shapes"},
    "checkpoints": {"files", "shapes"},
    "configuration": set(),
    "models": {"checkpoints"},
    "tokenizers": {"checkpoints"},
    "training": {"checkpoints", "files", "generation", "shapes", "tokenizers"},
    "inspection": {"checkpoints", "linear", "shapes"},
    "recipes": {"checkpoints", "inspection", "linear", "models", "tokenizers", "training"},
    "figures": {"inspection", "tokenizers", "training"},
    "experiments": {
        *(
            "cache",
            "figures",
            "inspection",
            "models",
            "recipes",
            "rotary",
            "sampling",
            "shapes",
            "tokenizers",
            "training",
        ),
    },
    "bench": {"checkpoints", "linear", "models", "recipes", "shapes", "speed", "training"},
    "practice": {"__init__", "files", "inspection", "models", "rotary", "sampling", "shapes", "tokenizers", "training"},
    "cli": {
        *(
            "__init__",
            "bench",
            "checkpoints",
            "experiments",
            "figures",
            "images",
            "inspection",
            "models",
            "practice",
            "recipes",
            "speed",
            "tokenizers",
            "training",
        ),
    },
}
"""What each module may import of the package."""
MODELS_MAY_IMPORT = {"cache", "checkpoints", "configuration", "generation", "linear", "rotary", "shapes"}


@cache
def tree(module: Path) -> ast.Module:
    return ast.parse(module.read_text(encoding="utf-8"), str(module))


@pytest.mark.parametrize("module", NAMED_ONLY, ids=lambda module: str(module.relative_to(ROOT)))
def test_operations_on_axes_are_named(module: Path) -> None:
    assert [f"{module.relative_to(ROOT)}:{line}: {what}" for line, what in violations(tree(module))] == []


def test_unnamed_operations_are_found() -> None:
    lines = [f"y = x.{name}(0)" for name in sorted(UNNAMED)]
    lines += ["y = x @ x", "y = x[None]", "y = x[:, None]", "torch.matmul(x, x)", "y = x.T", "nn.TransformerEncoder()"]
    for line in lines:
        assert list(violations(ast.parse(line))), line


def test_named_operations_are_allowed() -> None:
    lines = ['rearrange(x, "a b -> b a")', 'repeat(x, "a -> a b", b=2)', 'einsum(x, y, "a b, b c -> a c")', "x[:, 1:]"]
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


@pytest.mark.parametrize("module", MODULES, ids=lambda module: str(module.relative_to(ROOT)))
def test_every_axis_is_in_the_vocabulary(module: Path) -> None:
    unknown = {(line, name) for line, name in axis_names(module) if name not in AXES and name not in LOCAL_AXES}
    assert unknown == set()


def test_the_vocabulary_is_used() -> None:
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


@pytest.mark.parametrize("module", MODULES, ids=lambda module: str(module.relative_to(ROOT)))
def test_every_function_with_named_tensors_checks_them(module: Path) -> None:
    unchecked = [
        function.name
        for function in functions(tree(module))
        if takes_named_tensors(function)
        and "checked" not in {d.id for d in function.decorator_list if isinstance(d, ast.Name)}
    ]
    assert unchecked == []


def imports(module: Path, *, everywhere: bool = True) -> set[str]:
    """The modules that a module imports; only at its top level if not `everywhere`. Imports for typing do not count."""
    found = set()
    nodes = ast.walk(tree(module)) if everywhere else iter(tree(module).body)
    typing_only = {
        inner
        for node in ast.walk(tree(module))
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"
        for inner in ast.walk(node)
    }
    for node in nodes:
        if node in typing_only:
            continue
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return found


def room(name: str) -> str | None:
    """Which part of the package a dotted name belongs to; None if to none of them."""
    parts = name.split(".")
    if parts[0] != "allformers":
        return None
    if len(parts) == 1:
        return "__init__"
    return parts[1] if parts[1] in MAY_IMPORT else None


@pytest.mark.parametrize("module", MODULES, ids=lambda module: str(module.relative_to(ROOT)))
def test_imports_go_downwards_only(module: Path) -> None:
    path = module.relative_to(PACKAGE)
    imported = {part for name in imports(module) if (part := room(name))}
    imported.discard("__init__") if any(name.startswith("allformers.") for name in imports(module)) else None
    if path.parts[0] == "models" and len(path.parts) > 2:
        entries = [entry.module for entry in READING_ORDER]
        own = "allformers." + ".".join(path.with_suffix("").parts)
        others = {name for name in imports(module) if name in entries}
        assert imported - {"models"} <= MODELS_MAY_IMPORT
        if own in entries:
            assert others <= set(entries[: entries.index(own)])
    else:
        name = path.parts[0] if len(path.parts) > 1 else path.stem
        assert name in MAY_IMPORT, f"{path} is a new room: say in MAY_IMPORT what it may import"
        assert imported - {name} <= MAY_IMPORT[name]


def test_only_the_benchmark_imports_the_reference_and_only_when_it_runs() -> None:
    for module in MODULES:
        named = {name.split(".")[0] for name in imports(module)}
        assert module.stem == "bench" or "transformers" not in named, module
        assert "transformers" not in {name.split(".")[0] for name in imports(module, everywhere=False)}, module
        assert module.stem == "figures" or "matplotlib" not in named, module


@pytest.mark.parametrize(
    ("statement", "unwanted"),
    [
        ("import allformers", {"torch", "transformers", "tiktoken", "einops", "numpy"}),
        ("import allformers.cli", {"torch", "transformers", "tiktoken", "matplotlib"}),
        ("import allformers.recipes", {"transformers", "tiktoken", "huggingface_hub", "matplotlib", "pooch"}),
        ("import allformers.models.gpt2.gpt2", {"transformers", "tiktoken", "huggingface_hub", "torch._dynamo"}),
        ("import allformers; allformers.load('bundled')", {"transformers", "huggingface_hub", "torch._dynamo"}),
    ],
)
def test_imports_stay_light(statement: str, unwanted: set[str]) -> None:
    code = f"import sys; {statement}; print(' '.join(sys.modules))"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert unwanted & set(loaded) == set()


@pytest.mark.parametrize("module", MODULES, ids=lambda module: str(module.relative_to(ROOT)))
def test_everything_public_is_documented(module: Path) -> None:
    source = tree(module)
    if not source.body:
        return
    bare = [] if ast.get_docstring(source) else ["the module"]
    for node in source.body:
        members = node.body if isinstance(node, ast.ClassDef) else []
        for item in [node, *members]:
            named = isinstance(item, ast.FunctionDef | ast.ClassDef) and not item.name.startswith("_")
            inside_private = isinstance(node, ast.ClassDef) and node.name.startswith("_")
            if named and not inside_private and not ast.get_docstring(item):
                bare.append(item.name)
    assert bare == []


def test_the_top_level_holds_what_it_should_and_nothing_else() -> None:
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=False)
    if listed.returncode:
        pytest.skip("not a git checkout")
    top = {Path(line).parts[0] for line in listed.stdout.splitlines()}
    allowed = {"pyproject.toml", "allformers", "docs", "tests", "mkdocs.yml", "README.md", "LICENSE"}
    assert {name for name in top if not name.startswith(".")} - allowed == set()
