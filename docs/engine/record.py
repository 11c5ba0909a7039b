"""Records for walks: a module's source, cut into statements, and the tensors that a pass makes in each.

The shapes that a page shows are recorded, not written: a pass through the model runs under `sys.settrace`, and each
tensor is noted as soon as the statement that makes it is done.
"""

import ast
import dataclasses
import functools
import importlib
import math
import re
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from torch import Tensor

from allformers.generation.sampling import sample
from allformers.inputs.tokenizers import ByteTokenizer
from allformers.inspection import EvenRouting, meta_model
from allformers.models.gpt2.gpt2 import GPT2, GPT2Config
from allformers.models.registry import READING_ORDER, load
from allformers.nn import rope
from allformers.nn.axes import AXES
from allformers.nn.shapes import unchecked
from allformers.training.loop import Trainer
from allformers.training.recipes import hello_world
from docs.engine.presets import presets

PROMPT = "The for statement is used to iterate"
"""What the bundled model reads in the pages' examples."""


class WalkError(Exception):
    """Error: a page and the module that it explains do not match. The message names the step and the statement."""


@dataclasses.dataclass(frozen=True)
class Unit:
    """A range of lines that is explained together: a class's or function's head, or one statement.

    Attributes:
        symbol: what it belongs to: a class, `Class.method`, a function, or the name that a statement assigns.
        first: its first line in the module, from 1.
        last: its last line.
        is_head: whether it is the part before the statements: decorators, signature, docstring.
    """

    symbol: str
    first: int
    last: int
    is_head: bool


