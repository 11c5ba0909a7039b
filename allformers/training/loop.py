"""One step of training, in the order in which it happens: batch, forward, loss, backward, clip, step, schedule.

A text of N tokens holds N - 1 training examples: after these tokens comes that one. Because no position sees a later
one, a single forward pass answers all of them at once, and the loss is how surprised the model was on average.
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


class StepMetrics(NamedTuple):
    """The metrics of one training step. Loss and norm stay tensors: to read their values would wait for the GPU.

    Attributes:
        step: the number of steps taken so far.
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
    """Mean cross-entropy, in nats: minus the log of the probability given to the token that came, its surprise.

    A model that knows nothing gives all tokens the same probability and scores ln(vocab).
    """
    return F.cross_entropy(
        rearrange(logits, "batch seq vocab -> (batch seq) vocab"), rearrange(targets, "batch seq -> (batch seq)")
    )


def learning_rate_at(step: int, recipe: Recipe) -> float:
    """Linear warm-up, then cosine decay: fast while far from the goal, careful at the end.

    Source: Loshchilov and Hutter 2016, "SGDR", arXiv:1608.03983, without its restarts.
    """
    if step < recipe.warmup_steps:
        return recipe.learning_rate * (step + 1) / recipe.warmup_steps
    progress = (step - recipe.warmup_steps) / max(1, recipe.steps - recipe.warmup_steps)
    height = (1 + math.cos(math.pi * progress)) / 2
    return recipe.final_learning_rate + height * (recipe.learning_rate - recipe.final_learning_rate)


