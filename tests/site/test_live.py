"""The site's live model, `docs/theme/assets/model.js`, against Python's GPT-2 on the same half-precision weights."""

import json
import re
import shutil
import subprocess
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import allformers
from allformers.generation.sampling import apply_temperature, greedy, keep_top_k, keep_top_p
from allformers.inspection import capture
from allformers.models.gpt2.gpt2 import GPT2, GPT2Config
from docs.engine.live import weights_script

ASSETS = Path(__file__).parents[2] / "docs" / "theme" / "assets"
LOWEST = torch.finfo(torch.float32).min
NODE = shutil.which("node")

pytestmark = [
    pytest.mark.site,
    pytest.mark.skipif(NODE is None, reason="node is not on the PATH: nothing here to run the page's script"),
]

REAL = (
    b"T",
    b"de",
    b"The for statement",
    b"The for statement is used to iterate over the elements of a sequen",
    "naïve café, 1–2 € \n".encode(),
)

PASS = """
"use strict";
const fs = require("fs");
const [script, weights, task, out] = process.argv.slice(1);
globalThis.allformers = require(script);
require(weights);
const model = allformers.decode(allformers.weights);
const { prompts, all } = JSON.parse(fs.readFileSync(task, "utf8"));
const index = [], chunks = [];
let offset = 0;
function keep(entry, values) {
  index.push({ ...entry, offset, size: values.length });
  chunks.push(Buffer.from(values.buffer, values.byteOffset, values.byteLength));
  offset += values.length;
}
if (all) {
  for (const [name, { shape, values }] of Object.entries(model.tensors)) keep({ parameter: name, shape }, values);
}
prompts.forEach((ids, prompt) => {
  const { logits, activations } = allformers.forward(model, ids);
  if (logits !== activations.logits) throw new Error("logits is not the activation of that name");
  for (const [name, { axes, shape, values }] of Object.entries(activations))
    keep({ prompt, name, axes, shape }, values);
});
let milliseconds = null;
if (all) {
  const ids = Array.from({ length: 32 }, (_, i) => 97 + (i % 26)), start = performance.now();
  allformers.forward(model, ids);
  milliseconds = performance.now() - start;
}
fs.writeFileSync(out + ".bin", Buffer.concat(chunks));
fs.writeFileSync(out + ".json", JSON.stringify({ index, milliseconds }));
"""
"""What node runs: every tensor of a pass over each prompt, into one binary file and its table of contents."""

SAMPLING = """
"use strict";
const fs = require("fs");
const [script, task] = process.argv.slice(1);
const allformers = require(script);
const { logits, settings } = JSON.parse(fs.readFileSync(task, "utf8"));
const rows = logits.map((row) => Float32Array.from(row));
const all = rows.map((row) => settings.map(([temperature, topK, topP]) =>
  Array.from(allformers.distribution(row, { temperature, topK, topP }), (p) => (Number.isNaN(p) ? -1 : p))));
process.stdout.write(JSON.stringify(all));
"""

Tensors = Mapping[str, tuple[tuple[str, ...], Tensor]]
"""By name: axes and values."""