class Module:
    """A module's source, its units, and the tensors that a pass through its model makes."""

    def __init__(self, name: str, source: str | None = None) -> None:
        self.name = name
        self.path = Path(importlib.import_module(name).__file__ or "")
        self.source = self.path.read_text(encoding="utf-8") if source is None else source
        self.lines = self.source.splitlines()
        self.tree = ast.parse(self.source)
        self.units = list(self._cut())

    def _cut(self) -> Iterator[Unit]:
        """Cut the module into units, all but imports and the module's docstring; comments belong to what follows."""
        end = 0
        for node in self.tree.body:
            first, end = end + 1, node.end_lineno or 0
            skipped = _only_imports(node)
            if skipped or (isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and first == 1):
                continue
            if isinstance(node, ast.ClassDef):
                yield from self._cut_class(node, self._start(node, first))
            elif isinstance(node, ast.FunctionDef):
                yield from self._cut_function(node, node.name, self._start(node, first))
            else:
                yield Unit(self._assigned(node), self._start(node, first), end, False)

    def _start(self, node: ast.stmt, earliest: int) -> int:
        """Return the first line of a statement with its decorators and the comments above it, wherever they stand."""
        decorators = getattr(node, "decorator_list", [])
        first = line = min([node.lineno, *(decorator.lineno for decorator in decorators)])
        while line > earliest:
            line -= 1
            text = self.lines[line - 1].lstrip()
            if text.startswith("#"):
                first = line
            elif text:
                break
        return first

    def _cut_class(self, node: ast.ClassDef, first: int) -> Iterator[Unit]:
        head_end = node.lineno
        for member in node.body:
            if isinstance(member, ast.FunctionDef) or self._is_row(member):
                break
            head_end = member.end_lineno or head_end
        yield Unit(node.name, first, head_end, True)
        end = head_end
        for member in node.body:
            if isinstance(member, ast.FunctionDef):
                yield from self._cut_function(member, f"{node.name}.{member.name}", self._start(member, end + 1))
                end = member.end_lineno or end
            elif self._is_row(member):
                yield Unit(node.name, self._start(member, end + 1), member.end_lineno or end, False)
                end = member.end_lineno or end

    @staticmethod
    def _is_row(node: ast.stmt) -> bool:
        """True if a statement of a class is a row of a table: a name assigned from a call."""
        return isinstance(node, ast.Assign) and isinstance(node.value, ast.Call)

    def _cut_function(self, node: ast.FunctionDef, symbol: str, first: int) -> Iterator[Unit]:
        body = node.body
        documented = ast.get_docstring(node) is not None
        head_end = (body[0].end_lineno if documented else body[0].lineno - 1) or first
        while not documented and self.lines[head_end - 1].lstrip().startswith("#"):
            head_end -= 1
        yield Unit(symbol, first, head_end, True)
        end = head_end
        for statement in body[1:] if documented else body:
            yield Unit(symbol, self._start(statement, end + 1), statement.end_lineno or end, False)
            end = statement.end_lineno or end

    def _assigned(self, node: ast.stmt) -> str:
        """Return the name that a module-level statement assigns: `X` or `X.y`; for a string, of the one above."""
        if isinstance(node, ast.Assign | ast.AnnAssign):
            return ast.unparse(node.targets[0] if isinstance(node, ast.Assign) else node.target)
        before = [other for other in self.tree.body if (other.end_lineno or 0) < node.lineno]
        return self._assigned(before[-1]) if before else "?"

    @property
    def functions(self) -> set[str]:
        """Symbols of all functions and methods."""
        return {symbol for symbol, _ in _functions(self.tree)}

    def axes(self) -> list[str]:
        """Return the axes that its patterns and annotations name."""
        strings = [n.value for n in ast.walk(self.tree) if isinstance(n, ast.Constant) and isinstance(n.value, str)]
        named = {word for text in strings if is_pattern(text) for word in re.findall(r"\w+", text)}
        return [axis for axis in AXES if axis in named]

    def text(self, unit: Unit) -> str:
        """Return a unit's source from its first word on, without the comments above it."""
        lines = [line for line in self.lines[unit.first - 1 : unit.last] if not line.lstrip().startswith("#")]
        return " ".join(" ".join(lines).split())

    def find(self, target: str) -> list[Unit]:
        """Return the units that `Symbol`, `Symbol: statement` or `Symbol: first .. last` names.

        A class alone is all of it, methods included; `Class: head` is what stands before its methods.

        Raises:
            WalkError: there is no such symbol, or not exactly one statement that begins so.
        """
        symbol, _, part = (piece.strip() for piece in target.partition(":"))
        own = [unit for unit in self.units if unit.symbol == symbol]
        if not own:
            raise WalkError(f"{self.name} has no {symbol}")
        if not part:
            return [unit for unit in self.units if unit.symbol == symbol or unit.symbol.startswith(f"{symbol}.")]
        if part == "head":
            return [unit for unit in own if unit.is_head]
        places = [self._place(own, symbol, piece.strip()) for piece in part.split(" .. ")]
        return own[places[0] : places[-1] + 1]

    def _place(self, own: list[Unit], symbol: str, beginning: str) -> int:
        if beginning == "head":
            return 0
        found = [i for i, unit in enumerate(own) if not unit.is_head and self.text(unit).startswith(beginning)]
        if len(found) != 1:
            raise WalkError(f"{symbol} has {len(found) or 'no'} statements that begin with {beginning!r}, expected one")
        return found[0]


def _only_imports(node: ast.stmt) -> bool:
    """True if a statement only imports, perhaps for the type checker alone."""
    within = node.body if isinstance(node, ast.If) and not node.orelse else [node]
    return all(isinstance(inner, ast.Import | ast.ImportFrom) for inner in within)


def is_pattern(text: str) -> bool:
    """True if a string names axes and nothing else."""
    words = re.findall(r"\w+", text)
    known = all(word in AXES or word.isdigit() or word == "_" for word in words)
    return known and any(word in AXES for word in words)


@dataclasses.dataclass(frozen=True)
class Made:
    """A tensor that a statement makes.

    Attributes:
        name: the variable; "result" for what a function returns.
        axes: its axes, named; an empty name where it is not known.
        shapes: its shape in a pass through each preset, or in the one example that a module without presets has.
        values: for a model, what it held when the bundled one read `PROMPT`.
    """

    name: str
    axes: tuple[str, ...]
    shapes: Mapping[str, tuple[int, ...]]
    values: Tensor | None