def make_optimizer(model: nn.Module, recipe: Recipe) -> torch.optim.AdamW:
    """Make an AdamW optimiser that decays matrices and embeddings only.

    Biases and gains are few and need no regularisation.
    Source: Loshchilov and Hutter 2017, arXiv:1711.05101.
    """
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    groups = [
        {"params": [p for p in parameters if p.ndim >= 2], "weight_decay": recipe.weight_decay},
        {"params": [p for p in parameters if p.ndim < 2], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=recipe.learning_rate, betas=(recipe.beta1, recipe.beta2), fused=True)


def recompute(model: Any) -> None:
    """Activation checkpointing: keep only each block's input, and recompute the block in the backward pass; in place.

    A training step then holds the activations of one block at a time and not of all. Dropout draws the same numbers
    again. Source: Chen et al. 2016, arXiv:1604.06174.
    """
    for block in model.blocks:
        block.forward = partial(checkpoint, block.forward, use_reentrant=False)


class Trainer:
    """The training loop's state (model, optimiser, random generators, step) and one step of it, `train_step`.

    Attributes:
        model: trained in place.
        optimizer: AdamW over its parameters.
        batch_generator: the random generator that decides where batches are cut.
        step: the number of steps taken so far.

    Args:
        model: takes token ids and gives logits; on the CPU if there are several processes.
        tokens: the token ids of the training text.
        recipe: the hyperparameters.
        processes: this process's rank, which decides its rows of each batch, and the number of processes.

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
        self.batch_generator = torch.Generator().manual_seed(recipe.seed)
        self.step = 0
        # Every rank needs its own dropout masks; rank 0 keeps the generator state left by the weight initialisation.
        if processes.rank:
            torch.manual_seed(recipe.seed + processes.rank)
        if processes.device.type == "cuda":
            torch.set_float32_matmul_precision("high")  # TF32: 10 bits of mantissa in products, float32 in sums
        self._schedule()

    def train_step(self) -> StepMetrics:
        """Take one optimiser step on the next batch."""
        recipe, processes = self.recipe, self.processes

        # Batch: this process's rows of it, in micro-batches that fit into memory (gradient accumulation).
        inputs, targets = draw_batch(self.tokens, recipe.batch_size, recipe.seq_length, self.batch_generator, self.rows)
        micro_batch_size = recipe.micro_batch_size or len(inputs)
        loss = torch.zeros((), device=processes.device)
        for start in range(0, len(inputs), micro_batch_size):
            stop = start + micro_batch_size
            micro_inputs = self._to_device(inputs[start:stop])
            micro_targets = self._to_device(targets[start:stop])
            processes.set_gradient_sync(self.wrapped, enabled=stop >= len(inputs))

            # Forward, and the loss: its mean over the batch is the micro-batches' means, each weighted by its share.
            with self.autocast():
                logits = self.forward(micro_inputs)
                micro_loss = next_token_loss(logits, micro_targets) * (len(micro_inputs) / len(inputs))

            # Backward: adds to each parameter's gradient.
            micro_loss.backward()
            loss += micro_loss.detach()

        # Clip: one batch with a large gradient must not undo what many have taught.
        gradient_norm = nn.utils.clip_grad_norm_(self.model.parameters(), recipe.clip_norm)

        # Step, then the learning rate of the next one.
        self.optimizer.step()
        self.optimizer.zero_grad()
        learning_rate = self.optimizer.param_groups[0]["lr"]
        self.step += 1
        self._schedule()
        if hasattr(gradient_norm, "full_tensor"):  # sharded
            gradient_norm = gradient_norm.full_tensor()
        return StepMetrics(self.step, loss, learning_rate, gradient_norm)

    def autocast(self) -> AbstractContextManager[Any]:
        """The autocast context of the recipe's precision; it does nothing for float32."""
        bfloat16 = self.recipe.precision == "bfloat16"
        return torch.autocast(self.processes.device.type, torch.bfloat16, enabled=bfloat16)

    def state(self) -> dict[str, Tensor]:
        """Collect the training state beside the weights and `step`, as tensors by name, whole in every process.

        That is AdamW's two moments for each parameter, and the state of all random generators: all else that the next
        step depends on. The moments are not copies: the next step changes them. With several processes each has to
        call this.
        """
        tensors = {"batch_generator": self.batch_generator.get_state()}
        for name, parameter in self.model.named_parameters():
            for key, value in self.optimizer.state[parameter].items():
                whole = value.full_tensor() if hasattr(value, "full_tensor") else value  # sharded, or not
                tensors[f"{key}.{name}"] = whole.cpu()
        for rank, states in enumerate(self.processes.gather(self._random_states())):
            tensors |= {f"random.{device}.{rank}": state for device, state in states.items()}
        return tensors

    def restore(self, step: int, state: dict[str, Tensor]) -> None:
        """Restore the training state that `state` collected at `step`. The number of processes may have changed.

        Raises:
            ValueError: something is missing.
        """
        if "batches" in state:  # the generator's name in older checkpoints
            state = {**state, "batch_generator": state["batches"]}
        keys = ("step", "exp_avg", "exp_avg_sq")
        names = [name for name, _ in self.model.named_parameters()]
        missing = {"batch_generator", *(f"{key}.{name}" for key in keys for name in names)} - set(state)
        if missing:
            raise ValueError(f"the optimiser's state lacks {', '.join(sorted(missing))}")
        for name, parameter in self.model.named_parameters():
            values = {key: state[f"{key}.{name}"].to(parameter.device) for key in keys}
            if hasattr(parameter, "full_tensor"):
                from torch.distributed.tensor import distribute_tensor

                for key in keys[1:]:
                    values[key] = distribute_tensor(values[key], parameter.device_mesh, parameter.placements)  # type: ignore[attr-defined]
            self.optimizer.state[parameter] = values
        self.batch_generator.set_state(state["batch_generator"])
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

    def _to_device(self, part: Tensor) -> Tensor:
        """Copy a micro-batch to the device; from pinned memory a GPU fetches it while it still computes."""
        if self.processes.device.type == "cuda":
            return part.pin_memory().to(self.processes.device, non_blocking=True)
        return part.to(self.processes.device)
