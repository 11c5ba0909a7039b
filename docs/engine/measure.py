"""What takes long and is therefore prepared: experiments' answers, models' costs, quantization of the bundled model.

Each function gives the contents of one file; `docs.engine.prepare` says when it is made anew.
"""

import json
from typing import Any

import torch
from torch import nn

from allformers.training.data import python_documentation
from allformers.training.evaluation import evaluate
from allformers.training.recipes import bundled

PASSAGES = 16
"""How many passages are read of the text that the bundled model was not trained on, spread evenly over it."""


def experiment(name: str) -> str:
    """Run an experiment; return its conclusion and figure as JSON."""
    from allformers.experiments import EXPERIMENTS
    from allformers.inspection import figures

    found = EXPERIMENTS[name]()
    return json.dumps({"conclusion": found.conclusion, "figure": figures.to_svg(found.figure)}, indent=1)


def costs(name: str) -> str:
    """Return the costs of every preset of a model as JSON, each from a pass over a whole context on the meta device."""
    from allformers.inspection import summarise
    from allformers.models.registry import READING_ORDER
    from docs.engine.presets import presets

    measures = ("parameters", "flops_per_token", "weight_bytes", "cache_bytes_per_token")
    (entry,) = (entry for entry in READING_ORDER if entry.name == name)
    told = {preset: summarise(entry.load(), config) for preset, config in presets(entry.module).items()}
    return json.dumps({preset: {one: getattr(cost, one) for one in measures} for preset, cost in told.items()})


def weight_formats() -> str:
    """The bytes of the linear layers and the loss of the bundled model, for each weight format."""
    from allformers.models.gpt2.gpt2 import GPT2
    from allformers.speed.linear import QuantizedLinear, prepare

    found: dict[str, dict[str, float]] = {}
    for weights in ("plain", "int8", "int4"):
        model: Any = GPT2.from_pretrained("bundled")
        linear = [module for module in model.modules() if isinstance(module, nn.Linear)]
        size = sum(layer.weight.nbytes for layer in linear)
        if weights != "plain":
            prepare(model, weights)
            quantized = [module for module in model.modules() if isinstance(module, QuantizedLinear)]
            size = sum(layer.qweight.nbytes + layer.scale.nbytes for layer in quantized) or size
        found[weights] = {"bytes": size, "loss": loss_of(model)}
    return json.dumps(found, indent=1)


def live_weights() -> str:
    """Return the weights of the bundled model for the page's script."""
    from docs.engine.live import weights_script

    return weights_script()


def loss_of(model: Any) -> float:
    """Return a model's loss in nats a byte on `PASSAGES` passages that the bundled model was not trained on."""
    text = python_documentation().encode()
    unseen = text[-int(len(text) * bundled().validation_fraction) :]
    places = torch.linspace(0, len(unseen) - 257, PASSAGES).long().tolist()
    passages = [torch.tensor(list(unseen[place : place + 257])) for place in places]
    return sum(evaluate(model, passage, window=257).loss for passage in passages) / PASSAGES
