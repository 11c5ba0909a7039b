"""Tables that connect a model with its checkpoints: the name and layout of each weight, the name of each field.

What a model calls things, and how its matrices lie, differs from what the checkpoint says; each model states the
differences once, as data, and the other files of this folder apply them in both directions:

    >>> up = Weight("h.{layer}.mlp.c_fc.weight", "blocks.{layer}.mlp.up.weight", "embed mlp -> mlp embed")
    >>> width = Field("n_embd", "embedding_dim", 768)
"""

import dataclasses
import functools
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple


class Weight(NamedTuple):
    """One row of a weight table.

    Attributes:
        theirs: the name in the checkpoint. `{layer}` stands for each layer's number. `{expert}` stands for each
            expert's: theirs are single matrices, and ours holds them all, along its first axis `experts`.
        ours: the name in the model.
        axes: the axes of the weight; where it lies differently in the two, an einops pattern from theirs to ours.
        tied_to: for a weight that the checkpoint may leave out: the parameter of ours that it then equals.

    A row counts for the models that have such a parameter: without biases, the rows of biases stand for nothing, and
    where only some layers have experts, the rows of experts are for those layers.
    """

    theirs: str
    ours: str
    axes: str
    tied_to: str | None = None

    @property
    def their_axes(self) -> str:
        """The axes as they lie in the checkpoint."""
        return self.axes.split("->")[0].strip()

    @property
    def our_axes(self) -> str:
        """The axes as they lie in the model."""
        return self.axes.split("->")[-1].strip()

    def names(self, axes: Mapping[str, int]) -> list[str]:
        """The names in the checkpoint: one, or one for each expert."""
        if "{expert}" not in self.theirs:
            return [self.theirs]
        return [self.theirs.replace("{expert}", str(expert)) for expert in range(axes["experts"])]

    @property
    def each(self) -> "Weight":
        """The row for a single matrix of those that are joined: without the first axis, `experts`."""
        if "{expert}" not in self.theirs:
            return self
        sides = [side.strip().removeprefix("experts").strip() for side in self.axes.split("->")]
        return self._replace(axes=" -> ".join(sides))


REQUIRED = object()
"""The default of a field that the reference does without in no file."""


class Field(NamedTuple):
    """One row of a configuration table.

    Attributes:
        theirs: the field in `config.json`; a dot stands for nesting.
        ours: the field of the model's configuration. Rows that share it must agree in a checkpoint.
        default: the value if the field is missing: the reference's own, or `REQUIRED`, or a function of what is known
            by then: all of `config.json` under its names, and the rows above under ours.
        when: the condition for reading and writing the field: the `ours` of a row above, then the values for which the
            field counts. Without a condition it always counts.
        otherwise: the value where the condition does not hold; None leaves it to the model's configuration.
        null_is_missing: True where null stands for the default. Elsewhere null is None, and the type of the
            configuration's field says whether that is allowed.
        for_training: True where the value counts in training alone. Then rows that share `ours` may disagree: the first
            one counts, and a warning says so.
    """

    theirs: str
    ours: str
    default: Any | Callable[[Mapping[str, Any]], Any]
    when: tuple[str, ...] = ()
    otherwise: Any = None
    null_is_missing: bool = False
    for_training: bool = False

    def counts(self, known: Mapping[str, Any]) -> bool:
        """True if the field is read and written, by the values of the rows above under our names."""
        return not self.when or known[self.when[0]] in self.when[1:]


class Accepted(NamedTuple):
    """What is accepted of a field that is mostly refused, where that is not one value or a few.

    Attributes:
        words: the words for it in an error message.
        holds: True for a value that is accepted.
    """

    words: str
    holds: Callable[[Any], bool]


class Stated(NamedTuple):
    """What a `config.json` says of a field.

    Attributes:
        name: the name under which it says so; a dot stands for nesting.
        value: the value.
    """

    name: str
    value: Any


class Size(NamedTuple):
    """One row of a model's table of sizes.

    Attributes:
        name: the name on the command line, such as "gpt2-medium".
        hub_name: the name on the Hugging Face hub of published weights of this size; empty if there are none.
        parameters: the number of parameters, a tied unembedding counted once.
        config: the configuration.
    """

    name: str
    hub_name: str
    parameters: int
    config: Any


