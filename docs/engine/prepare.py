"""What has to be made before the site is built: experiments' answers, the live model's weights, exercises' pages.

    python -m docs.prepare && mkdocs build --strict

The pages of exercises go to `docs/practice`, everything else to `docs/generated`. What is there is kept as long as the
package's source and PyTorch are the same.
"""

import json
import multiprocessing
import shutil
from concurrent.futures import ProcessPoolExecutor
from typing import Any

import torch

from allformers.experiments import EXPERIMENTS
from allformers.inspection import figures
from allformers.models.gpt2.gpt2 import GPT2
from allformers.speed.onednn import Linear
from allformers.speed.prepare import RoundedLinear, prepare
from docs.engine.breaks import loss_of
from docs.engine.exercises import write_pages
from docs.engine.facts import GENERATED, ROOT, inline_svg, stamp, summaries
from docs.engine.live import write_weights


def run_experiments() -> dict[str, dict[str, str]]:
    """Every experiment's question, answer and figure."""
    torch.set_num_threads(1)  # the other core is busy, and models this small only lose by sharing it
    answers = {}
    for name, run in EXPERIMENTS.items():
        experiment = run()
        answers[name] = {
            "question": experiment.question,
            "conclusion": experiment.conclusion,
            "figure": inline_svg(figures.to_svg(experiment.figure), name),
        }
    return answers


def lay_out() -> dict[str, dict[str, float]]:
    """For each way to round the bundled model's weights: the bytes of its linear layers, and its loss."""
    found: dict[str, dict[str, float]] = {}
    for weights in ("plain", "int8", "int4"):
        model: Any = GPT2.from_pretrained("bundled")
        linear = [module for module in model.modules() if isinstance(module, Linear)]
        size = sum(layer.weight.nbytes for layer in linear)
        if weights != "plain":
            prepare(model, weights)
            rounded = [module for module in model.modules() if isinstance(module, RoundedLinear)]
            size = sum(layer.numbers.nbytes + layer.scale.nbytes for layer in rounded) or size
        found[weights] = {"bytes": size, "loss": loss_of(model)}
    return found


def main() -> None:
    """Make everything, unless it is there already; the pages of exercises always, since that takes no time."""
    write_pages()
    written = GENERATED / "stamp.txt"
    now = stamp()
    if written.is_file() and written.read_text(encoding="utf-8") == now:
        return
    shutil.rmtree(GENERATED, ignore_errors=True)
    GENERATED.mkdir(parents=True)
    with ProcessPoolExecutor(2, mp_context=multiprocessing.get_context("spawn")) as both:
        answers, costs, kinds = both.submit(run_experiments), both.submit(summaries), both.submit(lay_out)
        (GENERATED / "experiments.json").write_text(json.dumps(answers.result(), indent=1), encoding="utf-8")
        (GENERATED / "summaries.json").write_text(json.dumps(costs.result(), indent=1), encoding="utf-8")
        (GENERATED / "layouts.json").write_text(json.dumps(kinds.result(), indent=1), encoding="utf-8")
    for path in ROOT.glob("allformers/**/*.py"):
        module = ".".join(path.relative_to(ROOT).with_suffix("").parts)
        (GENERATED / "source").mkdir(exist_ok=True)
        (GENERATED / "source" / f"{module}.txt").write_bytes(path.read_bytes())
    write_weights(GENERATED / "weights.js")
    written.write_text(now, encoding="utf-8")


if __name__ == "__main__":
    main()