def node(program: str, *arguments: Path) -> str:
    """Run a program in node, and give what it prints."""
    assert NODE is not None
    done = subprocess.run(
        [NODE, "-e", program, *map(str, arguments)], capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def run_pass(script: Path, weights: Path, prompts: list[list[int]], folder: Path, everything: bool) -> dict[str, Any]:
    """Every tensor that the script sees for each prompt; with `everything`, also the parameters and the time."""
    task = folder / "task.json"
    task.write_text(json.dumps({"prompts": prompts, "all": everything}))
    node(PASS, script, weights, task, folder / "out")
    contents = json.loads((folder / "out.json").read_text())
    numbers = np.fromfile(folder / "out.bin", dtype="<f4")
    parameters: dict[str, Tensor] = {}
    passes: list[dict[str, tuple[tuple[str, ...], Tensor]]] = [{} for _ in prompts]
    for entry in contents["index"]:
        values = torch.from_numpy(numbers[entry["offset"] : entry["offset"] + entry["size"]].copy())
        values = values.reshape(entry["shape"])
        if "parameter" in entry:
            parameters[entry["parameter"]] = values
        else:
            passes[entry["prompt"]][entry["name"]] = (tuple(entry["axes"]), values)
    return {"parameters": parameters, "passes": passes, "milliseconds": contents["milliseconds"]}


def python_pass(model: GPT2, token_ids: list[int]) -> Tensors:
    """What Python sees for the same prompt, but for the masks."""
    with torch.no_grad(), capture(model) as activations:
        model(torch.tensor([token_ids]))
    return {
        name: (tensor.axes, tensor.values.float())
        for name, tensor in activations.items()
        if tensor.values.dtype is not torch.bool
    }


def differences(ours: Tensors, pythons: Tensors) -> dict[str, float]:
    """For each of Python's tensors, the largest difference; infinite where name, axes, shape or mask differ."""
    worst = dict.fromkeys(ours.keys() ^ pythons.keys(), float("inf"))
    for name in ours.keys() & pythons.keys():
        (axes, values), (python_axes, python_values) = ours[name], pythons[name]
        worst[name] = float("inf")
        if axes != python_axes or values.shape != python_values.shape:
            continue
        masked = python_values == LOWEST
        if torch.equal(values == LOWEST, masked):
            gap = (values - python_values)[~masked].abs()
            worst[name] = gap.max().item() if not gap.isnan().any() else float("inf")
    return worst


@pytest.fixture(scope="module")
def rounded() -> GPT2:
    """The bundled model with each parameter rounded to half precision."""
    model = allformers.load("bundled")
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(parameter.half().float())
    return model


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("weights") / "weights.js"
    path.write_text(weights_script(), encoding="ascii")
    return path


@pytest.fixture(scope="module")
def prompts() -> list[list[int]]:
    generator = torch.Generator().manual_seed(1)
    drawn = [torch.randint(256, (length,), generator=generator).tolist() for length in (1, 2, 17, 64)]
    return [*map(list, REAL), *drawn]


@pytest.fixture(scope="module")
def live(weights: Path, prompts: list[list[int]], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """One run of the page's script over all prompts."""
    return run_pass(ASSETS / "model.js", weights, prompts, tmp_path_factory.mktemp("live"), everything=True)


def test_the_weights_fit_a_page(weights: Path) -> None:
    assert weights.stat().st_size <= 2_500_000
    assert weights.read_text().count("allformers.weights = {") == 1


def test_the_weights_arrive_bit_by_bit(live: dict[str, Any], rounded: GPT2) -> None:
    expected = dict(rounded.named_parameters())
    assert live["parameters"].keys() == expected.keys()
    assert "unembedding.weight" not in expected  # tied, so it travels once
    for name, values in live["parameters"].items():
        assert torch.equal(values, expected[name]), name


def test_the_model_is_what_the_script_implements() -> None:
    """The script has GPT-2's own switches and no others."""
    config = allformers.load("bundled").config
    sizes = {"vocab_size", "context_length", "embedding_dim", "num_layers", "num_heads", "mlp_dim", "dropout"}
    switches = {field.name for field in fields(GPT2Config)} - sizes
    published = GPT2Config.gpt2_small()
    assert all(getattr(config, name) == getattr(published, name) for name in switches)


def test_every_tensor_of_a_pass_is_pythons(live: dict[str, Any], prompts: list[list[int]], rounded: GPT2) -> None:
    overall: dict[str, float] = {}
    for token_ids, ours in zip(prompts, live["passes"], strict=True):
        worst = differences(ours, python_pass(rounded, token_ids))
        assert max(worst.values()) <= 1e-4, {name: gap for name, gap in worst.items() if gap > 1e-4}
        assert {
            "embed",
            "blocks.3.attention.weights",
            "blocks.0.mlp.activated",
            "residual_stream",
            "logits",
        } <= worst.keys()
        overall = {name: max(gap, overall.get(name, 0.0)) for name, gap in worst.items()}
    name = max(overall, key=overall.__getitem__)
    print(
        f"\n{len(overall)} tensors; largest difference {overall[name]:.1e} in {name}, {overall['logits']:.1e} in logits"
    )
    print(f"a pass over 32 tokens: {live['milliseconds']:.0f} ms")


def test_tensors_come_in_the_order_of_computing(live: dict[str, Any], rounded: GPT2) -> None:
    assert list(live["passes"][0]) == list(python_pass(rounded, [84]))


def test_half_precision_hardly_changes_a_prediction(prompts: list[list[int]], rounded: GPT2) -> None:
    full = allformers.load("bundled")
    worst = 0.0
    for token_ids in prompts:
        ids = torch.tensor([token_ids])
        with torch.no_grad():
            gap = F.softmax(full(ids), dim=-1) - F.softmax(rounded(ids), dim=-1)
        worst = max(worst, gap.abs().max().item())
    print(f"\nrounding to half precision moves a probability by at most {worst:.4f}")
    assert worst < 0.01


SETTINGS: list[tuple[float, int | None, float | None]] = [
    (temperature, top_k, top_p)
    for temperature in (0.0, 0.05, 0.7, 1.0, 2.0)
    for top_k in (None, 1, 2, 7, 40, 256, 300)
    for top_p in (None, 0.05, 0.3, 0.5, 0.9, 0.99, 1.0)
]


def python_distribution(logits: Tensor, temperature: float, top_k: int | None, top_p: float | None) -> Tensor:
    """What `allformers.generation.sampling.sample` draws from."""
    if temperature == 0:
        return F.one_hot(greedy(logits), logits.shape[-1]).float()
    logits = apply_temperature(logits, temperature)
    if top_k is not None:
        logits = keep_top_k(logits, top_k)
    if top_p is not None:
        logits = keep_top_p(logits, top_p)
    return F.softmax(logits, dim=-1)


def distributions(script: Path, logits: Tensor, settings: list[Any], folder: Path) -> Tensor:
    """What the script draws from: `rows settings vocab`."""
    task = folder / "sampling.json"
    task.write_text(json.dumps({"logits": logits.tolist(), "settings": settings}))
    return torch.tensor(json.loads(node(SAMPLING, script, task)))


def sampling_gap(script: Path, logits: Tensor, settings: list[Any], folder: Path) -> float:
    """The largest difference of a probability from Python's, over all settings."""
    ours = distributions(script, logits, settings, folder)
    return max(
        (ours[:, number] - python_distribution(logits, *setting)).abs().max().item()
        for number, setting in enumerate(settings)
    )


@pytest.fixture(scope="module")
def next_logits(prompts: list[list[int]], rounded: GPT2) -> Tensor:
    """For each prompt, the scores of what may follow it."""
    with torch.no_grad():
        return torch.cat([rounded(torch.tensor([token_ids]))[:, -1] for token_ids in prompts])


@pytest.fixture(scope="module")
def tied_logits() -> Tensor:
    """Rows with equal logits: all of them, the top two, and a few values over and over."""
    generator = torch.Generator().manual_seed(2)
    few = torch.randint(6, (2, 256), generator=generator).float()
    top_two = torch.zeros(1, 256)
    top_two[0, [9, 200]] = 5.0
    return torch.cat([torch.zeros(1, 256), few, top_two])


def test_settings_reshape_the_odds_as_in_python(next_logits: Tensor, tmp_path: Path) -> None:
    gap = sampling_gap(ASSETS / "model.js", next_logits, SETTINGS, tmp_path)
    print(f"\n{len(SETTINGS)} settings on {len(next_logits)} prompts: largest difference of a probability {gap:.1e}")
    assert gap <= 1e-6


def test_ties_are_broken_as_in_python(tied_logits: Tensor, tmp_path: Path) -> None:
    """The first of equals wins for temperature 0 and top-p; top-k promises how many stay, not which of the equals."""
    script = ASSETS / "model.js"
    stable = [setting for setting in SETTINGS if setting[1] is None or setting[1] >= 256 or setting[0] == 0]
    assert sampling_gap(script, tied_logits, stable, tmp_path) <= 1e-6

    tied = [(1.0, top_k, None) for top_k in (1, 2, 7, 40, 255)]
    ours = distributions(script, tied_logits, tied, tmp_path)
    for number, (_, top_k, _) in enumerate(tied):
        theirs = python_distribution(tied_logits, *tied[number])
        assert ((ours[:, number] > 0).sum(-1) == top_k).all()
        assert torch.allclose(ours[:, number].sort().values, theirs.sort().values, rtol=0, atol=1e-6)
    assert ours[0, 1].nonzero().flatten().tolist() == [0, 1]  # the script's own promise: the first of equals


def test_draws_follow_the_odds() -> None:
    program = """
    const allformers = require(process.argv[1]);
    const odds = new Float32Array([0, 0.5, 0, 0.3, 0.2, 0]), counts = new Array(6).fill(0);
    const random = allformers.random(7), again = allformers.random(7);
    for (let i = 0; i < 20000; i++) {
      const uniform = random();
      if (uniform !== again()) throw new Error("one seed, two sequences");
      counts[allformers.draw(odds, uniform)]++;
    }
    const ends = [allformers.draw(odds, 0), allformers.draw(odds, 1)];
    process.stdout.write(JSON.stringify({ counts, ends }));
    """
    found = json.loads(node(program, ASSETS / "model.js"))
    assert found["ends"] == [1, 4]  # never a token that was ruled out
    for count, odds in zip(found["counts"], (0, 0.5, 0, 0.3, 0.2, 0), strict=True):
        assert abs(count / 20000 - odds) < (0.02 if odds else 1e-9)


PASS_MISTAKES = {
    "the scale forgotten": ("1 / Math.sqrt(headDim)", "1"),
    "another constant in GELU": ("0.044715", "0.04715"),
    "the mask off by one": ("mask = k <= q;", "mask = k <= q + 1;"),
    "the mask hiding a position from itself": ("mask = k <= q;", "mask = k < q || k === 0;"),
    "variance over one fewer": ("** 2 / embed", "** 2 / (embed - 1)"),
    "norm without eps": ("variance + eps", "variance"),
    "positions counted from one": ("+ positions[s * embed + e]", "+ positions[(s + 1) * embed + e]"),
    "heads outside qkv": ("((s * 3 + qkv) * heads + h)", "((s * heads + h) * 3 + qkv)"),
    "heads merged in another order": ("(s * heads + h) * headDim", "(h * seq + s) * headDim"),
    "the stream not added to": ("add(x, gathered)", "gathered"),
    "the MLP's sum from before attention": ("add(xMid, transformed)", "add(x, transformed)"),
    "one norm for both": ("normOf(`${block}.mlp_norm`", "normOf(`${block}.attention_norm`"),
    "the final norm forgotten": ('linear(normOf("final_norm", x),', "linear(x,"),
    "the high byte first": (
        "bytes.charCodeAt(2 * i) | (bytes.charCodeAt(2 * i + 1) << 8)",
        "bytes.charCodeAt(2 * i + 1) | (bytes.charCodeAt(2 * i) << 8)",
    ),
    "a name misspelt": ("`${block}.x_mid`", "`${block}.middle`"),
    "queries before they are scaled": (
        'perHead(`${attention}.queries`, "seq", unscaled.map((v) => v * scale))',
        'perHead(`${attention}.queries`, "seq", unscaled).map((v) => v * scale)',
    ),
    "an axis misnamed": ('"batch heads seq seq_k"', '"batch heads seq_k seq"'),
}

SAMPLING_MISTAKES = {
    "temperature multiplied": ("v / temperature", "v * temperature"),
    "one too many by top-k": ("slice(0, topK)", "slice(0, topK + 1)"),
    "the crossing token dropped": (
        "rank === 0 ? 0 : Math.fround(Math.fround(sum) - probabilities[id])",
        "rank === 0 ? 0 : sum",
    ),
    "the likeliest not always kept": ("before < Math.fround(topP)", "sum < Math.fround(topP)"),
    "ties in reverse order": ("|| a - b", "|| b - a"),
    "top-p before top-k": (
        "if (topK !== null) left = keepTopK(left, topK);\n    if (topP !== null) left = keepTopP(left, topP);",
        "if (topP !== null) left = keepTopP(left, topP);\n    if (topK !== null) left = keepTopK(left, topK);",
    ),
}


def mutant(folder: Path, right: str, wrong: str) -> Path:
    """A copy of the script with a mistake."""
    source = (ASSETS / "model.js").read_text(encoding="utf-8")
    assert source.count(right) == 1, f"{right!r} stands {source.count(right)} times in model.js"
    path = folder / "model.js"
    path.write_text(source.replace(right, wrong), encoding="utf-8")
    return path


@pytest.mark.parametrize("mistake", PASS_MISTAKES)
def test_a_mistake_in_the_pass_is_caught(mistake: str, weights: Path, rounded: GPT2, tmp_path: Path) -> None:
    script = mutant(tmp_path, *PASS_MISTAKES[mistake])
    prompt = list(REAL[2])
    ours = run_pass(script, weights, [prompt], tmp_path, everything=False)["passes"][0]
    assert max(differences(ours, python_pass(rounded, prompt)).values()) > 1e-4


@pytest.mark.parametrize("mistake", SAMPLING_MISTAKES)
def test_a_mistake_in_sampling_is_caught(
    mistake: str, next_logits: Tensor, tied_logits: Tensor, tmp_path: Path
) -> None:
    script = mutant(tmp_path, *SAMPLING_MISTAKES[mistake])
    real = sampling_gap(script, next_logits, SETTINGS, tmp_path)
    tied = sampling_gap(script, tied_logits, [setting for setting in SETTINGS if setting[1] is None], tmp_path)
    assert max(real, tied) > 1e-6


def test_a_text_longer_than_the_context_is_refused(weights: Path) -> None:
    program = """
    globalThis.allformers = require(process.argv[1]);
    require(process.argv[2]);
    const model = allformers.decode(allformers.weights);
    for (const length of [0, 257]) {
      try { allformers.forward(model, new Array(length).fill(65)); console.log("accepted"); }
      catch (error) { console.log(error.message); }
    }
    """
    said = node(program, ASSETS / "model.js", weights).splitlines()
    assert [re.findall(r"\d+", line) for line in said] == [["1", "256", "0"], ["1", "256", "257"]]


def test_the_scripts_need_nothing_from_elsewhere() -> None:
    """Classic scripts that load nothing but what the page names: they work from a disk and without a network."""
    for name in ("model.js", "live.js"):
        source = (ASSETS / name).read_text(encoding="utf-8")
        assert not re.search(
            r"https?://|\bfetch\(|XMLHttpRequest|new Worker|^\s*(import|export)\b|\bimport\(", source, re.M
        )
        node("new (require('vm').Script)(require('fs').readFileSync(process.argv[1], 'utf8'))", ASSETS / name)
