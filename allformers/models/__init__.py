"""The models, in reading order, and how a checkpoint finds its own. None is imported until it is asked for."""

import ast
import re
from importlib import import_module
from pathlib import Path
from typing import Any, NamedTuple

from allformers.checkpoints import CheckpointError, locate, read_config, read_json, require


class Entry(NamedTuple):
    """One model of the family.

    Attributes:
        name: how the command line calls it.
        module: where it is defined.
        class_name: its class there.
        model_type: what its checkpoints' `config.json` says.
    """

    name: str
    module: str
    class_name: str
    model_type: str

    def load(self) -> Any:
        """Import the model's class."""
        return getattr(import_module(self.module), self.class_name)


READING_ORDER: tuple[Entry, ...] = (
    Entry("gpt2", "allformers.models.gpt2.gpt2", "GPT2", "gpt2"),
    Entry("llama", "allformers.models.llama.llama", "Llama", "llama"),
    Entry("mistral", "allformers.models.mistral.mistral", "Mistral", "mistral"),
    Entry("mixtral", "allformers.models.mixtral.mixtral", "Mixtral", "mixtral"),
    Entry("qwen2", "allformers.models.qwen2.qwen2", "Qwen2", "qwen2"),
    Entry("qwen3", "allformers.models.qwen3.qwen3", "Qwen3", "qwen3"),
    Entry("gemma", "allformers.models.gemma.gemma", "Gemma", "gemma"),
    Entry("gemma2", "allformers.models.gemma2.gemma2", "Gemma2", "gemma2"),
    Entry("gemma3", "allformers.models.gemma3.gemma3", "Gemma3", "gemma3_text"),
    Entry("bert", "allformers.models.bert.bert", "Bert", "bert"),
    Entry("vit", "allformers.models.vit.vit", "ViT", "vit"),
    Entry("deepseek-v3", "allformers.models.deepseek_v3.deepseek_v3", "DeepSeekV3", "deepseek_v3"),
)
"""Each model may import earlier ones, never later ones."""


class Member(NamedTuple):
    """A model's place in the family.

    Attributes:
        entry: the model.
        parent: the name of the model that its class extends, or, if it extends none, of the latest that it takes from.
        takes_from: the names of the other models that it imports parts from.
        added: what it is, or what it added, in a sentence: the beginning of its module's docstring.
        modules: lines of new code in its file that say what it computes: classes and functions.
        configuration: lines that say of which sizes it may be, and is.
        tables: lines that say how checkpoints call all that.
    """

    entry: Entry
    parent: str | None
    takes_from: tuple[str, ...]
    added: str
    modules: int
    configuration: int
    tables: int

    @property
    def lines(self) -> int:
        """Lines of new code: no empty ones, no comments, no docstrings, no imports."""
        return self.modules + self.configuration + self.tables


def family() -> list[Member]:
    """All models in reading order, each with its ancestors, read off the imports of their files."""
    names = {entry.module: entry.name for entry in READING_ORDER}
    members = []
    for entry in READING_ORDER:
        path = Path(__file__).parents[2] / f"{entry.module.replace('.', '/')}.py"
        tree = ast.parse(path.read_text(encoding="utf-8"))
        origin = {
            alias.asname or alias.name: names[node.module]
            for node in tree.body
            if isinstance(node, ast.ImportFrom) and node.module in names
            for alias in node.names
        }
        (own,) = (node for node in tree.body if isinstance(node, ast.ClassDef) and node.name == entry.class_name)
        extended = [origin[base.id] for base in own.bases if isinstance(base, ast.Name) and base.id in origin]
        taken = [other.name for other in READING_ORDER if other.name in origin.values()]
        parent = next(iter(extended), taken[-1] if taken else None)
        text = re.sub(r"\s+", " ", (ast.get_docstring(tree) or "").partition("\n\n")[0])
        others = tuple(name for name in taken if name != parent)
        added = text.partition(": ")[2] or text
        members.append(Member(entry, parent, others, added, **_lines_by_part(path, tree)))
    return members


def _lines_by_part(path: Path, tree: ast.Module) -> dict[str, int]:
    """How many lines of code each part of a model's file has; a constant belongs to the part that it stands before."""
    code = _code_lines(path, tree)
    counted = {"modules": 0, "configuration": 0, "tables": 0}
    part = "tables"
    for node in reversed(tree.body):
        match node:
            case ast.ClassDef(name=name):
                part = "configuration" if name.endswith("Config") else "modules"
            case ast.FunctionDef():
                part = "modules"
            case ast.Assign(targets=[ast.Attribute(attr="format")]):
                part = "tables"
        first = min([node.lineno, *(one.lineno for one in getattr(node, "decorator_list", ()))])
        counted[part] += len(code & {*range(first, (node.end_lineno or node.lineno) + 1)})
    return counted


def _code_lines(path: Path, tree: ast.Module) -> set[int]:
    """Which lines of a file hold code of its own."""

    def is_other(node: ast.AST) -> bool:
        is_told = (
            isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)
        )
        return is_told or isinstance(node, ast.Import | ast.ImportFrom)

    others = {
        line
        for node in ast.walk(tree)
        if isinstance(node, ast.stmt) and is_other(node)
        for line in range(node.lineno, (node.end_lineno or node.lineno) + 1)
    }
    lines = enumerate(path.read_text(encoding="utf-8").splitlines(), 1)
    return {number for number, line in lines if line.strip() and not line.lstrip().startswith("#")} - others


def load(name: str | Path, *, revision: str | None = None, **options: Any) -> Any:
    """Load a checkpoint of any model here; see `allformers.load`."""
    model_class, _ = load_config(name, revision)
    return model_class.from_pretrained(name, revision=revision, **options)


def load_config(name: str | Path, revision: str | None = None) -> tuple[type[Any], Any]:
    """The class and the configuration of a checkpoint, without its weights.

    Raises:
        CheckpointError: there is no such checkpoint, or it is not of a family that is here.
    """
    given = read_json(require(locate(name, revision), "config.json", name))
    model_type = given.get("model_type")
    for entry in READING_ORDER:
        if entry.model_type == model_type:
            model_class = entry.load()
            return model_class, read_config(model_class.format, given, where=f"{name}/config.json")
    known = ", ".join(entry.model_type for entry in READING_ORDER)
    raise CheckpointError(f"{name} is a {model_type!r} model; the families here are: {known}")