Key = tuple[str, int, str]
"""The function, the line on which the statement begins, and the variable."""

ARGUMENT = 0
"""Stands for the line on which a function gets its arguments."""


PROBE = {
    "vocab_size": 101,
    "context_length": 29,
    "embedding_dim": 70,
    "num_heads": 10,
    "num_kv_heads": 5,
    "head_dim": 22,
    "mlp_dim": 47,
    "num_experts": 19,
    "num_experts_per_token": 6,
}
"""Sizes that are all different, so that a size says which axis it is."""


LAYERS = 6
"""How many layers are run to record shapes. In all models here later layers make what one of the first makes too."""

PROBE_OF: Mapping[str, Mapping[str, int]] = {
    "allformers.models.deepseek_v3.deepseek_v3": {
        "q_latent_dim": 31,
        "kv_latent_dim": 39,
        "nope_head_dim": 41,
        "rope_head_dim": 26,
        "v_head_dim": 21,
        "num_experts": 38,
        "num_shared_experts": 3,
        "num_expert_groups": 2,
        "topk_groups": 1,
        "expert_mlp_dim": 43,
    },
    "allformers.models.vit.vit": {"image_size": 65, "patch_size": 13, "num_channels": 6, "num_labels": 31},
}
"""Sizes that only one model has."""


@functools.cache
def recorded(module: str) -> dict[tuple[str, int], list[Made]]:
    """Return the tensors that a module's statements make, by function and line.

    For a model: one pass for each preset, on the meta device, and one of the bundled model. For another module: its
    function in `EXAMPLES`, if it has one. The first call of each function counts: all layers make the same shapes.
    """
    source = Module(module)
    entry = next((entry for entry in READING_ORDER if entry.module == module), None)
    if entry is None:
        action, sizes = EXAMPLES.get(module, (lambda: None, {}))
        values = _record(source, action)
        shapes = {key: {"example": tuple(tensor.shape)} for key, tensor in values.items()}
        axes = _name_axes(source, {key: tuple(tensor.shape) for key, tensor in values.items()}, sizes, strict=False)
    else:
        shapes, axes, values = _record_model(source, entry.load())
    found: dict[tuple[str, int], list[Made]] = {}
    for key, by_preset in shapes.items():
        if key[1] == ARGUMENT:
            continue
        of_model = values.get(key) if entry else None
        names = axes.get(key, ("",) * len(next(iter(by_preset.values()))))  # no name for what only some presets do
        found.setdefault(key[:2], []).append(Made(key[2], names, by_preset, of_model))
    return found


def _record_model(
    source: Module, model_class: Any
) -> tuple[dict[Key, dict[str, tuple[int, ...]]], dict[Key, tuple[str, ...]], dict[Key, Tensor]]:
    """Return shapes of each preset; axes, named in a pass through a model whose sizes all differ; values."""

    def run(config: Any, batch: int, seq: int) -> dict[Key, Tensor]:
        model = meta_model(model_class, config)
        with EvenRouting():
            return _record(source, lambda: model(model.dummy_input(batch, seq, "meta")))

    shapes: dict[Key, dict[str, tuple[int, ...]]] = {}
    for preset, config in presets(source.name).items():
        few = {"num_layers": min(config.num_layers, LAYERS)}
        shallow = dataclasses.replace(config, **few)
        for key, tensor in run(shallow, 1, config.context_length).items():
            shapes.setdefault(key, {})[preset] = tuple(tensor.shape)
    tiny = next(iter(presets(source.name).values()))
    fields = {field.name for field in dataclasses.fields(tiny)}
    wanted = {**PROBE, **PROBE_OF.get(source.name, {})}
    probe = dataclasses.replace(tiny, **{name: size for name, size in wanted.items() if name in fields})
    named = []
    for batch, seq in ((4, 17), (9, 27)):  # a name that fits by chance fits one of them
        probed = {key: tuple(tensor.shape) for key, tensor in run(probe, batch, seq).items()}
        read = meta_model(model_class, probe).dummy_input(batch, seq, "meta")
        seq = read.shape[1] if read.ndim == 2 else probe.context_length  # an image has as many as it has patches
        sizes = {**probe.axes, "batch": batch, **dict.fromkeys(("seq", "seq_k"), seq)}
        named.append(_name_axes(source, probed, sizes))
    axes = {
        key: tuple(one if one == other else "" for one, other in zip(names, named[1][key], strict=True))
        for key, names in named[0].items()
    }
    model = load("bundled")
    values = _record(source, lambda: model(prompt_ids())) if isinstance(model, model_class) else {}
    return shapes, axes, values


