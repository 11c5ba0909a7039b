"""What all tests share: perturbed models, the reference in true float64, and what was compared with it."""

import contextlib
import itertools
import json
import os
import re
import shlex
import shutil
import string
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")  # tests run side by side, and so do processes that they start
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")

import pytest
import torch
from filelock import FileLock
from hypothesis import HealthCheck, settings
from torch import nn

torch.set_num_threads(1)  # models this small only lose by sharing the work, and tests may run beside other things
if not torch.accelerator.is_available():
    torch.manual_seed = torch.default_generator.manual_seed  # or it would note where it was called, for devices to come
os.fsync = lambda file: None  # no test pulls the plug, and waiting for the disk takes longer than most of them

settings.register_profile("daily", deadline=None, derandomize=True, max_examples=50)
settings.register_profile("fuzz", deadline=None, max_examples=1000, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("daily")  # or `pytest -m hypothesis --hypothesis-profile=fuzz`, which finds new cases each time

ROOT = Path(__file__).resolve().parents[1]
RECORDS = ROOT / "docs" / "records"
PREPARED = ".cache/site"
IGNORED = shutil.ignore_patterns("__pycache__", ".*.draft")


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add what writes records: of the comparisons with the reference, of the bundled model, of published models."""
    parser.addoption("--record-parity", type=Path, metavar="FOLDER", help="write the differences that were measured")
    parser.addoption("--record-golden", action="store_true", help="write what the bundled model says, and compare not")
    parser.addoption("--record-published", action="store_true", help="write what published models say (-m network)")


def pytest_configure(config: pytest.Config) -> None:
    """Refuse to record parity from several processes; and ask the hub for nothing unless tests of it are wanted."""
    if config.getoption("--record-parity") is not None and config.getoption("numprocesses", None):
        raise pytest.UsageError("--record-parity wants one process: say -n 0, too")
    os.environ.setdefault("HF_HUB_OFFLINE", "0" if wanted(config, "network") else "1")


def wanted(config: pytest.Config, mark: str) -> bool:
    """Whether tests that bear a mark are to run, as far as `-m` says."""
    return mark in config.getoption("markexpr").replace(f"not {mark}", "")


def pytest_itemcollected(item: pytest.Item) -> None:
    """Mark what needs the built site, and no browser; and let one process run what shares that site, file by file."""
    if item.path.parent.name == "site":
        item.add_marker(pytest.mark.xdist_group(item.path.stem))
    if "site" in getattr(item, "fixturenames", ()) and item.get_closest_marker("browser") is None:
        item.add_marker(pytest.mark.site)


COMPARED: dict[str, dict[tuple[str, str, str], dict[str, object]]] = {}
"""What was compared with the reference so far: for each model, by what, of what and in which dtype."""


def close_enough(what: str, of: str, dtype: torch.dtype, difference: float, bar: float, model: str = "gpt2") -> bool:
    """Whether a difference from the reference is within its bar; and remember it, for the site's table."""
    key = what, of, str(dtype).removeprefix("torch.")
    row = COMPARED.setdefault(model, {}).setdefault(key, {"comparisons": 0, "largest": 0.0, "bar": bar})
    row["comparisons"] = int(row["comparisons"]) + 1  # type: ignore[call-overload]
    row["largest"] = max(float(row["largest"]), difference)  # type: ignore[arg-type]
    return difference <= bar


SWEPT: list[dict[str, object]] = []
"""How the fields of `config.json` came out that were swept so far, a row for each family."""


def pytest_sessionfinish(session: pytest.Session, exitstatus: int) -> None:
    """Write the record of parity, if it was asked for and all is well; else hold what slow tests compared to it.

    Each process tells the first one what it compared, and that one looks.
    """
    if hasattr(session.config, "workeroutput"):
        told = [[model, *key, row] for model, rows in COMPARED.items() for key, row in rows.items()]
        session.config.workeroutput["compared"] = told
        return
    folder = session.config.getoption("--record-parity")
    if folder is not None and not exitstatus:
        write_record(folder, shlex.join(["pytest", *session.config.invocation_params.args]))
    elif folder is None and wanted(session.config, "slow"):
        STALE.extend(stale(COMPARED, RECORDS))
        if STALE and not exitstatus:
            session.exitstatus = pytest.ExitCode.TESTS_FAILED


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: Any, error: object) -> None:
    """Take in what another process compared."""
    for model, what, of, dtype, row in getattr(node, "workeroutput", {}).get("compared", []):
        one = COMPARED.setdefault(model, {}).setdefault((what, of, dtype), row)
        one["largest"] = max(one["largest"], row["largest"])


