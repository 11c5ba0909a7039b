"""The course as a learner meets it: the command, the process behind it, pytest, a notebook; and what can go wrong."""

import json
import linecache
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor

from allformers import cli
from allformers.checkpoints.atomic import sha256
from allformers.inspection import capture
from allformers.models.gpt2 import gpt2
from allformers.practice import check, transplant
from allformers.practice.course import entries, find
from allformers.practice.exercises.attention import CausalSelfAttention
from allformers.practice.exercises.kv_cache import CachedSelfAttention, KVCache
from allformers.practice.folder import Folder
from allformers.practice.loading import Loader
from allformers.practice.report import Report
from allformers.practice.source import code, stub
from allformers.practice.worker import FORKS, Worker

SOLVED = code(find("split-heads").load(), solved=True)
RIGHT = "return rearrange("


def instead(line: str) -> str:
    """The solution with another beginning of its last line."""
    return SOLVED.replace(RIGHT, line)


def first(line: str) -> str:
    """The solution with a line more."""
    return instead(f"{line}\n    {RIGHT}")


class Result(NamedTuple):
    status: int
    output: str
    errors: str


Run = Callable[..., Result]


class InProcess(Worker):
    """A worker that starts no process, for code that is known to do no harm."""

    def check(self, name: str) -> Report:
        loader, entry = Loader(self.folder), find(name)
        outcomes = list(loader.run_checks(entry))
        return Report(name, str(self.folder.file(entry)), outcomes, loader.parts, hints=list(entry.load().hints))


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Run:
    """Run `allformers practice` in an empty folder, in this process."""

    def run(*arguments: object) -> Result:
        monkeypatch.setattr(sys, "argv", ["allformers", "practice", *map(str, arguments)])
        with pytest.raises(SystemExit) as stopped:
            cli.main()
        captured = capsys.readouterr()
        return Result(int(stopped.value.code or 0), captured.out, captured.err)

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("allformers.practice.worker.Worker", InProcess)
    return run


# -- The command -------------------------------------------------------------------------------------------------------


def test_the_course_is_listed_in_order_with_how_far_one_has_come(run: Run) -> None:
    listed = run()
    places = [listed.output.index(f" {entry.name} ") for entry in entries()]
    assert places == sorted(places)
    assert listed.output.count("not started") == len(entries())
    assert "next: allformers practice start split-heads" in listed.output

    run("start")
    assert run().output.count("not started") == len(entries()) - 1
    Path("practice/split_heads.py").write_text(SOLVED.replace("(heads head_dim)", "(head_dim heads)"))
    run("check")
    assert "fails at values" in run().output
    Path("practice/split_heads.py").write_text(SOLVED)
    assert "changed since" in run().output
    run("check")
    assert "passed" in run().output
    assert f"next: allformers practice start {entries()[1].name}" in run().output


def test_listing_and_naming_take_no_pytorch() -> None:
    command = (
        "import sys; from allformers.cli import main; sys.argv = ['allformers', 'practice']\ntry: main()\nfinally: "
    )
    done = subprocess.run(
        [sys.executable, "-c", f"{command}print('torch' in sys.modules)"], capture_output=True, text=True
    )
    assert done.stdout.splitlines()[-1] == "False", done.stdout + done.stderr


def test_what_was_written_is_never_overwritten(run: Run) -> None:
    assert run("start", "split-heads").output.strip() == str(Path("practice/split_heads.py"))
    mine = Path("practice/split_heads.py")
    mine.write_text("mine")
    again = run("start", "split-heads")
    assert (again.status, again.output) == (2, "")
    assert "practice/split_heads.py" in again.errors
    assert mine.read_text() == "mine"
    tests = Path("practice/test_practice.py")
    tests.write_text("mine too")
    run("start", "causal-mask")
    assert tests.read_text() == "mine too"