def prompt_ids() -> Tensor:
    """Return the token ids of the pages' example prompt for the bundled model."""
    return torch.tensor([ByteTokenizer().encode(PROMPT)])


def _record(source: Module, action: Callable[[], object]) -> dict[Key, Tensor]:
    """Run a function, and record each tensor as soon as its statement is done."""
    found: dict[Key, Tensor] = {}
    statements = {
        (symbol, statement.lineno): statement
        for symbol, function in _functions(source.tree)
        for statement in function.body
    }
    by_name = {function.name: symbol for symbol, function in _functions(source.tree)}

    def symbol_of(frame: FrameType) -> str:
        owner = frame.f_locals.get("self")
        qualified = f"{type(owner).__name__}.{frame.f_code.co_name}"
        return qualified if any(key[0] == qualified for key in statements) else by_name.get(frame.f_code.co_name, "")

    def note(frame: FrameType, line: int, before: Mapping[str, Any], result: Any) -> None:
        symbol = symbol_of(frame)
        start = max((at for name, at in statements if name == symbol and at <= line), default=0)
        statement = statements.get((symbol, start))
        if statement is None:
            return
        made = {name: frame.f_locals.get(name) for name in _stored(statement)}
        if hasattr(statement, "body"):  # what it has not made yet, or not at all, is still the old one
            made = {name: value for name, value in made.items() if value is not before.get(name)}
        if isinstance(statement, ast.Return):
            made |= dict(_results(result))
        for name, value in made.items():
            if isinstance(value, Tensor):
                found.setdefault((symbol, start, name), value.detach().clone())

    def watch(frame: FrameType, event: str, value: Any) -> Any:
        if frame.f_code.co_filename != str(source.path):
            return None
        line, before = frame.f_lineno, dict(frame.f_locals)
        for name, value in before.items():
            if isinstance(value, Tensor):
                found.setdefault((symbol_of(frame), ARGUMENT, name), value)

        def each(frame: FrameType, event: str, value: Any) -> Any:
            nonlocal line, before
            if event in ("line", "return"):
                note(frame, line, before, value if event == "return" else None)
                if event == "line" and (symbol_of(frame), frame.f_lineno) in statements:
                    before = dict(frame.f_locals)
                line = frame.f_lineno
            return each

        return each

    outer = sys.gettrace()
    with torch.random.fork_rng(), unchecked():
        torch.manual_seed(0)
        sys.settrace(watch)
        try:
            action()
        finally:
            sys.settrace(outer)
    return found


def _results(result: Any) -> Iterator[tuple[str, Any]]:
    """Return a function's results by name: one, or several."""
    if isinstance(result, tuple):
        yield from ((f"result[{number}]", one) for number, one in enumerate(result))
    else:
        yield "result", result


def _functions(tree: ast.Module) -> Iterator[tuple[str, ast.FunctionDef]]:
    for node in tree.body:
        if isinstance(node, ast.FunctionDef):
            yield node.name, node
        elif isinstance(node, ast.ClassDef):
            yield from ((f"{node.name}.{f.name}", f) for f in node.body if isinstance(f, ast.FunctionDef))


