"""Activations of a model while it runs: every tensor that its code names, to look at or to change through a hook.

    >>> import allformers, torch
    >>> model = allformers.load("bundled")
    >>> with capture(model, "blocks.*.attention.weights") as activations:
    ...     logits = model(torch.tensor([list(b"The for statement")]))
    >>> activations["blocks.3.attention.weights"].axes
    ('batch', 'heads', 'seq', 'seq_k')

What can be captured, by its module's path and then its name:

- an argument of `forward`: `blocks.3.x`, the residual stream as it enters block 3;
- a variable: `blocks.3.x_mid`, the stream after attention; `blocks.3.attention.queries`, `.keys`, `.values`, `.scores`
  (masked, before softmax), `.weights` (after), `.mixed`; `blocks.3.mlp.activated`; `logits`. It is taken once it has
  its last value: keys with those that the cache holds;
- a result: `blocks.3`, the stream as it leaves block 3; `blocks.3.attention` and `blocks.3.mlp`, their outputs (what
  they add to the stream, in a plain pre-norm block); of a method other than `forward`, its name: `embed`.

Where the axes come from: arguments, results and some variables have them in their annotations. The axes of any other
variable are those that the code states as it uses it:

1. in the last einops pattern that reads it: `einsum(queries, keys, "batch heads seq head_dim, batch heads seq_k
   head_dim -> ...")` names those of both. A method of the same class that gets it, as in `self.score(queries, keys)`,
   counts as a pattern: its arguments have annotations;
2. else in the right side of the pattern that made it: after `queries, keys, values = rearrange(..., "... -> qkv batch
   heads seq head_dim")` each has all of these axes but the first;
3. else, if it was an argument before, in that argument's annotation.

A pattern that names each axis by itself goes before one with brackets. Where there are only brackets they stay, as one
axis: `merged` has the axes `batch`, `seq` and `(heads head_dim)`. A variable is left out if no pattern tells its axes,
if the pattern has `...`, or if it gets a value in a branch or a loop only. Where several methods of a module have a
variable of one name, `forward`'s is meant, or else that of the method which the others call: a name is one tensor.

How it works: the source of those methods is read, a call of a hook is put behind each such tensor, and the result takes
the method's place in its class until the block ends; it runs only for this model and in this thread (or task). Nothing
is put on the model itself, so a copy or a pickle made meanwhile is a plain one, and a model that nobody looks into runs
the code that is in its file, without hooks.
"""

import contextlib
import fnmatch
import functools
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextvars import ContextVar
from typing import Any, NamedTuple

from einops import rearrange
from torch import Tensor, nn

from allformers.generation.generate import original_module
from allformers.inspection.source import hooked_methods
from allformers.nn.shapes import ShapeError, checked

HookFn = Callable[[Tensor], Tensor]
"""A function from a captured tensor to the one that takes its place, of the same shape."""


class NamedTensor(NamedTuple):
    """A tensor with the names that the model's code gives it and its axes.

    Attributes:
        name: the module's path, then the variable.
        values: the tensor.
        axes: the name of each axis; "1" for one that only broadcasts, "(heads head_dim)" for two in one.
    """

    name: str
    values: Tensor
    axes: tuple[str, ...]

    @property
    def sizes(self) -> dict[str, int]:
        """Sizes by the axes' names."""
        return dict(zip(self.axes, self.values.shape, strict=True))

    @property
    def by_head(self) -> Tensor:
        """The values with one axis for all query heads: `kv_heads group` becomes `heads`, each group together."""
        axes = " ".join(self.axes)
        if "kv_heads group" not in axes:
            return self.values
        return rearrange(self.values, f"{axes} -> {axes.replace('kv_heads group', '(kv_heads group)')}")


class Activations(Mapping[str, NamedTensor]):
    """A mapping from names to captured tensors, in the order of the pass; of a name that came again, the last."""

    def __init__(self) -> None:
        self._tensors: dict[str, NamedTensor] = {}

    def __getitem__(self, name: str) -> NamedTensor:
        """Return a tensor by its name; the error for an unknown one lists those there are."""
        if name not in self._tensors:
            near = [known for known in self._tensors if known.rpartition(".")[2] == name.rpartition(".")[2]]
            raise KeyError(f"{name} was not captured; there are: {', '.join(near or self._tensors) or 'none'}")
        return self._tensors[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._tensors)

    def __len__(self) -> int:
        return len(self._tensors)

    def by_layer(self, suffix: str) -> list[Tensor]:
        """Return one tensor of each block, such as "attention.weights", in the order of the blocks.

        The same axes in every model: grouped query heads are numbered through, as in `NamedTensor.by_head`.

        Raises:
            KeyError: no block has one that was captured.
        """
        found = {name: tensor.by_head for name, tensor in self._tensors.items() if _in_block(name) == suffix}
        if not found:
            raise KeyError(f"no block's {suffix or 'result'} was captured")
        return [found[name] for name in sorted(found, key=lambda name: int(name.split(".")[1]))]


