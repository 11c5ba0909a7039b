"""What has to be made before the site is built: the experiments' answers, and the bundled model for the page's script.

    python -m docs.prepare && mkdocs build --strict

Everything goes to `docs/generated`. What is there is kept as long as the package's source and PyTorch are the same.
"""

import json
import multiprocessing
import re
import shutil
from concurrent.futures import ProcessPoolExecutor

import torch

from allformers import figures
from allformers.experiments import EXPERIMENTS
from docs.facts import GENERATED, ROOT, stamp, summaries
from docs.live import write_weights


def inline_svg(drawn: str, prefix: str) -> str:
    """An SVG to be put into a page beside others: only the ids that it refers to, and these its own."""
    used = set(re.findall(r'(?:url\(#|href="#)([^)"]+)', drawn))
    drawn = re.sub(r' id="([^"]+)"', lambda found: f' id="{prefix}-{found[1]}"' if found[1] in used else "", drawn)
    drawn = re.sub(r'(url\(#|href="#)', rf"\g<1>{prefix}-", drawn)
    drawn = re.sub(r"<metadata>.*?</metadata>|<!--.*?-->", "", drawn, flags=re.DOTALL)
    return re.sub(r">\s+<", "><", re.sub(r"\s*\n\s*", " ", drawn))


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


def main() -> None:
    """Make everything, unless it is there already."""
    written = GENERATED / "stamp.txt"
    now = stamp()
    if written.is_file() and written.read_text(encoding="utf-8") == now:
        return
    shutil.rmtree(GENERATED, ignore_errors=True)
    GENERATED.mkdir(parents=True)
    with ProcessPoolExecutor(2, mp_context=multiprocessing.get_context("spawn")) as both:
        answers, costs = both.submit(run_experiments), both.submit(summaries)
        (GENERATED / "experiments.json").write_text(json.dumps(answers.result(), indent=1), encoding="utf-8")
        (GENERATED / "summaries.json").write_text(json.dumps(costs.result(), indent=1), encoding="utf-8")
    for path in ROOT.glob("allformers/**/*.py"):
        module = ".".join(path.relative_to(ROOT).with_suffix("").parts)
        (GENERATED / "source").mkdir(exist_ok=True)
        (GENERATED / "source" / f"{module}.txt").write_bytes(path.read_bytes())
    write_weights(GENERATED / "weights.js")
    written.write_text(now, encoding="utf-8")


if __name__ == "__main__":
    main()
