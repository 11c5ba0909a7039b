"""One step of training, in the order in which it happens: batch, forward, loss, backward, clip, step, schedule.

A text of N tokens holds N - 1 lessons: after these tokens comes that one. Because no position sees a later one, a
single forward pass answers all of them at once, and the loss is how surprised the model was on average.
"""

import math
from contextlib import AbstractContextManager
from functools import partial
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Float, Int, Integer
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from allformers.nn.shapes import checked
from allformers.training.data import draw_batch
from allformers.training.processes import SINGLE_PROCESS, Processes
from allformers.training.recipes import Recipe


class Progress(NamedTuple):
    """What a training step reports. Reading a number waits for a GPU, so the tensors are left as they are.

    Attributes:
        step: how many steps have been taken.
        loss: of this process's rows, in nats a token, before the step.
        learning_rate: of the step.
        gradient_norm: before clipping.
    """

    step: int
    loss: Tensor
    learning_rate: float
    gradient_norm: Tensor


@checked
def next_token_loss(logits: Float[Tensor, "batch seq vocab"], targets: Int[Tensor, "batch seq"]) -> Float[Tensor, ""]:
    """The mean surprise, in nats, at the tokens that came: minus the log of the probability each was given.

    A model that knows nothing spreads its bets evenly and scores ln(vocab).
    """
    return F.cross_entropy(
        rearrange(logits, "batch seq vocab -> (batch seq) vocab"), rearrange(targets, "batch seq -> (batch seq)")
    )


def learning_rate_at(step: int, recipe: Recipe) -> float:
    """Rise in a straight line, then fall along half a cosine: fast while far from the goal, careful at the end.

    Source: Loshchilov and Hutter 2016, "SGDR", arXiv:1608.03983, without its restarts.
    """
    if step < recipe.warmup_steps:
        return recipe.learning_rate * (step + 1) / recipe.warmup_steps
    progress = (step - recipe.warmup_steps) / max(1, recipe.steps - recipe.warmup_steps)
    height = (1 + math.cos(math.pi * progress)) / 2
    return recipe.final_learning_rate + height * (recipe.learning_rate - recipe.final_learning_rate)