def test_hints_come_one_after_the_other_and_are_remembered(run: Run) -> None:
    hints = find("split-heads").load().hints
    run("start", "split-heads")

    def given(*options: str) -> str:
        result = run("check", "split-heads", *options)
        assert result.status == 1
        return " ".join(result.output.split())

    for number, options in enumerate([(), (), ("--hint",), (), ("--hint",), ("--hint",)]):
        last = [0, 0, 1, 1, 2, 2][number]
        output = given(*options)
        for place, hint in enumerate(hints):
            assert (" ".join(hint.split()) in output) == (place == last), (number, place)
        assert f"hint {last + 1} of 3" in output
        more = "check split-heads --hint" if last < 2 else "solution split-heads"
        assert output.partition("more: allformers practice ")[2].startswith(more)
    Path("practice/split_heads.py").write_text(SOLVED)
    assert "hint" not in run("check", "split-heads", "--hint").output


@pytest.mark.parametrize("kind", [InProcess, pytest.param(Worker, marks=pytest.mark.slow)])
def test_the_exit_status_says_whether_all_passed(kind: type[Worker], run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    run("start", "split-heads", "causal-mask")
    Path("practice/split_heads.py").write_text(SOLVED)
    assert run("check", "split-heads").status == 0
    monkeypatch.setattr("allformers.practice.worker.Worker", kind)
    both = run("check")
    assert both.status == 1
    assert "1 of 2 passed" in both.output


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["check"], "practice `allformers practice start`"),
        (["check", "softmax"], "practice/softmax.py `allformers practice start softmax`"),
        (["check", "poetry"], "poetry split-heads"),
        (["start", "poetry"], "poetry"),
        (["solution", "poetry"], "poetry"),
        (["start", "splt_heads"], "splt_heads split-heads"),
        (["check", "--folder", "/no/such"], "/no/such"),
        (["dance"], "dance"),
    ],
)
def test_bad_input_is_one_clear_line_and_status_2(run: Run, arguments: list[str], message: str) -> None:
    result = run(*arguments)
    assert (result.status, result.output) == (2, "")
    assert all(word in result.errors for word in message.split()), result.errors
    assert result.errors.count("\n") == 1
    assert not Path("practice").exists()


def test_more_bad_input(run: Run) -> None:
    run("start", "split-heads", "softmax")
    assert "hint" in run("check", "--hint").errors
    assert "0 seconds" in run("check", "--timeout", 0).errors
    Path("practice/.progress.json").write_text("[]")
    broken = run()
    assert broken.status == 2
    assert "practice/.progress.json" in broken.errors


def test_another_folder(run: Run) -> None:
    started = run("start", "split-heads", "--folder", "mine")
    assert started.output.strip() == str(Path("mine/split_heads.py"))
    assert "allformers practice check split-heads --folder mine" in started.errors
    assert run("check", "--folder", "mine").status == 1
    assert "fails at written" in run("--folder", "mine").output
    assert not Path("practice").exists()


