"""Trace of a pass: every named operation of a model in order, with the size of every axis.

Each `rearrange`, `repeat`, `reduce` and `einsum` says in its pattern what it does to which axes, and each linear layer
is an `einsum` of its input with a weight whose axes the model's weight table names. So a pass through the model is a
list that can be read, counted and added up:

    >>> import allformers
    >>> traced = trace(allformers.load("bundled"), torch.tensor([list(b"The for statement")]))
    >>> traced.operations[-1].pattern
    'batch seq embed, vocab embed -> batch seq vocab'
"""

import contextlib
import json
import math
import re
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import FrameType, ModuleType
from typing import Any, NamedTuple

import einops
import torch
import torch.nn.functional as F
from einops.parsing import ParsedExpression
from torch import Tensor, nn

from allformers.checkpoints.loading import weight_axes
from allformers.inspection.summary import EvenRouting
from allformers.nn.shapes import checked

EINOPS: Mapping[str, Callable[..., Any]] = {
    name: getattr(einops, name) for name in ("rearrange", "repeat", "reduce", "einsum")
}

LINEAR: Callable[..., Tensor] = F.linear

_lock = threading.RLock()


class Operation(NamedTuple):
    """One named operation of a pass.

    Attributes:
        module: the path of the module that runs it, itself or in a function that it calls; empty for the model itself.
        function: the method or function in whose code it is.
        file: the source file, relative to the package.
        line: its line in that file.
        kind: rearrange, repeat, reduce, einsum, or linear for a product with a weight, of a layer or of an expert.
        pattern: the einops pattern; of a linear layer, the einsum that it is.
        sizes: the size of each axis in the pattern.
        flops: multiplications and additions, counted separately, of products that are summed; 0 for all else.
        bytes_read: bytes of its arguments.
        bytes_written: bytes of its result; 0 if that is a view of an argument.
        milliseconds: its duration; None on the meta device.
    """

    module: str
    function: str
    file: str
    line: int
    kind: str
    pattern: str
    sizes: Mapping[str, int]
    flops: int
    bytes_read: int
    bytes_written: int
    milliseconds: float | None


@dataclass(frozen=True)
class Trace:
    """The operations of one pass, in order.

    Attributes:
        operations: all of them.
        title: the name of the trace.
    """

    operations: tuple[Operation, ...]
    title: str = ""

    @property
    def flops(self) -> int:
        """FLOPs of all operations."""
        return sum(operation.flops for operation in self.operations)

    def by_module(self) -> dict[str, int]:
        """Return the FLOPs of each module that has operations of its own, in the order of the pass."""
        totals: Counter[str] = Counter()
        for operation in self.operations:
            totals[operation.module] += operation.flops
        return dict(totals)

    def by_kind_of_module(self) -> dict[str, int]:
        """Return FLOPs as in `by_module`, with layers merged: `*` stands for their numbers."""
        totals: Counter[str] = Counter()
        for operation, count in self.collapsed():
            totals[operation.module] += operation.flops * count
        return dict(totals)

    def collapsed(self) -> list[tuple[Operation, int]]:
        """Return the operations with equal layers merged: each with its count, and `*` for the layers' numbers.

        Times are summed.
        """
        merged: dict[tuple[Any, ...], tuple[Operation, int]] = {}
        for operation in self.operations:
            path = ".".join("*" if step.isdigit() else step for step in operation.module.split("."))
            key = (path, *operation[1:6], tuple(operation.sizes.items()), *operation[7:10])
            before, count = merged.get(key, (operation._replace(module=path, milliseconds=None), 0))
            if operation.milliseconds is not None:
                before = before._replace(milliseconds=(before.milliseconds or 0.0) + operation.milliseconds)
            merged[key] = (before, count + 1)
        return list(merged.values())

    def to_json(self) -> str:
        """Return the trace as JSON: an object with the title, the totals and the list of operations."""
        content = {
            "title": self.title,
            "flops": self.flops,
            "flops_by_module": self.by_module(),
            "operations": [{**operation._asdict(), "sizes": dict(operation.sizes)} for operation in self.operations],
        }
        return json.dumps(content, indent=2)

    def to_mermaid(self) -> str:
        """Return a Mermaid diagram: operations in order, framed by module, equal layers drawn once."""
        lines, edges, frames = ["flowchart TD"], [], Counter[str]()
        rows = self.collapsed()
        previous = ""
        for number, (operation, count) in enumerate(rows):
            if operation.module != previous or number == 0:
                if number:
                    lines.append("  end")
                frames[operation.module] += 1
                name = (operation.module or "model") + (f" x {count}" if count > 1 else "")
                lines.append(f'  subgraph s{number} ["{name}"]')
                previous = operation.module
            sizes = ", ".join(f"{axis} {size:,}" for axis, size in operation.sizes.items())
            pattern = operation.pattern.replace("->", "→")
            lines.append(f'    o{number}["<b>{operation.kind}</b><br>{pattern}<br>{sizes}"]')
            if number:
                edges.append(f"  o{number - 1} --> o{number}")
        return "\n".join([*lines, "  end", *edges]) + "\n"