def _stored(statement: ast.stmt) -> list[str]:
    """Return the names that a statement assigns, in order; a declaration without a value assigns none."""
    if isinstance(statement, ast.AnnAssign) and statement.value is None:
        return []
    names = [n.id for n in ast.walk(statement) if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Store)]
    return list(dict.fromkeys(names))


def _name_axes(
    source: Module, shapes: Mapping[Key, tuple[int, ...]], sizes: Mapping[str, int], strict: bool = True
) -> dict[Key, tuple[str, ...]]:
    """Return each recorded tensor's axes: from its annotation, else from the pattern that made it, else by size.

    Raises:
        WalkError: an annotation or a pattern does not have the sizes that were recorded, or a size belongs to no axis.
    """
    named: dict[Key, tuple[str, ...]] = {}
    for symbol, function in _functions(source.tree):
        annotated = {
            n.target.id: axes
            for n in ast.walk(function)
            if isinstance(n, ast.AnnAssign) and isinstance(n.target, ast.Name) and (axes := _annotated(n.annotation))
        }
        arguments = {a.arg: axes for a in function.args.args if (axes := _annotated(a.annotation))}
        known = dict(sizes)
        for name, axes in arguments.items():
            if not strict and len(axes) == len(shapes.get((symbol, ARGUMENT, name), ())):
                known |= dict(zip(axes, shapes[symbol, ARGUMENT, name], strict=True))
        for statement in function.body:
            for key in [k for k in shapes if k[:2] == (symbol, statement.lineno)]:
                shape, name = shapes[key], key[2]
                axes = annotated.get(name) or _returned(function, name)
                if axes is None and isinstance(statement, ast.Assign) and (pattern := _pattern(statement.value)):
                    axes = _right(pattern)
                    if isinstance(statement.targets[0], ast.Tuple):  # unpacked along the first
                        axes = axes[1:]
                axes = None if axes and "..." in axes else axes
                axes = axes or _taken_as(function, name) or (None if strict else arguments.get(name))
                axes = axes or _by_size(shape, known)
                if strict:
                    _verify(f"{symbol}: {name}", axes, shape, known)
                named[key] = axes
    return named


def _verify(what: str, axes: tuple[str, ...], shape: tuple[int, ...], sizes: Mapping[str, int]) -> None:
    """Raise an error if axes and shape differ in number, or in sizes as far as they are known."""
    fits = len(axes) == len(shape)
    for axis, size in zip(axes, shape, strict=False):
        names = re.findall(r"[a-z_]+", axis)
        if all(name in sizes for name in names) and names:
            fits = fits and size in (1, math.prod(sizes[name] for name in names))
    if not fits:
        raise WalkError(f"{what} should have the axes ({' '.join(axes)}), but has the shape {shape}")


def _pattern(value: ast.expr) -> str | None:
    """Return the pattern of an einops call."""
    if not isinstance(value, ast.Call):
        return None
    texts = [a.value for a in value.args if isinstance(a, ast.Constant) and isinstance(a.value, str)]
    return next((text for text in texts if "->" in text), None)


def _taken_as(function: ast.FunctionDef, name: str) -> tuple[str, ...] | None:
    """Return the axes of a variable in a later einops call."""
    for node in ast.walk(function):
        if isinstance(node, ast.Call) and (pattern := _pattern(node)):
            for given, side in zip(node.args, pattern.split("->")[0].split(","), strict=False):
                if isinstance(given, ast.Name) and given.id == name:
                    return _side(side)
    return None


def _by_size(shape: tuple[int, ...], sizes: Mapping[str, int]) -> tuple[str, ...]:
    """Name axes by their sizes, where only one has that size; a second axis of positions is that of keys."""
    names: dict[int, list[str]] = {}
    for name, size in sizes.items():
        if name != "seq_k" or "seq" not in sizes:
            names.setdefault(size, []).append(name)
    found: list[str] = []
    for size in shape:
        fitting = names.get(size, [])
        name = fitting[0] if len(fitting) == 1 and size != 1 else ""
        found.append("seq_k" if name == "seq" and "seq" in found else name)
    return tuple(found)