def linear(theirs: str, ours: str, axes: str) -> tuple[Weight, Weight]:
    """The rows of a linear layer: its matrix, of these axes, and its bias, along the first axis of the matrix."""
    matrix = Weight(f"{theirs}.weight", f"{ours}.weight", axes)
    outputs = re.match(r"\(.*?\)|\w+", matrix.our_axes)
    assert outputs is not None
    return matrix, Weight(f"{theirs}.bias", f"{ours}.bias", outputs[0])


def norm(theirs: str, ours: str, axes: str = "embed") -> tuple[Weight, Weight]:
    """The rows of a layer norm: its gain and its shift."""
    return Weight(f"{theirs}.weight", f"{ours}.weight", axes), Weight(f"{theirs}.bias", f"{ours}.bias", axes)


def each_layer(theirs: str, ours: str, *rows: Weight) -> tuple[Weight, ...]:
    """Rows for every layer, with a prefix that all names begin with."""
    return tuple(row._replace(theirs=f"{theirs}.{row.theirs}", ours=f"{ours}.{row.ours}") for row in rows)


@dataclass(frozen=True, kw_only=True)
class Format:
    """The format of a model's checkpoints: its two tables, and what is left out on purpose.

    Attributes:
        model_type: the value of `model_type` in `config.json`.
        architecture: the reference's class, written to `architectures` when saving.
        config_class: the model's configuration.
        fields: the configuration table. Together with the next three it names every field that the reference's
            configuration of this model has.
        aliases: other names that the reference takes for the same fields.
        ignored_fields: fields with no part in the arithmetic, each with the reason.
        unsupported_fields: fields with which the model would be another one: the only value accepted, a tuple of
            them, or an `Accepted`; and the reason.
        objects: the fields that hold fields; one inside another comes after it, with a dot.
        standardise: brings the fields of a file, by their names, to the table's names, where aliases are not enough.
        weights: the weight table, but for the head.
        head: the rows of the head, which makes logits of the residual stream; empty for an encoder without one.
        ignored_weights: names that hold no weights, each with the reason.
        prefix: the prefix that some checkpoints put before all names but the head's.
        copies: further names under which files may hold a weight of the table once more, and its name there.
        other_heads: beginnings of the names of heads that the model does not have, each with what it is.
        extra_layers: the field that counts layers behind the last one, which predict more than the next token and are
            left out; empty if no checkpoint has any.
        extra_config: further fields to write for a configuration, where the reference's default would not fit it.
        legacy_suffixes: endings of weights' names in older files, and what they became.
        load_via_files: True if a live model names or lays out its weights otherwise than its files do, and so has to be
            copied by way of these.
        variants: subclasses of the model that a few checkpoints need; each has `is_asked_for(config_json)`.
    """

    model_type: str
    architecture: str
    config_class: type
    fields: tuple[Field, ...]
    aliases: Mapping[str, str]
    ignored_fields: Mapping[str, str]
    unsupported_fields: Mapping[str, tuple[Any, str]]
    weights: tuple[Weight, ...]
    ignored_weights: Mapping[str, str]
    head: tuple[Weight, ...] = ()
    objects: tuple[str, ...] = ()
    standardise: Callable[["Format", Mapping[str, Stated]], Mapping[str, Stated]] = lambda form, stated: stated
    prefix: str = ""
    copies: Mapping[str, str] = dataclasses.field(default_factory=dict)
    other_heads: Mapping[str, str] = dataclasses.field(default_factory=lambda: OTHER_HEADS)
    extra_layers: str = ""
    extra_config: Callable[[Any], Mapping[str, Any]] = lambda config: {}
    legacy_suffixes: Mapping[str, str] = dataclasses.field(default_factory=dict)
    load_via_files: bool = False
    variants: Callable[[], tuple[type[Any], ...]] = tuple

    def default(self, theirs: str) -> Any:
        """The default of a row, by its name."""
        return next(field.default for field in self.fields if field.theirs == theirs)

    def extended(
        self,
        model_type: str,
        architecture: str,
        config_class: type,
        *,
        without: tuple[str, ...] = (),
        renamed: Mapping[str, str] | None = None,
        defaults: Mapping[str, Any] | None = None,
        fields: tuple[Field, ...] = (),
        unsupported_fields: Mapping[str, tuple[Any, str]] | None = None,
        ignored_fields: Mapping[str, str] | None = None,
        weights: tuple[Weight, ...] = (),
        **others: Any,
    ) -> "Format":
        """Return the format of a descendant: this one, and what it says besides.

        Args:
            model_type: as for any format, like all that is not named here.
            architecture: likewise.
            config_class: likewise.
            without: the rows that it does not have: beginnings of their names.
            renamed: other beginnings of fields' names.
            defaults: other defaults, by their names.
            fields: further rows.
            unsupported_fields: further fields.
            ignored_fields: further fields.
            weights: further rows.
            others: other attributes, replaced.
        """

        def rename_field(theirs: str) -> str:
            return functools.reduce(lambda name, pair: name.replace(*pair, 1), (renamed or {}).items(), theirs)

        kept = [
            row._replace(theirs=rename_field(row.theirs)) for row in self.fields if not row.theirs.startswith(without)
        ]
        changed = [row._replace(default=(defaults or {}).get(row.theirs, row.default)) for row in kept]
        refused = {
            rename_field(name): row for name, row in self.unsupported_fields.items() if not name.startswith(without)
        }
        return dataclasses.replace(
            self,
            model_type=model_type,
            architecture=architecture,
            config_class=config_class,
            fields=(*changed, *fields),
            unsupported_fields={**refused, **(unsupported_fields or {})},
            ignored_fields={**self.ignored_fields, **(ignored_fields or {})},
            weights=(*(row for row in self.weights if not row.theirs.startswith(without)), *weights),
            **others,
        )