@checked
def trace(model: nn.Module, token_ids: Tensor, title: str = "", **options: Any) -> Trace:
    """Run a model once and record its named operations.

    On the meta device (see `meta_model`) nothing is computed: the largest models can be traced, but there are no times.
    What other threads compute meanwhile is not recorded, and of several traces one runs at a time.

    Args:
        model: any model of this package.
        token_ids: its input.
        title: a name for the trace; the class's by default.
        options: passed on to the model, such as `cache`.
    """
    recorder = _Recorder(model, token_ids.device)
    with _lock, torch.inference_mode(), EvenRouting(), _recording(recorder):
        model(token_ids, **options)
    return Trace(tuple(recorder.operations), title or type(model).__name__)


class _Recorder:
    """Records the operations of a pass."""

    def __init__(self, model: nn.Module, device: torch.device) -> None:
        self.operations: list[Operation] = []
        self.device = device
        self.thread = threading.get_ident()
        self.paths = {module: path for path, module in model.named_modules()}
        self.root = Path(__file__).parents[1]
        config: Any = model.config
        axes = weight_axes(model)  # type: ignore[arg-type]
        self.sizes: Mapping[str, int] = config.axes
        self.weights = {
            parameter.untyped_storage()._cdata: (parameter, axes[name])
            for name, parameter in model.named_parameters()
            if name in axes
        }
        self.linear_layers = [module for module in model.modules() if isinstance(module, nn.Linear)]
        self.in_layer = False

    def now(self) -> float:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        return time.perf_counter() * 1e3

    def einops(self, kind: str, *arguments: Any, **sizes: Any) -> Any:
        """Run an einops operation, and record it."""
        if threading.get_ident() != self.thread:
            return EINOPS[kind](*arguments, **sizes)
        start = self.now()
        result = EINOPS[kind](*arguments, **sizes)
        elapsed = self.now() - start
        tensors, pattern = (arguments[:-1], arguments[-1]) if kind == "einsum" else (arguments[:1], arguments[1])
        left, right = pattern.split("->")
        inputs = [tensor for group in tensors for tensor in (group if isinstance(group, list | tuple) else [group])]
        found: dict[str, int] = {name: size for name, size in sizes.items() if isinstance(size, int)}
        for side, tensor in (*zip(left.split(","), tensors, strict=True), (right, result)):
            found |= _sizes(side, tensor, found)
        summed = kind == "einsum" and _named(left, found).keys() > _named(right, found).keys()
        flops = 2 * math.prod(_named(left, found).values()) if summed else 0
        self.record(kind, " ".join(pattern.split()), _named(pattern, found), flops, inputs, result, elapsed)
        return result

    def layer(self, layer: nn.Linear, original: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
        """Apply a linear layer, however it is implemented, and record it."""
        if threading.get_ident() != self.thread:
            return original(x)
        self.in_layer = True
        try:
            return self.product(partial(original, x), x, layer.weight, layer.bias)
        finally:
            self.in_layer = False

    def linear(self, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        """Run `F.linear`, and record it unless a layer calls it, which is recorded itself."""
        original = partial(LINEAR, x, weight, bias)
        recorded = threading.get_ident() == self.thread and not self.in_layer
        return self.product(original, x, weight, bias) if recorded else original()

    def product(self, original: Callable[[], Tensor], x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """Multiply by a weight, and record it as the einsum that it is."""
        start = self.now()
        result = original()
        elapsed = self.now() - start
        owner = self.owner(_caller(sys._getframe(1), self.root))
        axes = self.axes_of(weight, owner)
        if axes is None:  # none of the model's weights, or rounded
            return result
        *experts, outputs, inputs = _groups(axes)
        rows = "batch seq" if x.ndim == 3 else "routed" if experts else "tokens" if self.paths.get(owner) else "batch"
        sizes = dict(zip(rows.split(), x.shape, strict=False))
        sizes |= {name: self.sizes[name] for side in (inputs, outputs) for name in re.findall(r"\w+", side)}
        if outputs == inputs:  # two axes of one size, which a pattern has to tell apart
            outputs = f"{inputs}_out"
            sizes[outputs] = sizes[inputs]
        pattern = f"{rows} {inputs}, {outputs} {inputs} -> {rows} {outputs}"
        read = [x, weight, *([] if bias is None else [bias])]
        self.record("linear", pattern, _named(pattern, sizes), 2 * x.numel() * weight.shape[0], read, result, elapsed)
        return result

    def axes_of(self, weight: Tensor, owner: nn.Module | None) -> str | None:
        """Return the axes of a weight: of a parameter, of one part of it, or of a copy in another dtype."""
        found = self.weights.get(weight.untyped_storage()._cdata)
        if found is not None:
            return found[1]
        own = [self.weights.get(one.untyped_storage()._cdata) for one in owner.parameters()] if owner else []
        return next((known[1] for known in own if known is not None and known[0].shape == weight.shape), None)

    def owner(self, frame: FrameType | None) -> nn.Module | None:
        """Return the module whose method runs in a frame, or has called the function that does."""
        while frame is not None:
            module = frame.f_locals.get("self")
            if isinstance(module, nn.Module) and module in self.paths:
                return module
            frame = frame.f_back
        return None

    def record(
        self, kind: str, pattern: str, sizes: Mapping[str, int], flops: int, read: list[Tensor], result: Any, ms: float
    ) -> None:
        """Record an operation with the line of the source that called it."""
        frame = _caller(sys._getframe(1), self.root)
        owner = self.owner(frame)
        storages = {tensor.untyped_storage()._cdata for tensor in read}
        written = 0 if result.untyped_storage()._cdata in storages else result.nbytes
        self.operations.append(
            Operation(
                "" if owner is None else self.paths[owner],
                frame.f_code.co_name,
                str(Path(frame.f_code.co_filename).relative_to(self.root)),
                frame.f_lineno,
                kind,
                pattern,
                sizes,
                flops,
                sum(tensor.nbytes for tensor in read),
                written,
                None if self.device.type == "meta" else ms,
            )
        )


def _caller(frame: FrameType | None, root: Path) -> FrameType:
    """Return the nearest frame of this package outside of the recorder, the shape checks and `speed`."""
    others = (__file__, str(root / "nn" / "shapes.py"), str(root / "speed"))
    while frame is not None:
        file = frame.f_code.co_filename
        if Path(file).is_relative_to(root) and not file.startswith(others):
            return frame
        frame = frame.f_back
    raise RuntimeError("an operation was called from outside the package")


@contextlib.contextmanager
def _recording(recorder: _Recorder) -> Iterator[None]:
    """Replace einops' functions in this package, `F.linear` and the layers' `forward` by the recorder's methods."""
    changed: list[tuple[ModuleType, str]] = []
    layers = [layer for layer in recorder.linear_layers if "forward" not in vars(layer)]
    try:
        for module in [m for name, m in sys.modules.items() if name.startswith("allformers.") and name != __name__]:
            for kind, function in EINOPS.items():
                if getattr(module, kind, None) is function:
                    changed.append((module, kind))
                    setattr(module, kind, partial(recorder.einops, kind))
        for layer in layers:
            vars(layer)["forward"] = partial(recorder.layer, layer, layer.forward)
        vars(F)["linear"] = recorder.linear
        yield
    finally:
        vars(F)["linear"] = LINEAR
        for module, kind in changed:
            setattr(module, kind, EINOPS[kind])
        for layer in layers:
            vars(layer).pop("forward", None)


def _groups(axes: str) -> list[str]:
    """Split the axes of a weight: `(heads head_dim) embed` into `(heads head_dim)` and `embed`."""
    return re.findall(r"\([^)]*\)|\w+", axes)


def _sizes(side: str, tensor: Any, known: Mapping[str, int]) -> dict[str, int]:
    """Return the sizes of the axes in one side of a pattern, from the tensor and the sizes known already."""
    found = dict(known)
    # Of a list of tensors, which einops stacks, the first axis is the list.
    shape = list(tensor.shape) if isinstance(tensor, Tensor) else [len(tensor), *tensor[0].shape]
    groups = list(ParsedExpression(side.strip()).composition)
    if "…" in groups:  # any number of axes, without names
        position = groups.index("…")
        del shape[position : position + len(shape) - len(groups) + 1]
        del groups[position]
    for group, size in zip(groups, shape, strict=True):
        rest = [name for name in group if name not in found]
        if len(rest) == 1:
            inner = math.prod(found[name] for name in group if name in found)
            found[rest[0]] = size // inner
    return found


def _named(pattern: str, sizes: Mapping[str, int]) -> dict[str, int]:
    """Return the sizes of the axes that a pattern names, in its order; numbers are not names."""
    words = pattern.replace("(", " ").replace(")", " ").replace(",", " ").replace("->", " ").split()
    return {name: sizes[name] for name in dict.fromkeys(words) if name in sizes and not name.isdigit()}