def _annotated(annotation: ast.expr | None) -> tuple[str, ...] | None:
    if isinstance(annotation, ast.Subscript) and isinstance(annotation.slice, ast.Tuple):
        text = annotation.slice.elts[-1]
        if isinstance(text, ast.Constant) and isinstance(text.value, str):
            return tuple(axis.lstrip("#") for axis in text.value.split())
    return None


def _returned(function: ast.FunctionDef, name: str) -> tuple[str, ...] | None:
    """Return the axes in the annotation of a function's result, or of one of several results."""
    place = re.fullmatch(r"result\[(\d+)\]", name)
    if name == "result":
        return _annotated(function.returns)
    if place and isinstance(function.returns, ast.Subscript) and isinstance(function.returns.slice, ast.Tuple):
        return _annotated(function.returns.slice.elts[int(place[1])])
    return None


def _right(pattern: str) -> tuple[str, ...]:
    """Return the axes of a pattern's result, those in brackets together."""
    return _side(pattern.split("->")[1])


def _side(axes: str) -> tuple[str, ...]:
    return tuple(re.findall(r"\([^)]*\)|\S+", axes))


def _example_sampling() -> None:
    with torch.inference_mode():
        logits = load("bundled")(prompt_ids())[0, -2:]
        sample(logits, temperature=0)
        sample(logits, 0.8, top_k=40, top_p=0.9)


def _example_generation() -> None:
    model, encode = load("bundled"), ByteTokenizer().encode
    model.generate_batch([encode("The for statement"), encode("A class")], max_new_tokens=3, seed=0, stop_tokens=[0])
    model.generate(prompt_ids(), max_new_tokens=3, seed=0)


def _example_training() -> None:
    text = torch.tensor(ByteTokenizer().encode(PROMPT * 20))
    recipe = dataclasses.replace(hello_world(), model=GPT2Config.tiny(), batch_size=8, micro_batch_size=4)
    Trainer(GPT2(recipe.model), text, recipe).train_step()


def _example_rotary() -> None:
    x, places = torch.randn(2, 4, 17, 32), torch.arange(17)
    inv_freq = rope.default_inv_freq(32, 10000.0)
    cos, sin = rope.rope_cos_sin(places, rope.llama3_inv_freq(inv_freq, 8.0, 1.0, 4.0, 8192))
    rope.apply_rope(x, cos, sin)
    rope.yarn_inv_freq(inv_freq, 10000.0, 40.0, 32.0, 1.0, 4096)
    length = places[-1] + 1
    rope.dynamic_inv_freq(32, 10000.0, 2.0, 12, length, torch.float32)
    rope.longrope_inv_freq(inv_freq, [1.0] * 16, [1.0 + pair / 4 for pair in range(16)], 12, length)


EXAMPLES: Mapping[str, tuple[Callable[[], object], Mapping[str, int]]] = {
    "allformers.generation.sampling": (_example_sampling, {}),
    "allformers.generation.decoder": (_example_generation, {"batch": 2, "seq": 17, "embed": 128}),
    "allformers.generation.generate": (_example_generation, {"batch": 2, "seq": 17, "embed": 128}),
    "allformers.nn.cache": (_example_generation, {"batch": 2, "heads": 4, "seq": 17, "head_dim": 32}),
    "allformers.nn.rope": (_example_rotary, {"batch": 2, "heads": 4, "seq": 17, "head_dim": 32, "pair": 16}),
    "allformers.training.loop": (_example_training, {"batch": 8, "seq": 83, "vocab": 256}),
}
"""What is run to record the shapes of a module that is not a model, and the sizes of axes that it does not name."""
