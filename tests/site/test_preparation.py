"""What is prepared for the site is made anew when what it comes from has changed, and not otherwise."""

import shutil
from pathlib import Path

import pytest

from docs.engine import ROOT, prepare

pytestmark = pytest.mark.site


@pytest.fixture
def copy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the sources, to be changed."""
    for name in ("allformers", "docs/engine"):
        shutil.copytree(ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__"))
    monkeypatch.setattr(prepare, "ROOT", tmp_path)
    return tmp_path


def paths() -> dict[str, Path]:
    """The place of each part, as a new process would find it."""
    for remembered in (prepare._tree, prepare._imported, prepare.code_of):
        remembered.cache_clear()
    return {part.name: part.path for part in prepare.parts()}


def changed(path: Path, old: str, new: str) -> set[str]:
    """The parts that a change to a file makes stale; without anything to replace, what is new stands at the end."""
    before, text = paths(), path.read_text(encoding="utf-8")
    assert old in text
    path.write_text(text.replace(old, new, 1) if old else text + new, encoding="utf-8")
    after = paths()
    return {name for name, place in after.items() if place != before[name]}


@pytest.fixture(autouse=True)
def _forget() -> None:
    paths()


def test_a_comment_a_blank_line_and_a_docstring_make_nothing_stale(copy: Path) -> None:
    file = copy / "allformers" / "models" / "gpt2" / "gpt2.py"
    assert changed(file, "\n\n\n", "\n\n\n\n# a comment\n") == set()
    assert changed(file, '"""', '"""Another sentence. ') == set()


def test_a_statement_makes_stale_what_comes_from_it(copy: Path) -> None:
    models = copy / "allformers" / "models"
    assert changed(models / "vit" / "vit.py", "", "\nEXTRA = 1\n") == {"costs-vit"}
    of_llama = changed(models / "llama" / "llama.py", "", "\nEXTRA = 1\n")
    assert {"costs-llama", "costs-deepseek-v3"} <= of_llama
    assert of_llama.isdisjoint({"costs-gpt2", "costs-bert", "experiment-scale", "live_weights"})
    of_gpt2 = changed(models / "gpt2" / "gpt2.py", "", "\nEXTRA = 1\n")
    assert of_gpt2 >= {"costs-gpt2", *(name for name in paths() if not name.startswith("costs-"))}
    assert of_gpt2.isdisjoint({"costs-llama", "costs-deepseek-v3"})
    assert changed(copy / "allformers" / "experiments" / "scale.py", "[4, ", "[2, 4, ") == {"experiment-scale"}


def test_another_file_beside_a_model_counts(copy: Path) -> None:
    before = paths()
    (copy / "allformers" / "models" / "bert" / "more.py").write_text("EXTRA = 1\n", encoding="utf-8")
    after = paths()
    assert {name for name in after if after[name] != before[name]} == {"costs-bert", "costs-vit"}


def test_other_weights_make_stale_what_the_bundled_model_is_read_for(copy: Path) -> None:
    before = paths()
    with (copy / "allformers" / "bundled" / "model.safetensors").open("ab") as file:
        file.write(b"0")
    after = paths()
    stale = {name for name in after if after[name] != before[name]}
    assert stale == {name for name in after if not name.startswith("costs-")}
