"""The package from outside: what can be imported from it, what that imports, and what has to be installed for it."""

import importlib
import subprocess
import sys

import pytest

import allformers
from allformers.models.registry import READING_ORDER


def python(code: str) -> str:
    """What a fresh Python prints when it runs some code."""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_every_model_and_configuration_can_be_imported_from_the_package() -> None:
    names = {name for entry in READING_ORDER for name in (entry.class_name, f"{entry.class_name}Config")}
    assert set(allformers.__all__) == names | {"load", "BertEncoder", "ViTEncoder"}
    assert set(allformers.__all__) <= set(dir(allformers))
    for entry in READING_ORDER:
        module = importlib.import_module(entry.module)
        for name in (entry.class_name, f"{entry.class_name}Config"):
            assert getattr(allformers, name) is getattr(module, name)
    assert allformers.BertEncoder.__subclasses__() == [allformers.Bert]
    assert allformers.ViTEncoder.__subclasses__() == [allformers.ViT]
    with pytest.raises(AttributeError, match="GPT5"):
        _ = allformers.GPT5


def test_importing_the_package_imports_nothing_else() -> None:
    code = "import sys, allformers; print([n for n in sys.modules if n == 'torch' or n.startswith('allformers.')])"
    assert python(code) == "[]\n"


def test_gpt2_has_the_names_that_its_readers_expect() -> None:
    from allformers.models.gpt2.gpt2 import GPT2, GPT2Config

    for make in (
        GPT2Config.tiny,
        GPT2Config.gpt2_small,
        GPT2Config.gpt2_medium,
        GPT2Config.gpt2_large,
        GPT2Config.gpt2_xl,
    ):
        assert isinstance(make(), GPT2Config)
    assert callable(GPT2.from_pretrained)


WITH_SIX_ONLY = """
import importlib.metadata as metadata
import re, sys, tempfile

def needed(name, found):
    name = re.sub(r"[-_.]+", "-", name).lower()
    if name not in found:
        try:
            requires = metadata.requires(name) or []
        except metadata.PackageNotFoundError:
            return found
        found.add(name)
        for one in requires:
            if "extra ==" not in one:
                needed(re.match(r"[\\w.-]+", one)[0], found)
    return found

there = set()
for name in ("torch", "einops", "jaxtyping", "beartype", "numpy", "safetensors"):
    needed(name, there)
owners = metadata.packages_distributions()

class Absent:
    def find_spec(self, name, path=None, target=None):
        owner = {re.sub(r"[-_.]+", "-", one).lower() for one in owners.get(name.partition(".")[0], ())}
        if owner and not owner & there and name.partition(".")[0] != "allformers":
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, Absent())
for name in ("transformers", "huggingface_hub", "matplotlib", "tokenizers", "typer"):
    try:
        __import__(name)
    except ModuleNotFoundError:
        continue
    raise SystemExit(f"{name} is not kept away")

import torch
from allformers import GPT2, GPT2Config, load
from allformers.models.registry import READING_ORDER

model = GPT2(GPT2Config.tiny()).eval()
print("gpt2", tuple(model.generate(torch.zeros(1, 3, dtype=torch.long), max_new_tokens=2).shape))
for entry in READING_ORDER:
    model_class = entry.load()
    model = model_class(model_class.checkpoint_format().config_class.tiny()).eval()
    given = model.dummy_input(1, 9, "cpu")
    with tempfile.TemporaryDirectory() as folder, torch.no_grad():
        model.save_pretrained(folder)
        same = torch.equal(load(folder)(given), model(given))
    print(entry.name, same)
"""


def test_a_model_needs_six_packages_and_no_more() -> None:
    """Built, run, saved and loaded where nothing is installed but those six and what they need themselves."""
    lines = python(WITH_SIX_ONLY).splitlines()
    assert lines[0] == "gpt2 (1, 5)"
    assert lines[1:] == [f"{entry.name} True" for entry in READING_ORDER]