def _in_block(name: str) -> str | None:
    """Return the part of a name after `blocks.3.`; empty for the block itself, None for a name in no block."""
    parts = name.split(".")
    return ".".join(parts[2:]) if len(parts) > 1 and parts[0] == "blocks" and parts[1].isdigit() else None


@checked
def activation_names(model: nn.Module) -> list[str]:
    """Return the names of all activations that can be captured, in the order of the model's modules."""
    names = []
    for path, module in model.named_modules():
        for method in hooked_methods(module.__class__):
            for variable in method.hooked:
                name = _join(path, variable)
                if name and name not in names:  # what the model's own forward returns has a name already: logits
                    names.append(name)
    return names


@checked
def capture(
    model: nn.Module, *names: str, hooks: Mapping[str, HookFn] | None = None
) -> contextlib.AbstractContextManager[Activations]:
    """Capture a model's activations while a `with` block lasts, and change those that have a hook.

    Captures compose. Several may be open at once, of one model or of parts of it, and may end in any order: hooks apply
    in the order in which the captures began, and then each capture keeps the tensor that the model goes on with. A
    capture has the passes of its own thread (or task) only.

    Args:
        model: any model of this package, or one that is written like them. Its results stay the same unless something
            is changed by a hook, to the bit.
        names: the names to keep, where `*` stands for one part (`blocks.*.attention.weights`); all if none is given.
            The rest takes no memory.
        hooks: by name or pattern, functions whose result takes a tensor's place. See `ablate_heads`, `patch`.

    Returns:
        A context manager for the activations captured so far, detached from the graph of gradients.

    Raises:
        ValueError: no activation has such a name.
        ShapeError: (while the model runs) a hook has returned a tensor of another shape.
    """
    hooks = dict(hooks or {})
    known = activation_names(model)
    for pattern in (*names, *hooks):
        if not _matching(known, pattern):
            raise ValueError(f"this model has no activation called {pattern}; {_suggest(pattern, known)}")
    keep = {name for pattern in names for name in _matching(known, pattern)} if names else set(known)
    hook_fns = {name: hook_fn for pattern, hook_fn in hooks.items() for name in _matching(known, pattern)}
    return _capturing(_Capture({module: path for path, module in model.named_modules()}, keep, hook_fns))


class _Capture:
    """A capture that is open.

    Args:
        paths: the path of each module of the model.
        names: the names of the tensors to keep.
        hook_fns: functions that change a tensor, by its name.
    """

    def __init__(self, paths: dict[nn.Module, str], names: set[str], hook_fns: Mapping[str, HookFn]) -> None:
        self.paths, self.names, self.hook_fns = paths, names, hook_fns
        self.activations = Activations()

    def change(self, named: NamedTensor) -> Tensor:
        """Return the tensor that the model goes on with: the hook's result, if there is one."""
        if named.name not in self.hook_fns:
            return named.values
        changed = self.hook_fns[named.name](named.values)
        if changed.shape != named.values.shape:
            raise ShapeError(
                f"the hook of {named.name} returned the shape {tuple(changed.shape)}, expected "
                f"{tuple(named.values.shape)}: axes {' '.join(named.axes)}"
            )
        return changed

    def keep(self, named: NamedTensor) -> None:
        """Keep a tensor if its name was asked for."""
        if named.name in self.names:
            self.activations._tensors.pop(named.name, None)
            self.activations._tensors[named.name] = named._replace(values=named.values.detach())


_open: ContextVar[tuple[_Capture, ...]] = ContextVar("allformers_captures", default=())
"""The captures that are open in this thread or task, in the order in which they began."""


@contextlib.contextmanager
def _capturing(this: _Capture) -> Iterator[Activations]:
    """Keep a capture open while a `with` block lasts."""
    with _hooks_in({type(module) for module in this.paths}):
        _open.set((*_open.get(), this))
        try:
            yield this.activations
        finally:
            _open.set(tuple(other for other in _open.get() if other is not this))
            this.paths.clear()  # it is over in the thread that it began in too, if that is another one


_lock = threading.Lock()
_uses: Counter[type] = Counter()
"""The number of open captures, in all threads, of models that have modules of a class."""
_replaced: dict[type, dict[str, Any]] = {}
"""The methods of a class that those with hooks have replaced, by name; None for one that it inherits."""