IGNORED_FIELDS: Mapping[str, str] = {
    "model_type": "checked before anything else",
    "architectures": "the class it was saved from; the weights say what there is",
    "initializer_range": "for fresh weights only",
    "dtype": "the weights say it themselves",
    "torch_dtype": "the weights say it themselves",
    "transformers_version": "who wrote the file",
    "_name_or_path": "where it was loaded from",
    "_num_labels": "for classification heads",
    "num_labels": "for classification heads",
    "id2label": "for classification heads",
    "label2id": "for classification heads",
    "problem_type": "for classification heads",
    "bos_token_id": "for generation; say it in stop_tokens or the prompt",
    "eos_token_id": "for generation; say it in stop_tokens or the prompt",
    "pad_token_id": "padding is masked whatever its id",
    "task_specific_params": "settings for generation",
    "use_cache": "whether to cache is the caller's choice",
    "gradient_checkpointing": "memory in training, not arithmetic",
    "return_dict": "what the reference's forward returns",
    "output_attentions": "what the reference's forward returns",
    "output_hidden_states": "what the reference's forward returns",
    "tie_last_hidden_states": "what the reference's forward returns",
    "chunk_size_feed_forward": "memory, not arithmetic",
    "quantization_config": "obeyed, or refused by name, where the weights are read",
    "_attn_implementation_autoset": "how the reference chose its code for attention",
}
"""Fields that any `config.json` may have and that change nothing in the model, each with the reason."""

UNSUPPORTED_FIELDS: Mapping[str, tuple[Any, str]] = {
    "per_layer_config": ((None, {}), "here all layers of a kind have the same sizes"),
}
"""Fields that any `config.json` may have and with which the model would be another one: accepted values, reason."""

OTHER_HEADS: Mapping[str, str] = {
    "pooler.": "the layer that makes one vector of the first token's",
    "cls.seq_relationship.": "the head that tells whether two segments belong together",
    "score.": "a classification head",
    "classifier.": "a classification head",
    "qa_outputs.": "a question answering head",
    "multiple_choice_head.": "the head that chooses among answers",
    "v_head.": "the value head of reinforcement learning",
    "embeddings.mask_token": "the vector that stands for a masked patch",
    "decoder.0.": "the head that fills in masked patches",
}
"""Beginnings of the names of heads that no model here has: such weights are left out, and a warning says so."""
