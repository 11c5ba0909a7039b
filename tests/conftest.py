"""What all tests share: perturbed models, the reference in true float64, and data that may lie beside the checkout."""

import contextlib
import json
import os
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("OMP_NUM_THREADS", "1")  # tests run side by side, and so do processes that they start
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")

import pytest
import torch
from filelock import FileLock
from torch import nn

torch.set_num_threads(1)  # models this small only lose by sharing the work, and tests may run beside other things

SHARED = Path(__file__).resolve().parents[2] / "shared"
"""Data that may lie beside the checkout; tests that want it skip where it is absent."""


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add `--record-parity`, which writes what the comparisons with the reference found."""
    parser.addoption("--record-parity", type=Path, metavar="FOLDER", help="write the differences that were measured")


def pytest_configure(config: pytest.Config) -> None:
    """Refuse to record from several processes: each would know of its own comparisons only."""
    if config.getoption("--record-parity") is not None and config.getoption("numprocesses", None):
        raise pytest.UsageError("--record-parity wants one process: say -n 0, too")


def pytest_itemcollected(item: pytest.Item) -> None:
    """Mark what needs the built site, and no browser."""
    if "site" in getattr(item, "fixturenames", ()) and item.get_closest_marker("browser") is None:
        item.add_marker(pytest.mark.site)


TOGETHER = (
    "tests/site/test_pages.py",
    "tests/site/test_live.py",
    "tests/test_experiments.py",
    "tests/training/test_processes.py",
)
"""Files whose tests share something costly, so that one process runs them, one after the other."""


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Hand out tests one by one, but for those files."""
    from xdist.scheduler import LoadScopeScheduling

    class Scheduling(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            return next((file for file in TOGETHER if nodeid.startswith(file)), nodeid)

    return Scheduling(config, log)


COMPARED: dict[str, dict[tuple[str, str, str], dict[str, object]]] = {}
"""What was compared with the reference so far: for each model, by what, of what and in which dtype."""


def close_enough(what: str, of: str, dtype: torch.dtype, difference: float, bar: float, model: str = "gpt2") -> bool:
    """Whether a difference from the reference is within its bar; and remember it, for the site's table."""
    key = what, of, str(dtype).removeprefix("torch.")
    row = COMPARED.setdefault(model, {}).setdefault(key, {"comparisons": 0, "largest": 0.0, "bar": bar})
    row["comparisons"] = int(row["comparisons"]) + 1  # type: ignore[call-overload]
    row["largest"] = max(float(row["largest"]), difference)  # type: ignore[arg-type]
    return difference <= bar


def pytest_sessionfinish(session: pytest.Session, exitstatus: int) -> None:
    """Write the record, if it was asked for and all is well."""
    folder = session.config.getoption("--record-parity")
    if folder is None or exitstatus:
        return
    import transformers

    from allformers.models.registry import READING_ORDER
    from docs.engine.facts import digest_of

    folder.mkdir(parents=True, exist_ok=True)
    for entry in READING_ORDER:
        if entry.name in COMPARED:
            rows = COMPARED[entry.name].items()
            record = {
                "command": shlex.join(["pytest", *session.config.invocation_params.args]),
                "torch": torch.__version__,
                "transformers": transformers.__version__,
                "digest": digest_of(entry.module),
                "rows": [{"what": what, "of": of, "dtype": dtype, **row} for (what, of, dtype), row in rows],
            }
            path = folder / f"{entry.name}-parity.json"
            path.write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)


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


@pytest.fixture
def gpt2_vocabulary(monkeypatch: pytest.MonkeyPatch) -> None:
    """GPT-2's vocabulary from a cache that lies beside the checkout; skips the test where there is none."""
    cache = Path(os.environ.get("TIKTOKEN_CACHE_DIR", SHARED / "tiktoken-cache"))
    if not cache.is_dir():
        pytest.skip(f"GPT-2's vocabulary is not cached at {cache}")
    monkeypatch.setenv("TIKTOKEN_CACHE_DIR", str(cache))


@pytest.fixture(scope="session")
def site(tmp_path_factory: pytest.TempPathFactory, worker_id: str) -> Path:
    """The site, built as its page for contributors says, once for all processes."""
    from docs.engine import prepare

    own = tmp_path_factory.getbasetemp()
    folder = (own if worker_id == "master" else own.parent) / "site"
    with FileLock(f"{folder}.lock"):
        if folder.is_dir():
            return folder
        prepare.main()
        return build(folder)


def build(folder: Path) -> Path:
    """Build the site there, or leave nothing."""
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(folder)]
    quiet = {**os.environ, "NO_MKDOCS_2_WARNING": "1"}
    built = subprocess.run(command, cwd=Path(__file__).parents[1], env=quiet, capture_output=True, text=True)
    if built.returncode:
        shutil.rmtree(folder, ignore_errors=True)
        pytest.fail(built.stderr)
    return folder


@pytest.fixture(scope="session")
def pages(site: Path) -> dict[str, str]:
    """The HTML of the built site's pages, by their place in it."""
    found = sorted(site.rglob("*.html"))
    return {path.relative_to(site).as_posix(): path.read_text(encoding="utf-8") for path in found}