def test_the_folder_that_one_is_in(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    run("start", "split-heads")
    monkeypatch.chdir("practice")
    assert "fails at written" in (run("check") and run()).output
    assert run("--folder", "elsewhere", "start", "softmax").output.strip() == str(Path("elsewhere/softmax.py"))
    assert sorted(path.name for path in Path().glob("*.py")) == ["split_heads.py", "test_practice.py"]


def test_a_solution_is_code_that_runs_and_says_where_it_is_explained(run: Run) -> None:
    shown = run("solution", "softmax").output
    exec(compile(shown, "softmax", "exec"), names := {"__name__": "softmax"})
    assert names["softmax"](torch.zeros(1, 1, 1, 2)).tolist() == [[[[0.5, 0.5]]]]
    assert "gpt2.html#CausalSelfAttention.forward.weights" in shown


# -- What a learner's code may do --------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("practice")


@pytest.fixture(scope="module")
def worker(place: Path) -> Iterator[Worker]:
    with Worker(Folder(place), seconds=2) as worker:
        yield worker


BROKEN = {
    "does not end": (
        first("while True: pass"),
        "shapes",
        ["2 s", "split_heads.py", "line 11", "`split_heads`"],
    ),
    "does not end in the import": (
        "import time\n\n\ndef wait():\n    time.sleep(99)\n\n\nwait()\n",
        "import",
        ["2 s", "split_heads.py", "line 5", "`wait`", "time.sleep(99)"],
    ),
    "ends the process": (
        first("import os; os._exit(3)"),
        "shapes",
        ["3", "`os._exit`"],
    ),
    "crashes the process": (
        first("import ctypes; ctypes.string_at(0)"),
        "shapes",
        ["SIGSEGV", "split_heads.py", "line 11", "`split_heads`", "ctypes.string_at(0)"],
    ),
    "exits": (first("raise SystemExit(1)"), "shapes", ["sys.exit(1)", "line 11"]),
    "exits in the import": ("import sys\nsys.exit('no')\n", "import", ["sys.exit('no')", "line 2"]),
    "is no Python": (f"{SOLVED}\ndef (:\n", "import", ["SyntaxError", "line 13", "def (:"]),
    "is no text": ("\0", "import", ["null bytes"]),
    "misspells a name": (instead("return rearange("), "shapes", ["rearange", "line 11"]),
    "imports what is not there": (f"import einop\n{SOLVED}", "import", ["einop", "line 1"]),
    "has another name": (SOLVED.replace("def split_heads", "def split"), "import", ["`split_heads`"]),
    "is a number": ("split_heads = 3", "import", ["`split_heads`", "3"]),
    "asks its reader": (first("input()"), "shapes", ["EOFError", "line 11"]),
    "gives nothing": (instead("rearrange("), "shapes", ["None", "NoneType", "Float"]),
    "takes something else": (SOLVED.replace(", heads: int", ""), "shapes", ["1 positional argument but 2"]),
    "raises its own": (first("raise BaseException('mine')"), "shapes", ["BaseException: mine", "line 11"]),
    "never comes back": (first("return split_heads(x, heads)"), "shapes", ["RecursionError", "line 11"]),
    "changes its argument": (first("x += 1"), "each position keeps its own numbers", ["seq 3"]),
}


ANEW = {"crashes the process", "does not end in the import", "ends the process"}
"""After these a process has to be started anew, as after "does not end", which takes seconds."""


@pytest.mark.parametrize(
    "what", [pytest.param(what, marks=pytest.mark.slow if what in ANEW else ()) for what in BROKEN]
)
def test_code_that(what: str, worker: Worker, place: Path) -> None:
    text, where, says = BROKEN[what]
    (place / "split_heads.py").write_text(text)
    failure = worker.check("split-heads").failure
    assert failure is not None
    assert (failure.what or failure.check) == where, failure
    for piece in says:
        assert piece in failure.seen, failure.seen
    assert "Traceback" not in failure.seen
    assert "allformers/practice" not in failure.seen


def test_one_that_breaks_does_no_harm_to_the_next(worker: Worker, place: Path) -> None:
    setup = (
        "import os, sys, torch\ntorch.set_default_dtype(torch.float64)\ntorch.set_grad_enabled(False)\nos.chdir('/')\n"
    )
    (place / "causal_mask.py").write_text(f"{setup}sys.path.clear()\nprint('{{\"done\": true}}')\n")
    (place / "split_heads.py").write_text(SOLVED)
    assert worker.check("causal-mask").printed == '{"done": true}\n'
    report = worker.check("split-heads")
    assert report.passed, report
    assert report.printed == ""


HOSTILE = {
    "forks": "import os, time\nif os.fork() == 0:\n    time.sleep(97)\n    os._exit(0)\n",
    "forks a session": """import os, time
if os.fork() == 0:
    os.setsid()
    if os.fork() == 0:
        time.sleep(97)
""",
    "leaves its child behind": "import os, time\nif os.fork():\n    os._exit(0)\ntime.sleep(97)\n",
    "starts a process": "import subprocess\nsubprocess.Popen(['sleep', '97'], start_new_session=True)\n",
    "writes to every file": """import os
for file in range(3, 99):
    try:
        os.write(file, b'rubbish')
    except OSError:
        pass
""",
    "closes every file": "import os\nos.closerange(0, 999)\n",
    "raises ten million characters": "raise ValueError('A' * 10_000_000)\n",
    "takes much memory": "taken = bytearray(10**12)\n",
}

REPLACED = (
    "torch.softmax = None",
    "torch.manual_seed = lambda seed: None",
    "torch.Tensor.sum = lambda self, *a, **k: self",
    "torch.Tensor.__eq__ = None",
    "torch.equal = lambda *a: False",
    "torch.allclose = lambda *a, **k: False",
    "torch.randn = torch.rand = torch.randint = None",
    "torch.set_default_dtype(torch.float64)",
    "torch.set_default_device('meta')",
    "torch.set_num_threads(7)",
    "torch.set_grad_enabled(False)",
    "torch.use_deterministic_algorithms(True)",
    "torch.inference_mode().__enter__()",
    "torch.autograd.set_detect_anomaly(True)",
    "torch.nn.Module.__call__ = None",
    "torch.nn.Linear.forward = None",
    "torch.nn.functional.softmax = torch.nn.functional.linear = None",
    "torch.Tensor.backward = None",
    "torch.autograd.grad = None",
    "einops.rearrange = einops.einsum = einops.reduce = einops.repeat = None",
    "einops.einops._apply_recipe = None",
    "builtins.print = None",
    "builtins.open = None",
    "builtins.len = lambda x: 0",
    "builtins.isinstance = lambda *a: False",
    "builtins.__import__ = None",
    "json.dumps = json.loads = None",
    "os.open = os.write = os.close = None",
    "os._exit = None",
    "os.getpid = lambda: 1",
    "sys.exit()",
    "sys.stdout = sys.stderr = None",
    "sys.stdout.close()",
    "sys.modules.clear()",
    "sys.path.clear()",
    "sys.meta_path.clear()",
    "sys.setrecursionlimit(60)",
    "sys.settrace(lambda *a: 1 / 0)",
    "sys.excepthook = None",
    "os.environ.clear()",
    "os.chdir('/')",
    "os.umask(0o777)",
    "os.kill(os.getpid(), 9)",
    "os.kill(os.getpid(), 15)",
    "os.kill(os.getppid(), 9)",
    "os.killpg(0, 9)",
    "os.abort()",
    "os.execvp('sleep', ['sleep', '97'])",
    "signal.signal(signal.SIGTERM, signal.SIG_IGN); time.sleep(97)",
    "signal.signal(signal.SIGALRM, signal.SIG_IGN); signal.setitimer(signal.ITIMER_REAL, 0.01, 0.01)",
    "signal.pthread_sigmask(signal.SIG_BLOCK, range(1, 32)); time.sleep(97)",
    "faulthandler.cancel_dump_traceback_later(); time.sleep(97)",
    "faulthandler.disable(); ctypes.string_at(0)",
    "warnings.simplefilter('error'); warnings.warn('mine')",
    "logging.disable(); logging.shutdown()",
    "gc.disable(); gc.freeze()",
    "threading.Thread(target=time.sleep, args=(97,)).start()",
    "atexit.register(time.sleep, 97)",
    "random.seed = numpy.random.seed = None",
    "resource.setrlimit(resource.RLIMIT_NOFILE, (3, 3))",
)

IMPORTS = """import atexit, builtins, ctypes, faulthandler, gc, json, logging, os, random, resource, signal, sys
import threading, time, warnings
import einops, numpy, torch
"""


def survivors(mark: str, worker: Worker) -> list[str]:
    """The processes that a worker's exercises have left, by the environment that they inherit."""
    server = None if worker.process is None else worker.process.pid
    left = []
    for found in Path("/proc").glob("[0-9]*"):
        try:
            if mark.encode() in (found / "environ").read_bytes() and int(found.name) != server:
                left.append(f"{found.name}: {(found / 'cmdline').read_bytes()!r}")
        except OSError:
            continue
    return left


def check_hostile(hostile: str, worker: Worker, place: Path) -> Report:
    """Check a solution with hostile code behind it; then another one, which has to pass, and nothing may be left."""
    (place / "split_heads.py").write_text(f"{SOLVED}\n{hostile}\n")
    (place / "causal_mask.py").write_text(code(find("causal-mask").load(), solved=True))
    start = time.monotonic()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ALLFORMERS_TEST", str(place))  # which this worker's processes inherit, and no others
        report = worker.check("split-heads")
        assert time.monotonic() - start < worker.seconds + 20
        assert worker.check("causal-mask").passed
    assert survivors(f"ALLFORMERS_TEST={place}", worker) == []
    return report


@pytest.fixture(scope="module")
def marked(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Worker, Path]]:
    place = tmp_path_factory.mktemp("hostile")
    with Worker(Folder(place), seconds=4) as worker:
        yield worker, place


