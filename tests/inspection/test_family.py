"""The family tree: what the imports of the model files say."""

from pathlib import Path

from allformers.inspection import family as module
from allformers.inspection.family import family
from allformers.models.registry import READING_ORDER


def test_the_tree_is_that_of_the_imports() -> None:
    members = {member.entry.name: member for member in family()}
    assert list(members) == [entry.name for entry in READING_ORDER]
    parents = {name: member.parent for name, member in members.items()}
    assert parents["gpt2"] is parents["llama"] is None
    assert (parents["mixtral"], parents["gemma2"], parents["vit"]) == ("mistral", "gemma", "bert")
    assert members["gemma3"].takes_from == ("qwen3", "gemma2")
    for entry in READING_ORDER[2:]:
        ancestors = [parents[entry.name], *members[entry.name].takes_from]
        assert {name for name in ancestors if name} <= set(list(members)[: list(members).index(entry.name)])


def test_lines_are_counted_once_those_of_tables_in_the_file_beside() -> None:
    root = Path(module.__file__).parents[2]
    for member in family():
        path = root / f"{member.entry.module.replace('.', '/')}.py"
        assert min(member.modules, member.configuration, member.tables) > 0
        for parts, file in (
            (member.modules + member.configuration, path),
            (member.tables, path.with_name("checkpoint.py")),
        ):
            written = [line for line in file.read_text().splitlines() if line.strip()]
            assert 0.1 * len(written) < parts < len(written)
        assert member.lines == member.modules + member.configuration + member.tables
        assert member.added.endswith(".")
