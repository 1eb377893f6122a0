"""CT-KV: trains the keys and values of demonstrations, each on the task of predicting itself from the others.

    keys[layer], values[layer] = those of the frozen model for all examples            (kv_heads, tokens, head_dim)
    attention[layer] = softmax(query [keys; text keys]^T + m) [values; text values]
    m[row, token] = -inf in training if the row is the example that the token came from, or with probability
                    token_dropout; otherwise 0                                         (rows, tokens)

Enters at: keys and values of every layer of a causal model.
Trained: tokens * layers * 2 * kv_heads * head_dim.
Merges to: the trained keys and values.

Source: Lu, Teehan, Yang and Ren, "Context Tuning for In-Context Optimization", 2025 (arXiv 2507.04221), CT-KV;
reference code agentic-learning-ai-lab/context-tuning, `train.py` and `data_utils.py`.
Differs from the source: a row is recognized as an example by its text, whose last tokens are those of the example
before its target. An example whose text ends with another one's hides that one, too. The separator of two examples ends
the first, as the template says; in the reference, it begins the second, and each row. Kept in float32.
PEFT: PREFIX_TUNING of the trained keys and values; the examples are not carried over.
"""

import dataclasses
from typing import Any

import torch
from torch import Tensor, nn

import softprompt_zoo as zoo
from softprompt_zoo_ct_kv.demonstrations import (
    EXPECTED,
    check_tokens,
    read_pairs,
    rows_of_examples,
    split_template,
    tokenize_examples,
    tokenize_pieces,
)

ALIASES = ("context_tuning",)
RECIPE = zoo.Recipe(
    learning_rate=1e-3,
    steps=200,
    batch_size=16,
    warmup_steps=0,
    schedule="cosine",
    source="the reference, train.py and README: GPT-2 large, all 16 examples in each of 200 steps; 1e-3 beat 5e-3 in "
    "20 steps on eight films with SmolLM2-135M",
)
EXAMPLE_OPTIONS = (
    {"token_ids": (5, 11, 12, 21, 7, 5, 13, 22, 7), "token_parts": (0, 0, 0, 1, 1, 2, 2, 3, 3)},
    {"token_ids": (5, 11, 12, 21, 7, 5, 13, 22, 7, 5, 23), "token_parts": (0, 0, 0, 1, 1, 2, 2, 3, 3, 4, 5)},
)
SITE = "decoder"
IGNORED = -100
"""Label that transformers' losses skip."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(zoo.MethodConfig):
    """Options of CT-KV."""

    num_virtual_tokens: int = 0
    """Tokens of the examples: counted, not chosen. 0 until then; a value other than their count is refused."""
    examples: Any = ()
    """The demonstrations: pairs `(input, target)`, in the order in which the model reads them."""
    template: str | None = "{input} {target}\n"
    """How an example is written; whatever follows the target separates it from the next example. `None` if only token
    ids are known."""
    tokenizer: Any = dataclasses.field(default=None, metadata={"saved": False}, repr=False, compare=False)
    """The model's tokenizer. A saved prompt needs none: it has the token ids."""
    leave_one_out: bool = True
    """Whether, in training, the tokens of an example are hidden from the row that is this example."""
    token_dropout: float = 0.05
    """Probability that a token is hidden from a row in training. Source: the reference."""
    token_ids: tuple[int, ...] | None = None
    """The tokens, instead of examples and tokenizer."""
    token_parts: tuple[int, ...] | None = None
    """The part each token belongs to: in example i, counted from 0, `2 i` before the target, `2 i + 1` from the target
    on."""

    def __post_init__(self) -> None:
        zoo.check_choice("leave_one_out", self.leave_one_out, (False, True))
        zoo.check_probability("token_dropout", self.token_dropout)
        self.settle(examples=read_pairs(self.examples))
        if self.template is not None:
            split_template(self.template)
        if self.token_ids is None and not self.examples:
            raise ValueError(f"ct_kv starts from demonstrations, but examples is empty; {EXPECTED}")
        if self.token_ids is None and self.tokenizer is not None:
            ids, parts = tokenize_examples(self.tokenizer, self.template, self.examples)
            self.settle(token_ids=ids, token_parts=parts)
        if self.token_ids is not None:  # otherwise the tokenizer is given later
            self._count()

    def _count(self) -> None:
        check_tokens(self.token_ids, self.token_parts)
        count = len(self.token_ids or ())
        if self.num_virtual_tokens not in (0, count):
            raise ValueError(
                f"num_virtual_tokens is {self.num_virtual_tokens!r}; the examples have {count} tokens, and the number "
                "is counted from them: leave it out, or change the examples"
            )
        self.settle(num_virtual_tokens=count)
        super().__post_init__()

    def advice_to_shorten(self, most: int) -> str:
        """Return how to get fewer tokens."""
        return f"they are the tokens of the examples: give fewer or shorter ones, of at most {most} tokens together"

    def encode(self, tokenizer: Any, text: str, target: str | None = None) -> dict[str, list[int]]:
        """Tokenize a row like the examples, for training or, without a target, for generating the answer.

        Args:
            tokenizer: The model's tokenizer.
            text: The text for `{input}`.
            target: The text for `{target}`; without one, the row ends before it.

        Returns:
            `input_ids`, `attention_mask` and, with a target, `labels`: the ids of its tokens, -100 elsewhere.

        Raises:
            ValueError: If the template is unknown.
        """
        shown, answer, _ = tokenize_pieces(tokenizer, self.template, text, "" if target is None else target)
        ids = shown if target is None else shown + answer
        row = {"input_ids": ids, "attention_mask": [1] * len(ids)}
        return row if target is None else {**row, "labels": [IGNORED] * len(shown) + answer}


