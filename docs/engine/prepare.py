"""Prepared parts of pages, made before them: experiments' answers, models' costs, the live model's weights.

    python -m docs.engine.prepare

Nobody has to run that: `docs.engine.hooks` does. Each part is a file in `.cache/site` whose name ends in a digest of
what the part depends on: of the modules that its code imports, whatever their comments and docstrings say, and of
files. A part whose file is there is up to date. Each file is written at once, so that to stop half-way loses nothing.
"""

import ast
import functools
import hashlib
import importlib
import json
import multiprocessing
import os
import platform
import re
import signal
import sys
import time
from collections import Counter
from collections.abc import Mapping
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from allformers.checkpoints.atomic import atomic_write
from allformers.experiments import EXPERIMENTS
from allformers.models.registry import READING_ORDER
from docs.engine import CACHE, ROOT

MAKERS = "docs.engine.measure"
"""Where the functions are that make the parts."""

TOLD = {
    "experiment": "experiments",
    "costs": "what models cost",
    "weight_formats": "weight formats",
    "live_weights": "the live model's weights",
}
"""What a part is called while it is made."""

GPT2 = "allformers.models.gpt2.gpt2"
"""What the bundled model is."""


@dataclass(frozen=True)
class Part:
    """A prepared file.

    Attributes:
        kind: the function of `MAKERS` that makes it.
        about: its argument, or nothing.
        modules: where the code begins that it depends on; what they import is found.
        files: other files that it depends on.
        ending: of its file.
    """

    kind: str
    about: str = ""
    modules: tuple[str, ...] = ()
    files: tuple[Path, ...] = ()
    ending: str = "json"

    @property
    def name(self) -> str:
        """The name by which a page asks for it."""
        return f"{self.kind}-{self.about}" if self.about else self.kind

    @property
    def path(self) -> Path:
        """The path of the file made from the present source."""
        found = hashlib.sha256(repr((version("torch"), platform.python_version())).encode())
        for module in sorted(closure((MAKERS, *self.modules), within=MAKERS)):
            found.update(f"{module}\n{code_of(module)}\n".encode())
        for path in self.files:
            found.update(path.read_bytes())
        return CACHE / f"{self.name}.{found.hexdigest()[:16]}.{self.ending}"


def parts() -> list[Part]:
    """Return all prepared parts, the slowest first."""
    bundled = tuple(sorted((ROOT / "allformers" / "bundled").iterdir()))
    experiments = [
        Part("experiment", name, (run.__module__, "allformers.inspection.figures", GPT2), bundled)
        for name, run in EXPERIMENTS.items()
    ]
    loss = ("allformers.training.data", "allformers.training.evaluation", "allformers.training.recipes")
    weight_formats = Part("weight_formats", "", (GPT2, "allformers.speed.linear", *loss), bundled)
    weights = Part("live_weights", "", (GPT2, "docs.engine.live"), bundled, "js")
    costs = [Part("costs", entry.name, (entry.module, "allformers.inspection.summary")) for entry in READING_ORDER]
    return [*experiments, weight_formats, weights, *costs]


def files() -> Mapping[str, Path]:
    """Return the site's files that are no pages, by address: the live model's weights, and sources to read."""
    found = {"generated/weights.js": _places()["live_weights"]}
    for path in sorted(ROOT.glob("allformers/**/*.py")):
        module = ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
        found[f"generated/source/{module}.txt"] = path
    return found


def prepared(name: str) -> Any:
    """Return the contents of a part.

    Raises:
        FileNotFoundError: it has not been prepared from what is there now.
    """
    return _read(_places()[name])


@functools.cache
def _places() -> dict[str, Path]:
    return {part.name: part.path for part in parts()}


@functools.cache
def _read(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


def main() -> None:
    """Make every missing part."""
    _places.cache_clear()
    stale = {part: _places()[part.name] for part in parts() if not _places()[part.name].is_file()}
    if not stale:
        return
    CACHE.mkdir(parents=True, exist_ok=True)
    counted = Counter(TOLD[part.kind] for part in stale)
    told = ", ".join(f"{what} ({count})" if count > 1 else what for what, count in counted.items())
    print(f"Preparing {told} ...", end=" ", file=sys.stderr, flush=True)
    start = time.monotonic()
    processes = min(2, os.cpu_count() or 1, len(stale))
    with ProcessPoolExecutor(processes, mp_context=multiprocessing.get_context("spawn"), initializer=_alone) as pool:
        try:
            running = {pool.submit(_make, part.kind, part.about): part for part in stale}
            for done in as_completed(running):
                _keep(running[done], stale[running[done]], done.result())
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    print(f"{time.monotonic() - start:.0f} s", file=sys.stderr, flush=True)


def _alone() -> None:
    """Limit a process to one thread, as models this small only lose by sharing, and let Ctrl-C end it at once."""
    import torch

    signal.signal(signal.SIGINT, signal.SIG_DFL)
    torch.set_num_threads(1)


def _make(kind: str, about: str) -> str:
    made: str = getattr(importlib.import_module(MAKERS), kind)(*([about] if about else []))
    return made


def _keep(part: Part, path: Path, text: str) -> None:
    """Write a part, and remove its older versions."""
    with atomic_write(path) as draft:
        draft.write_text(text, encoding="utf-8")
    for old in CACHE.glob(f"{part.name}.*"):
        if old != path:
            old.unlink(missing_ok=True)


# -- What a part depends on --------------------------------------------------------------------------------------------


def closure(modules: tuple[str, ...], within: str = "") -> set[str]:
    """Return modules and all that they import, at the top or inside a function, except what `within` imports."""
    found: set[str] = set()
    left = list(modules)
    while left:
        module = left.pop()
        if module not in found:
            found.add(module)
            left += [] if module == within else _imported(module)
    return found


@functools.cache
def _imported(module: str) -> list[str]:
    """Return the modules of this checkout that one imports; a model's folder counts as a whole.

    What is imported by a name in a table, as the registry imports models, is not found: a part has to state it.
    """
    names: set[str] = set()
    for node in ast.walk(_tree(module)):
        match node:
            case ast.ImportFrom(module=str(source), names=aliases):
                names |= {source, *(f"{source}.{alias.name}" for alias in aliases)}
            case ast.Import(names=aliases):
                names |= {alias.name for alias in aliases}
    folder, _, _ = module.rpartition(".")
    if re.fullmatch(r"allformers\.models\.\w+", folder):
        names |= {f"{folder}.{path.stem}" for path in ROOT.joinpath(*folder.split(".")).glob("*.py")}
    return sorted(name for name in names if name.partition(".")[0] in ("allformers", "docs") and _path(name))


def _path(module: str) -> Path | None:
    place = ROOT.joinpath(*module.split("."))
    return next((path for path in (place / "__init__.py", place.with_suffix(".py")) if path.is_file()), None)


@functools.cache
def _tree(module: str) -> ast.Module:
    path = _path(module)
    assert path is not None, module
    return ast.parse(path.read_text(encoding="utf-8"))


@functools.cache
def code_of(module: str) -> str:
    """Return a module's code without comments and docstrings."""
    return syntax(_tree(module))


def syntax(tree: ast.Module) -> str:
    """Return a module's statements, unparsed without comments, line numbers and docstrings."""

    def is_told(node: ast.AST) -> bool:
        return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)

    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            node.body = [inner for inner in node.body if not is_told(inner)]
    return ast.dump(tree)


if __name__ == "__main__":
    main()
