"""The KV cache: the work that it saves, the memory that it takes."""

import copy
import statistics
import time
from functools import partial

import torch

from allformers.experiments.experiment import Experiment, encode, question_of
from allformers.inspection import figures, meta_model, summarise, trace
from allformers.models.gpt2.gpt2 import GPT2, GPT2Config
from allformers.models.registry import load
from allformers.training.data import python_documentation


@torch.no_grad()
def kv_cache() -> Experiment:
    """What does the cache of keys and values save?"""
    config = GPT2Config.gpt2_small()
    gpt2_small = meta_model(GPT2, config)
    model = load("bundled")
    lengths = [16, 32, 64, 128, 256]
    flops: dict[str, list[float]] = {"the whole text again": [], "with the cache": []}
    medians: dict[str, list[float]] = {name: [] for name in flops}
    for length in lengths:
        meta_ids = torch.zeros(1, length, dtype=torch.long, device="meta")
        cache = gpt2_small.make_cache()
        gpt2_small(meta_ids[:, :-1], cache=cache)
        flops["the whole text again"].append(trace(gpt2_small, meta_ids).flops / 1e9)
        flops["with the cache"].append(trace(gpt2_small, meta_ids[:, -1:], cache=cache).flops / 1e9)

        token_ids = encode(python_documentation()[:length])
        filled = model.make_cache()
        model(token_ids[:, :-1], cache=filled)
        milliseconds: dict[str, list[float]] = {name: [] for name in flops}
        for _ in range(7):
            cache_copy = copy.deepcopy(filled)
            for name, call in zip(
                flops, (partial(model, token_ids), partial(model, token_ids[:, -1:], cache=cache_copy)), strict=True
            ):
                start = time.perf_counter()
                call()
                milliseconds[name].append((time.perf_counter() - start) * 1e3)
        for name, found in milliseconds.items():
            medians[name].append(statistics.median(found))
    again, cached = flops.values()
    slow, fast = medians.values()
    per_token = summarise(GPT2, config).cache_bytes_per_token
    figure = figures.line_plots(
        {"GPT-2 small: GFLOPs for one more token": flops, "bundled model: milliseconds, measured": medians},
        lengths,
        "tokens in the text",
        log=(True, True),
    )
    return Experiment(
        question=question_of(kv_cache),
        numbers={"lengths": lengths, "GFLOPs": flops, "milliseconds": medians, "bytes a token": per_token},
        conclusion=(
            f"At {lengths[-1]} tokens one more takes GPT-2 small {again[-1]:.1f} GFLOPs if the whole text is read "
            f"again and {cached[-1]:.3f} with the cache, {again[-1] / cached[-1]:.0f} times less; without it a token "
            f"costs the more the longer the text, with it nearly the same. The bundled model took {slow[-1]:.1f} ms "
            f"and {fast[-1]:.1f} ms here. The price is memory: {per_token / 1024:.0f} KiB for each token of GPT-2 "
            "small."
        ),
        figure=figure,
    )
