"""Norms before or after the sub-layers, in deep fresh models."""

import torch
from einops import rearrange
from jaxtyping import Bool, Float
from torch import Tensor, nn

from allformers.experiments.experiment import Experiment, question_of
from allformers.inputs.tokenizers import ByteTokenizer
from allformers.inspection import figures
from allformers.models.gpt2.gpt2 import GPT2, Block, GPT2Config
from allformers.nn.cache import LayerCache
from allformers.nn.shapes import checked
from allformers.training.data import python_documentation
from allformers.training.loop import next_token_loss


class PostNormBlock(Block):
    """Post-norm, as in the original transformer and GPT-1: add first, then normalise the stream itself."""

    @checked
    def forward(
        self,
        x: Float[Tensor, "batch seq embed"],
        mask: Bool[Tensor, "#batch 1 seq seq_k"],
        cache: LayerCache | None = None,
    ) -> Float[Tensor, "batch seq embed"]:
        """Add to the residual stream, and normalise it. Arguments as for attention."""
        x_mid = self.attention_norm(x + self.attention(x, mask, cache))
        return self.mlp_norm(x_mid + self.mlp(x_mid))


def pre_norm(depths: tuple[int, ...] = (6, 12, 24, 48)) -> Experiment:
    """Why do the norms stand before the sub-layers (pre-norm) and not after them?

    Source: Xiong et al. 2020, "On Layer Normalization in the Transformer Architecture", arXiv:2002.04745.
    """
    text = torch.tensor(ByteTokenizer().encode(python_documentation()[:20_000]))
    tokens = rearrange(text[: 8 * 65], "(batch seq) -> batch seq", seq=65)
    block_classes = {"pre-norm": Block, "post-norm": PostNormBlock}
    norms: dict[str, dict[int, list[float]]] = {name: {} for name in block_classes}
    for name, block_class in block_classes.items():
        for depth in depths:
            model = _deep_model(depth, block_class)
            next_token_loss(model(tokens[:, :-1]), tokens[:, 1:]).backward()
            gradients = [model.get_parameter(f"blocks.{layer}.mlp.down.weight").grad for layer in range(depth)]
            norms[name][depth] = [float(gradient.norm()) for gradient in gradients if gradient is not None]
    last = {name: [found[depth][-1] for depth in depths] for name, found in norms.items()}
    deepest = {name: found[depths[-1]] for name, found in norms.items()}
    ratio = depths[-1] / depths[0]
    growth = {name: values[-1] / values[0] for name, values in last.items()}
    figure = figures.subplots(
        (f"gradient of each layer's MLP, {depths[-1]} layers", deepest, range(depths[-1]), "layer"),
        ("gradient of the last layer's MLP", last, depths, "layers in the model"),
        log=(False, True),
    )
    return Experiment(
        question=question_of(pre_norm),
        numbers={"layers": depths, "gradient of the last layer": last, "gradient by layer, deepest model": deepest},
        conclusion=(
            f"In a fresh model {ratio:.0f} times as deep, all layers move at once, so each should move less. With "
            f"pre-norm it does: the gradient of the last layer becomes {growth['pre-norm']:.2f} times as long (in "
            f"theory 1/√{ratio:.0f} = {ratio**-0.5:.2f}). With post-norm it becomes {growth['post-norm']:.2f} times "
            "as long, and the first steps of a deep model are together too large. By that, Xiong et al. 2020 explain "
            "why post-norm models need a warm-up; this experiment measures the gradients only."
        ),
        figure=figure,
    )


def _deep_model(layers: int, block_class: type[Block]) -> GPT2:
    """A narrow, deep, fresh model, its matrices drawn as in the original transformer (Xavier)."""
    config = GPT2Config(
        vocab_size=256,
        context_length=64,
        embedding_dim=64,
        num_layers=layers,
        num_heads=4,
        mlp_dim=256,
        dropout=0.0,
    )
    torch.manual_seed(0)
    model = GPT2(config)
    for block in model.blocks:
        block.__class__ = block_class
        for matrix in block.parameters():
            if matrix.ndim == 2:
                nn.init.xavier_normal_(matrix)
    if block_class is PostNormBlock:  # its last block ends with a norm
        model.final_norm = nn.Identity()  # type: ignore[assignment]
    return model