on_linux = pytest.mark.skipif(not FORKS, reason="elsewhere a process in a session of its own is not found")


@on_linux
@pytest.mark.parametrize(
    "what",
    [
        pytest.param(what, marks=() if what in {"forks a session", "closes every file"} else pytest.mark.slow)
        for what in HOSTILE
    ],
)
def test_what_an_exercise_starts_or_breaks_ends_with_it(what: str, marked: tuple[Worker, Path]) -> None:
    report = check_hostile(HOSTILE[what], *marked)
    assert len(str(report)) < 6000
    failed = {"leaves its child behind": "status 0", "raises ten million": "ValueError", "takes much": "MemoryError"}
    expected = next((says for begin, says in failed.items() if what.startswith(begin)), None)
    assert report.passed == (expected is None), report
    assert report.failure is None or expected in report.failure.seen


@on_linux
@pytest.mark.slow  # a process for each, and some are stopped at the time limit
@pytest.mark.parametrize("replaced", REPLACED)
def test_what_an_exercise_replaces_does_not_fail_the_next(replaced: str, marked: tuple[Worker, Path]) -> None:
    check_hostile(IMPORTS + replaced, *marked)


def test_an_argument_that_is_changed_in_place_is_noticed(worker: Worker, place: Path) -> None:
    solved = code(find("softmax").load(), solved=True)
    (place / "softmax.py").write_text(solved.replace("(scores - highest).exp()", "scores.sub_(highest).exp()"))
    failure = worker.check("softmax").failure
    assert failure is not None
    assert "`scores`" in failure.seen


