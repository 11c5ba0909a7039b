"""Loads broken checkpoints within 2 GiB, one after the other, and says how each ended; see test_fuzz.py.

It reads numbers of cases from its standard input and answers each with two lines of JSON: when ours has ended, and when
the reference has been asked too. By hand, with a folder in which to leave the checkpoint:

    python tests/fuzz/child.py SEED NUMBER FOLDER
"""

import importlib
import json
import os
import shutil
import sys
import tempfile
import time
import warnings
from pathlib import Path
from typing import Any

import torch
from mutations import Case, make

import allformers
from allformers.checkpoints import CheckpointError
from allformers.models.registry import READING_ORDER

LIMIT = 2 * 2**30
LONGEST_MESSAGE = 4000
LONGEST_QUOTE = 90
MOST_DIFFERENCE = 1e-5


def write_bases(folder: Path) -> None:
    """A tiny checkpoint of each family, with the configuration that we write and, as full.json, the reference's."""
    import transformers

    from conftest import perturb

    for entry in READING_ORDER:
        torch.manual_seed(0)
        model_class = entry.load()
        model = perturb(model_class(model_class.checkpoint_format().config_class.tiny()))
        model.save_pretrained(folder / entry.name)
        full = transformers.AutoConfig.from_pretrained(folder / entry.name).to_dict()
        (folder / entry.name / "full.json").write_text(json.dumps(full))


def inputs(config: Any) -> torch.Tensor:
    """Token ids, or an image."""
    generator = torch.Generator().manual_seed(1)
    if hasattr(config, "image_size"):
        return torch.randn(1, config.num_channels, config.image_size, config.image_size, generator=generator)
    return torch.randint(config.vocab_size, (1, min(24, config.context_length)), generator=generator)


def ours(case: Case, folder: Path) -> tuple[str, str, Any]:
    """How loading ends: the outcome, the message, and the input and the logits if it is a model."""
    try:
        model = allformers.load(folder)
    except CheckpointError as error:
        return refusal(case, folder, str(error)), str(error), None
    except BaseException as error:
        return "FAULT: another exception", f"{type(error).__name__}: {error}", None
    try:
        x = inputs(model.config)
        with torch.no_grad():
            return "loaded", "", (x, model(x).float())
    except BaseException as error:
        return "FAULT: loads and cannot be used", f"{type(error).__name__}: {error}", None


def refusal(case: Case, folder: Path, message: str) -> str:
    """Whether a refusal says what it should: the file or folder, and for a configuration the field."""
    quoted = "x" * LONGEST_QUOTE in message  # the long values and names of mutations.py
    if quoted or len(message) > LONGEST_MESSAGE or not all(line.isprintable() for line in message.split("\n")):
        return "FAULT: an unreadable message"
    if str(folder) not in message:
        return "FAULT: a message without the file"
    leaves = [field for field in case.fields if field[:40] in message]
    if case.kind == "config" and "config.json" in message and not leaves:
        return "FAULT: a message without the field"
    return "refused"


def compare(case: Case, folder: Path, found: Any) -> tuple[str, str]:
    """Whether the reference makes the same model of the same files, if it makes one."""
    import transformers

    auto = {"bert": "AutoModelForMaskedLM", "vit": "AutoModelForImageClassification"}
    auto_class = getattr(transformers, auto.get(case.family, "AutoModelForCausalLM"))
    x, logits = found
    try:
        model, info = auto_class.from_pretrained(
            folder, attn_implementation="eager", dtype=torch.float32, output_loading_info=True
        )
        if info["missing_keys"] or info.get("mismatched_keys"):
            return "loaded alone", "the reference draws some weights anew"
        with torch.no_grad():
            expected = model.eval()(x).logits
    except BaseException as error:
        return "loaded alone", f"the reference: {type(error).__name__}: {str(error)[:200]}"
    if expected.shape != logits.shape:
        return "FAULT: another model", f"{tuple(logits.shape)} and not {tuple(expected.shape)}"
    if not (expected.isfinite().all() and logits.isfinite().all()):
        same = bool(expected.isfinite().all()) == bool(logits.isfinite().all())
        return ("equal" if same else "FAULT: another model"), "NaN or infinity"
    difference = float((expected - logits).abs().max() / expected.abs().max().clamp(min=1e-30))
    return ("equal" if difference <= MOST_DIFFERENCE else "FAULT: another model"), f"difference {difference:.1e}"


def limit_memory() -> None:
    """Let this process have 2 GiB more than it has."""
    import resource

    pages = int(Path("/proc/self/statm").read_text().split()[0])
    resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + LIMIT,) * 2)


def run(number: int, seed: int, bases: Path, folder: Path) -> None:
    """Make a case, load it, and write two lines about it."""
    shutil.rmtree(folder, ignore_errors=True)
    case = make(number, seed, bases, folder)
    about = case._asdict() | {"folder": str(folder)}
    began = time.monotonic()
    outcome, message, found = ours(case, folder)
    about |= {"outcome": outcome, "message": message[:2000], "seconds": time.monotonic() - began}
    print(json.dumps(about), flush=True)
    if found is not None:
        about["outcome"], about["message"] = compare(case, folder, found)
    print(json.dumps(about), flush=True)


def main() -> None:
    """Answer the numbers on standard input, or one from the command line."""
    os.environ |= {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_VERBOSITY": "critical", "TQDM_DISABLE": "1"}
    sys.path.append(str(Path(__file__).resolve().parents[1]))  # for conftest
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    seed = int(sys.argv[1])
    with tempfile.TemporaryDirectory() as scratch:
        if len(sys.argv) == 4:
            write_bases(Path(scratch))
            run(int(sys.argv[2]), seed, Path(scratch), Path(sys.argv[3]))
            return
        bases = Path(sys.argv[2])
        importlib.import_module("transformers")  # what both take from the start does not count
        for entry in READING_ORDER:
            entry.load()
        limit_memory()
        print("ready", flush=True)
        for line in sys.stdin:
            run(int(line), seed, bases, Path(scratch) / "checkpoint")


if __name__ == "__main__":
    main()