STALE: list[str] = []
"""What the records of parity lack, found when all tests have run."""


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """Say what the records lack, and how they are made anew."""
    if STALE:
        terminalreporter.section("docs/records: parity is to be recorded anew", red=True)
        for line in STALE:
            terminalreporter.line(line)
        terminalreporter.line("record it: pytest -n 0 tests/models -m 'slow or not slow' --record-parity docs/records")


def stale(compared: dict[str, dict[tuple[str, str, str], dict[str, object]]], folder: Path) -> list[str]:
    """Comparisons that the tests made and a record lacks, or has with another bar or a difference above it."""
    found = []
    for model, rows in compared.items():
        path = folder / f"{model}-parity.json"
        written = json.loads(path.read_text(encoding="utf-8"))["rows"] if path.is_file() else []
        recorded = {(row["what"], row["of"], row["dtype"]): row for row in written}
        for key, row in rows.items():
            place = f"{path.name}: {', '.join(key)}"
            if key not in recorded:
                found.append(f"{place}: not recorded")
            elif recorded[key]["bar"] != row["bar"]:
                found.append(f"{place}: recorded with a bar of {recorded[key]['bar']}, compared with {row['bar']}")
            elif not recorded[key]["largest"] <= row["bar"]:
                found.append(f"{place}: recorded at {recorded[key]['largest']}, above {row['bar']}")
    return found


def write_record(folder: Path, command: str) -> None:
    """Write what was compared, a file for each model, and what was swept."""
    import transformers

    from allformers.models.registry import READING_ORDER

    folder.mkdir(parents=True, exist_ok=True)
    for entry in READING_ORDER:
        if entry.name in COMPARED:
            rows = COMPARED[entry.name].items()
            record = {
                "command": command,
                "torch": torch.__version__,
                "transformers": transformers.__version__,
                "rows": [{"what": what, "of": of, "dtype": dtype, **row} for (what, of, dtype), row in rows],
            }
            path = folder / f"{entry.name}-parity.json"
            path.write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
    if SWEPT:
        record = {"command": command, "transformers": transformers.__version__, "rows": SWEPT}
        (folder / "config-sweep.json").write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")


@pytest.fixture(autouse=True)
def _seeded(request: pytest.FixtureRequest) -> None:
    torch.manual_seed(0)
    if request.node.get_closest_marker("slow") is not None:
        torch.compiler.reset()  # it gives up on a function that earlier tests had compiled in too many ways


def names(*words: object) -> str:
    """A pattern for an error that names all these, in any order; how it says so may change."""
    return "(?s)" + "".join(rf"(?=.*(?<!\w){re.escape(str(word))}(?!\w))" for word in words)


def perturb(model: nn.Module, std: float = 0.2) -> nn.Module:
    """Add noise to every parameter, in place.

    A fresh model has zero biases and norms of one: whole classes of mistakes change nothing in it.
    """
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * std)
    return model


@contextlib.contextmanager
def true_float64() -> Iterator[None]:
    """Make the reference compute in float64 throughout: it casts to float32 by name inside softmax, norms and masks.

    Wrap both the construction and the forward pass of the reference, and nothing of ours.
    """
    saved = torch.float32, torch.float, torch.Tensor.float, torch.get_default_dtype()
    torch.float32 = torch.float = torch.float64
    torch.Tensor.float = torch.Tensor.double  # type: ignore[method-assign]
    torch.set_default_dtype(torch.float64)
    try:
        yield
    finally:
        torch.float32, torch.float, torch.Tensor.float, default = saved  # type: ignore[method-assign]
        torch.set_default_dtype(default)


PLAIN_BYTES = [byte for byte in range(256) if chr(byte).isprintable() and byte not in (32, 173)]
OTHER_BYTES = [byte for byte in range(256) if byte not in PLAIN_BYTES]
"""The bytes that GPT-2's files write as themselves, and those for which other letters stand."""


@pytest.fixture(scope="session")
def made_vocabulary() -> dict[bytes, int]:
    """A byte-level BPE as large as GPT-2's, made up: all bytes, then joins of a space and small letters."""
    single = map(bytes, zip([*PLAIN_BYTES, *OTHER_BYTES]))
    letters = f" {string.ascii_lowercase}"
    longer = ("".join(some).encode() for size in (2, 3, 4) for some in itertools.product(letters, repeat=size))
    return {token: rank for rank, token in enumerate([*single, *itertools.islice(longer, 50_000)])}