@contextlib.contextmanager
def _hooks_in(classes: set[type]) -> Iterator[None]:
    """Give classes their methods with hooks while a `with` block lasts; the last block to end takes them back."""
    with _lock:
        for cls in classes:
            _uses[cls] += 1
            if cls not in _replaced:
                hooked = _hooked(cls)
                _replaced[cls] = {name: vars(cls).get(name) for name in hooked}
                for name, method in hooked.items():
                    setattr(cls, name, _with_hooks(cls, name, method))
    try:
        yield
    finally:
        with _lock:
            for cls in classes:
                _uses[cls] -= 1
                if not _uses[cls]:
                    del _uses[cls]
                    for name, own in _replaced.pop(cls).items():
                        delattr(cls, name) if own is None else setattr(cls, name, own)


@functools.cache
def _hooked(cls: type) -> dict[str, Callable[..., Any]]:
    """Return a class's methods with hooks, by name."""
    return {method.name: method.make(_hook) for method in hooked_methods(cls)}


def _with_hooks(cls: type, name: str, hooked: Callable[..., Any]) -> Callable[..., Any]:
    """Return a method that runs with hooks for a module that is captured in this thread, and else as it always does."""
    own = vars(cls).get(name)

    @functools.wraps(getattr(cls, name))
    def method(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
        if type(self) is cls and any(original_module(self) in one.paths for one in _open.get()):
            return hooked(self, *args, **kwargs)
        if own is None:  # an inherited method
            return getattr(super(cls, self), name)(*args, **kwargs)
        return own(self, *args, **kwargs)

    return method


def _hook(module: nn.Module, variable: str, axes: tuple[str, ...], annotated: bool, value: Any) -> Any:
    """Pass a tensor of a module through the captures that are open: first their hooks, then the record of each."""
    module = original_module(module)
    captures = [(one, _join(one.paths[module], variable)) for one in _open.get() if module in one.paths]
    if not isinstance(value, Tensor) or not captures:
        return value
    if len(axes) != value.ndim:
        if not annotated and not any(name in one.hook_fns for one, name in captures):
            return value  # a pattern for another case, which did not run
        source = "annotation" if annotated else "pattern"
        name = captures[-1][1]
        raise ShapeError(f"{name} has {value.ndim} axes, but its {source} names {len(axes)}: {' '.join(axes)}")
    for one, name in captures:
        value = one.change(NamedTensor(name, value, axes))
    for one, name in captures:
        one.keep(NamedTensor(name, value, axes))
    return value


@checked
def ablate_heads(*heads: int) -> HookFn:
    """Return a hook for `mixed` (or `weights`) that ablates query heads: their output becomes zero.

    Grouped heads, of axes `batch kv_heads group seq ...`, are numbered through: those of the first key head come first.

    Raises:
        ValueError: (while the model runs) it has no head of that number.
    """

    def hook_fn(values: Tensor) -> Tensor:
        grouped = values.ndim == 5
        ablated = rearrange(values, "batch kv_heads group ... -> batch (kv_heads group) ...") if grouped else values
        unknown = [head for head in heads if not 0 <= head < ablated.shape[1]]
        if unknown:
            raise ValueError(f"there is no head {unknown[0]} to ablate: heads run from 0 to {ablated.shape[1] - 1}")
        ablated = ablated.clone()
        ablated[:, list(heads)] = 0
        if not grouped:
            return ablated
        return rearrange(ablated, "batch (kv_heads group) ... -> batch kv_heads group ...", kv_heads=values.shape[1])

    return hook_fn


@checked
def patch(values: Tensor) -> HookFn:
    """Return a hook that patches in an activation of another run."""
    return lambda original: values.to(original)


def _matching(known: Sequence[str], pattern: str) -> list[str]:
    """Return the names that match a pattern, part by part."""
    globs = pattern.split(".")
    split = [(name, name.split(".")) for name in known]
    return [name for name, parts in split if len(parts) == len(globs) and all(map(fnmatch.fnmatchcase, parts, globs))]


def _join(path: str, variable: str) -> str:
    return ".".join(part for part in (path, variable) if part)


def _suggest(pattern: str, known: Sequence[str]) -> str:
    last = pattern.rpartition(".")[2]
    near = [name for name in known if name.rpartition(".")[2] == last]
    endings = sorted({name.rpartition(".")[2] for name in known if not name.rpartition(".")[2].isdigit()})
    return f"there is {', '.join(near[:4])}" if near else f"names end in: {', '.join(endings)}"