def make_optimizer(model: nn.Module, recipe: Recipe) -> torch.optim.AdamW:
    """AdamW (Loshchilov and Hutter 2017, arXiv:1711.05101), which decays matrices and embeddings only.

    A bias or a norm's gain has one number for each output: pulling it to zero limits nothing that needs limiting.
    """
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    groups = [
        {"params": [p for p in parameters if p.ndim >= 2], "weight_decay": recipe.weight_decay},
        {"params": [p for p in parameters if p.ndim < 2], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=recipe.learning_rate, betas=(recipe.beta1, recipe.beta2), fused=True)


def recompute(model: Any) -> None:
    """Let each block keep only what enters it, and compute what is inside again when gradients come back, in place.

    A training step then holds the activations of one block at a time and not of all. Dropout draws the same numbers
    again. Source: Chen et al. 2016, arXiv:1604.06174.
    """
    for block in model.blocks:
        block.forward = partial(checkpoint, block.forward, use_reentrant=False)


class Trainer:
    """A model that learns: everything that changes from step to step, and how it changes.

    Attributes:
        model: trained in place.
        optimizer: its AdamW.
        batches: the generator that decides where batches are cut.
        step: how many steps have been taken.

    Args:
        model: takes token ids and gives logits; on the processor if there are several processes.
        tokens: the text to learn from.
        recipe: how.
        processes: which part of each batch is this process's.

    Raises:
        ValueError: the batch does not divide into equal parts for the processes.
    """

    @checked
    def __init__(
        self, model: nn.Module, tokens: Integer[Tensor, "text"], recipe: Recipe, processes: Processes = SINGLE_PROCESS
    ) -> None:
        if recipe.batch_size % processes.world_size:
            raise ValueError(
                f"a batch of {recipe.batch_size} sequences does not divide into equal parts for {processes.world_size} "
                "processes: change batch_size or the number of processes"
            )
        rows = recipe.batch_size // processes.world_size
        self.tokens, self.recipe, self.processes = tokens, recipe, processes
        self.rows = slice(processes.rank * rows, (processes.rank + 1) * rows)
        self.model = model.train()
        if recipe.recompute:
            recompute(model)
        wrapped = processes.wrap(model)
        self.wrapped = wrapped
        self.forward = torch.compile(wrapped) if recipe.compile else wrapped
        self.optimizer = make_optimizer(model, recipe)
        self.batches = torch.Generator().manual_seed(recipe.seed)
        self.step = 0
        if processes.rank:  # each drops other values; the first draws on from where drawing the weights ended
            torch.manual_seed(recipe.seed + processes.rank)
        if processes.device.type == "cuda":
            torch.set_float32_matmul_precision("high")  # TF32: 10 bits of mantissa in products, float32 in sums
        self._schedule()

    def advance(self) -> Progress:
        """Take one step."""
        recipe, processes = self.recipe, self.processes

        # Batch: this process's rows of it, in parts that fit into memory.
        inputs, targets = draw_batch(self.tokens, recipe.batch_size, recipe.seq_length, self.batches, self.rows)
        part = recipe.micro_batch_size or len(inputs)
        loss = torch.zeros((), device=processes.device)
        for start in range(0, len(inputs), part):
            some_inputs = self._place(inputs[start : start + part])
            some_targets = self._place(targets[start : start + part])
            processes.set_gradient_sync(self.wrapped, enabled=start + part >= len(inputs))

            # Forward, and the loss: its mean over the batch is the sum of the parts' means, each by its share.
            with self.autocast():
                logits = self.forward(some_inputs)
                part_loss = next_token_loss(logits, some_targets) * (len(some_inputs) / len(inputs))

            # Backward: adds to each parameter's gradient.
            part_loss.backward()
            loss += part_loss.detach()

        # Clip: one batch with a steep gradient must not undo what many have taught.
        norm = nn.utils.clip_grad_norm_(self.model.parameters(), recipe.clip_norm)

        # Step, then the learning rate of the next one.
        self.optimizer.step()
        self.optimizer.zero_grad()
        learning_rate = self.optimizer.param_groups[0]["lr"]
        self.step += 1
        self._schedule()
        return Progress(self.step, loss, learning_rate, norm.full_tensor() if hasattr(norm, "full_tensor") else norm)

    def autocast(self) -> AbstractContextManager[Any]:
        """The precision that the model runs in."""
        bfloat16 = self.recipe.precision == "bfloat16"
        return torch.autocast(self.processes.device.type, torch.bfloat16, enabled=bfloat16)

    def state(self) -> dict[str, Tensor]:
        """What, beside the weights and `step`, the next step depends on, by name; every process gets all of it.

        AdamW's averages for each parameter, and the state of all random generators. The averages are the optimiser's
        own, not copies: the next step changes them. With several processes each has to call this.
        """
        tensors = {"batches": self.batches.get_state()}
        for name, parameter in self.model.named_parameters():
            for key, value in self.optimizer.state[parameter].items():
                whole = value.full_tensor() if hasattr(value, "full_tensor") else value  # sharded, or not
                tensors[f"{key}.{name}"] = whole.cpu()
        for rank, states in enumerate(self.processes.gather(self._random_states())):
            tensors |= {f"random.{device}.{rank}": state for device, state in states.items()}
        return tensors

    def restore(self, step: int, state: dict[str, Tensor]) -> None:
        """Go back to where `state` was taken. The number of processes may have changed.

        Raises:
            ValueError: something is missing.
        """
        keys = ("step", "exp_avg", "exp_avg_sq")
        names = [name for name, _ in self.model.named_parameters()]
        missing = {"batches", *(f"{key}.{name}" for key in keys for name in names)} - set(state)
        if missing:
            raise ValueError(f"the optimiser's state lacks {', '.join(sorted(missing))}")
        for name, parameter in self.model.named_parameters():
            values = {key: state[f"{key}.{name}"].to(parameter.device) for key in keys}
            if hasattr(parameter, "full_tensor"):
                from torch.distributed.tensor import distribute_tensor

                for key in keys[1:]:
                    values[key] = distribute_tensor(values[key], parameter.device_mesh, parameter.placements)  # type: ignore[attr-defined]
            self.optimizer.state[parameter] = values
        self.batches.set_state(state["batches"])
        for device, now in self._random_states().items():
            saved = state.get(f"random.{device}.{self.processes.rank}", now)
            torch.set_rng_state(saved) if device == "cpu" else torch.cuda.set_rng_state(saved, self.processes.device)
        self.step = step
        self._schedule()

    def _random_states(self) -> dict[str, Tensor]:
        states = {"cpu": torch.get_rng_state()}
        if self.processes.device.type == "cuda":
            states["cuda"] = torch.cuda.get_rng_state(self.processes.device)
        return states

    def _schedule(self) -> None:
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate_at(self.step, self.recipe)

    def _place(self, part: Tensor) -> Tensor:
        """Bring a part of the batch to the device; from pinned memory a GPU fetches it while it still computes."""
        if self.processes.device.type == "cuda":
            return part.pin_memory().to(self.processes.device, non_blocking=True)
        return part.to(self.processes.device)