@pytest.fixture(scope="session")
def gpt2_files(made_vocabulary: dict[bytes, int], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """That vocabulary as GPT-2's checkpoints hold theirs: a letter for each byte, and what is joined to what."""
    letter = {byte: chr(byte) for byte in PLAIN_BYTES} | {byte: chr(256 + n) for n, byte in enumerate(OTHER_BYTES)}
    written = {token: "".join(letter[byte] for byte in token) for token in made_vocabulary}
    folder = tmp_path_factory.mktemp("vocabulary")
    content = {text: made_vocabulary[token] for token, text in written.items()} | {"<|endoftext|>": 50256}
    (folder / "vocab.json").write_text(json.dumps(content), encoding="utf-8")
    cuts = [(token[:cut], token[cut:]) for token in written if (cut := last_join(token, made_vocabulary))]
    lines = ["#version: 0.2", *(f"{written[left]} {written[right]}" for left, right in cuts), ""]
    (folder / "merges.txt").write_text("\n".join(lines), encoding="utf-8")
    return folder


def last_join(token: bytes, ranks: dict[bytes, int]) -> int:
    """Where a token's two halves meet, if earlier tokens are joined first; 0 for a single byte."""
    parts = [bytes([byte]) for byte in token]
    while len(parts) > 2:
        pairs = [ranks.get(left + right, len(ranks)) for left, right in itertools.pairwise(parts)]
        first = pairs.index(min(pairs))
        parts[first : first + 2] = [parts[first] + parts[first + 1]]
    return len(parts[0]) if len(parts) > 1 else 0


@pytest.fixture
def gpt2_vocabulary(made_vocabulary: dict[bytes, int], monkeypatch: pytest.MonkeyPatch) -> None:
    """That vocabulary in the place of GPT-2's, which tiktoken would download."""
    import tiktoken
    from tiktoken_ext.openai_public import r50k_pat_str

    special = {"<|endoftext|>": 50256}
    made = tiktoken.Encoding("made", pat_str=r50k_pat_str, mergeable_ranks=made_vocabulary, special_tokens=special)
    monkeypatch.setattr(tiktoken, "get_encoding", lambda name: {"gpt2": made}[name])


@pytest.fixture(scope="session")
def site(tmp_path_factory: pytest.TempPathFactory, worker_id: str) -> Path:
    """The site, built in a fresh copy of this checkout by one command, once for all processes."""
    own = tmp_path_factory.getbasetemp()
    place = own if worker_id == "master" else own.parent
    with FileLock(f"{place / 'site'}.lock"):
        if not (place / "site").is_dir():
            copy = checkout(place / "checkout")
            build(copy, place / "site")
            for part in (copy / PREPARED).iterdir():  # for next time
                if not (ROOT / PREPARED / part.name).exists():
                    (ROOT / PREPARED).mkdir(parents=True, exist_ok=True)
                    shutil.copy(part, ROOT / PREPARED)
    return place / "site"


def checkout(folder: Path, *, prepared: bool = True) -> Path:
    """A copy of this checkout without what git ignores, but, where wanted, with what has been prepared of the site.

    The names of prepared files say what they were made from: what does not fit is made anew.
    """
    listed = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    found = subprocess.run(listed, cwd=ROOT, capture_output=True, text=True)
    names = found.stdout.split("\0") if found.returncode == 0 else ["allformers", "docs", "mkdocs.yml", "README.md"]
    names += [PREPARED] if prepared else []
    for name in filter(None, names):
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, folder / name, ignore=IGNORED, dirs_exist_ok=True)
        elif (ROOT / name).is_file():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, folder / name)
    return folder


def build(copy: Path, folder: Path) -> None:
    """Build the site of a checkout there, or leave nothing."""
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(folder)]
    quiet = {**os.environ, "NO_MKDOCS_2_WARNING": "1"}
    built = subprocess.run(command, cwd=copy, env=quiet, capture_output=True, text=True)
    if built.returncode:
        shutil.rmtree(folder, ignore_errors=True)
        pytest.fail(built.stderr)


@pytest.fixture(scope="session")
def pages(site: Path) -> dict[str, str]:
    """The HTML of the built site's pages, by their place in it."""
    found = sorted(site.rglob("*.html"))
    return {path.relative_to(site).as_posix(): path.read_text(encoding="utf-8") for path in found}