class Parameters(nn.Module):
    """The trained keys and values `(tokens, features)`."""

    def __init__(self, config: Config, backbone: zoo.Backbone) -> None:
        super().__init__()
        if backbone.family != "causal" or SITE not in backbone.layers:
            raise zoo.UnsupportedError(
                "ct_kv trains the keys and values of demonstrations in a causal model, but this model is of the family "
                f"{backbone.family!r}; choose a causal model, or another method"
            )
        if config.token_ids is None:
            raise ValueError("the examples need tokenizer=…; pass the model's tokenizer")
        if max(config.token_ids) >= backbone.vocab_size:
            raise ValueError(
                f"the examples have the token id {max(config.token_ids)}; the model has {backbone.vocab_size} "
                "embeddings: give its own tokenizer"
            )
        features = sum(layer.features for layer in backbone.layers[SITE])
        dtype = torch.promote_types(backbone.dtype, torch.float32)
        self.states = nn.Parameter(
            torch.empty(config.num_virtual_tokens, features, dtype=dtype, device=backbone.device)
        )
        self.dropout = config.token_dropout

    @torch.no_grad()
    def initialize(self, config: Config, backbone: zoo.Backbone) -> None:
        """Start from the frozen model's keys and values of the examples, which is plain in-context learning."""
        read = backbone.keys_values(torch.tensor(config.token_ids, device=backbone.device))
        self.states.copy_(zoo.flatten_layers(read.sites[SITE]))

    def visible(self, config: Config, backbone: zoo.Backbone, text: zoo.Text) -> Tensor:
        """Return which tokens each row sees in training.

        Args:
            config: What the user chose.
            backbone: The model's embedding table.
            text: The rows' text.

        Returns:
            `(rows, tokens)` bool.
        """
        example = torch.tensor(config.token_parts, device=text.mask.device) // 2
        kept = torch.rand(len(text.mask), len(example), device=example.device) >= self.dropout
        return kept & ~rows_of_examples(config, backbone, text)[:, example] if config.leave_one_out else kept


@zoo.hookimpl
def build_virtual_tokens(parameters: Parameters, backbone: zoo.Backbone) -> zoo.VirtualTokens:
    """Reshape the tokens into keys and values per layer."""
    return zoo.LayerTokens({SITE: zoo.unflatten_layers(parameters.states, backbone.layers[SITE])})


@zoo.hookimpl
def inject(
    config: Config, parameters: Parameters, tokens: zoo.VirtualTokens, backbone: zoo.Backbone, text: zoo.Text | None
) -> zoo.Placement:
    """Place the tokens at every layer; in training, hide from each row its own example and some other tokens."""
    if text is None or not parameters.training:  # merged tokens have no text
        return zoo.Placement(tokens)
    return zoo.Placement(tokens, mask=parameters.visible(config, backbone, text))


@zoo.hookimpl
def merge(parameters: Parameters, backbone: zoo.Backbone) -> zoo.VirtualTokens:
    """Return the tokens unchanged: outside training, every row sees all of them."""
    return zoo.LayerTokens({SITE: zoo.unflatten_layers(parameters.states, backbone.layers[SITE])})