def test_unnamed_operations_are_a_remark_and_no_failure(worker: Worker, place: Path) -> None:
    body = "return x.reshape(*x.shape[:2], heads, -1).transpose(1, 2)"
    (place / "split_heads.py").write_text(SOLVED[: SOLVED.index(RIGHT)] + body + "\n")
    report = worker.check("split-heads")
    assert report.passed
    assert report.outcomes[-1].state == "noted"
    assert "line 11: reshape; line 11: transpose" in report.outcomes[-1].seen


def test_a_part_is_the_learners_once_it_passes(worker: Worker, place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("causal-mask", "block", "gpt2"):
        (place / f"{find(name).stem}.py").write_text(code(find(name).load(), solved=True))
    (place / "attention.py").unlink(missing_ok=True)
    monkeypatch.setattr(worker, "seconds", 60)
    report = worker.check("gpt2")
    assert report.passed, report
    assert report.parts == {
        "attention": "the package's: yours is not started",
        "block": "yours",
        "causal-mask": "yours",
        "layer-norm": "the package's: yours is not started",
        "mlp": "the package's: yours is not started",
    }

    (place / "attention.py").write_text(stub(find("attention").load()))
    assert worker.check("block").parts["attention"] == "the package's: yours is not written yet"
    wrong = code(find("attention").load(), solved=True).replace("scores / math.sqrt(queries.shape[-1])", "scores")
    (place / "attention.py").write_text(wrong)
    assert worker.check("block").parts["attention"] == "the package's: yours fails at values"
    assert worker.check("block").passed


# -- pytest ------------------------------------------------------------------------------------------------------------


@pytest.mark.slow  # a process that starts more of them
def test_pytest_in_the_folder_reports_the_same_checks(tmp_path: Path) -> None:
    folder = Folder(tmp_path / "practice")
    for name in ("split-heads", "causal-mask"):
        folder.start(find(name))
    folder.file(find("split-heads")).write_text(SOLVED.replace("heads=heads", "heads=3"))
    command = [sys.executable, "-m", "pytest", "practice", "-v", "-p", "no:cacheprovider"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 1
    for line in (
        "practice/test_practice.py::test_practice[split-heads: import] PASSED",
        "practice/test_practice.py::test_practice[split-heads: shapes] FAILED",
        "practice/test_practice.py::test_practice[split-heads: each position keeps its own numbers] SKIPPED",
        "practice/test_practice.py::test_practice[causal-mask: written] FAILED",
    ):
        assert line in done.stdout
    assert "called with `x` of batch 1, seq 7, embed 6; `heads` 6" in done.stdout
    assert "hint 1 of 3" in done.stdout
    assert "Traceback" not in done.stdout
    assert folder.state(find("split-heads")) == "fails at shapes"


# -- A notebook --------------------------------------------------------------------------------------------------------


def split_heads(x: Float[Tensor, "batch seq embed"], heads: int) -> Float[Tensor, "batch heads seq head_dim"]:
    """As in a cell of a notebook."""
    return rearrange(x, "batch seq (heads head_dim) -> batch heads seq head_dim", heads=heads)


def test_a_live_function_is_checked_by_its_name() -> None:
    report = check(split_heads)
    assert isinstance(report, Report)
    assert report.passed, report
    assert repr(report).startswith("split-heads  Split heads, in `split_heads`\n  ✓ import")


def test_a_live_class_is_checked_whatever_it_is_called() -> None:
    class Mine(CausalSelfAttention):
        pass

    assert check("attention", Mine).passed
    assert check("kv-cache", CachedSelfAttention).passed
    assert KVCache.__module__ == CachedSelfAttention.__module__


def test_a_live_function_without_a_source_is_checked_too() -> None:
    exec("def causal_mask(seq): raise NotImplementedError('not written yet')", names := {"__name__": "__main__"})
    report = check("causal-mask", names["causal_mask"])
    assert not report.passed
    assert report.failure is not None
    assert report.failure.check == "written"
    exec("import torch\ndef causal_mask(seq): return torch.ones(seq, seq).triu(1)", names)
    report = check(names["causal_mask"])
    assert all(word in repr(report) for word in ("float32", "bool"))
    assert "hint 1 of 3" in repr(report)


def test_an_error_in_a_cell_is_placed_in_the_cell() -> None:
    cell = "def causal_mask(seq):\n    return torch.arange(seqs)\n"
    linecache.cache["<cell 7>"] = (len(cell), None, cell.splitlines(keepends=True), "<cell 7>")
    exec(compile(cell, "<cell 7>", "exec"), names := {"__name__": "__main__", "torch": torch})
    failure = check(names["causal_mask"]).failure
    assert failure is not None
    assert all(part in failure.seen for part in ("seqs", "line 2", "`causal_mask`", "return torch.arange(seqs)"))


def test_a_part_can_be_transplanted_into_a_model() -> None:
    class MLP(gpt2.MLP):
        def forward(self, x: Float[Tensor, "batch seq embed"]) -> Float[Tensor, "batch seq embed"]:
            return 0 * x

    token_ids = torch.tensor([[72, 101, 108]])
    model = gpt2.GPT2(gpt2.GPT2Config.tiny()).eval()
    before = model(token_ids)
    assert transplant(model, MLP) is model
    with capture(model, "blocks.*.mlp") as activations:
        assert not torch.equal(model(token_ids), before)
    assert [bool(tensor.values.any()) for tensor in activations.values()] == [False, False]
    with pytest.raises(ValueError, match=r"Linear_.*Block, CausalSelfAttention"):
        transplant(model, type("Linear_", (torch.nn.Linear,), {}))


def test_what_is_no_exercise_is_refused() -> None:
    with pytest.raises(ValueError, match="`print`"):
        check(print)
    with pytest.raises(ValueError, match="poetry"):
        check("poetry", print)
    with pytest.raises(ValueError, match=r"."):
        check("softmax")


def test_progress_is_plain_to_read(tmp_path: Path) -> None:
    folder = Folder(tmp_path)
    folder.start(find("split-heads"))
    report = Report("split-heads", "", [], hints=["one"])
    folder.record(report)
    written = json.loads((tmp_path / ".progress.json").read_text())
    assert written["split-heads"]["hints"] == folder.hints(find("split-heads")) == 1


def test_progress_of_an_older_folder_is_still_read(tmp_path: Path) -> None:
    folder, entry = Folder(tmp_path), find("split-heads")
    path = folder.start(entry)
    known = {"found": "passed", "digest": sha256(path), "hints": 2}
    (tmp_path / ".progress.json").write_text(json.dumps({"split-heads": known}))
    assert (folder.state(entry), folder.hints(entry)) == ("passed", 2)
    path.write_text(SOLVED)
    assert "changed" in folder.state(entry)
