"""Evaluation: a table of losses and metrics, with and without a prompt; losses and answers of a model."""

import contextlib
import dataclasses
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from softprompt_zoo.backbone.traits import max_positions
from softprompt_zoo.training.base import check_tokens
from softprompt_zoo.training.objectives.objective import Objective
from softprompt_zoo.training.objectives.rows import IGNORED, R, TokenRow, pad

if TYPE_CHECKING:
    from transformers import PreTrainedModel

BATCH_SIZE = 20
GREEDY = {"do_sample": False, "num_beams": 1, "temperature": None, "top_p": None, "top_k": None}
"""Regardless of the checkpoint's own settings: the table should be reproducible."""

BASE, HANDWRITTEN, TRAINED = "base model", "hand-written prompt", "trained prompt"


@dataclasses.dataclass(frozen=True)
class Score:
    """A row of the table of results."""

    name: str
    """What was measured."""
    prompt_tokens: int
    """Tokens before the text: virtual ones, or those of the hand-written prompt."""
    loss: float
    """Mean loss in nats; per target token, including the end of sequence, for objectives that write text."""
    metrics: dict[str, float]
    """A value for each of the objective's metrics, such as `rouge_l`."""
    answers: list[str]
    """The model's answers, row by row."""


class Evaluator:
    """Measures a model on the same rows, with and without a prompt."""

    def __init__(
        self, examples: Sequence[Any], objective: Objective[Any, Any], metric_rows: int, handwritten: str | None = None
    ) -> None:
        self.examples = list(examples)
        self.objective = objective
        self.handwritten = handwritten
        self.rows = objective.rows(examples)
        self.metric_rows = min(metric_rows, len(self.rows))
        self._instructed = objective if handwritten is None else objective.with_instruction(handwritten)
        self.handwritten_rows = [] if handwritten is None else self._instructed.rows(examples)

    @property
    def untrained(self) -> tuple[str, ...]:
        """The rows of the table that need no training."""
        return (BASE,) if self.handwritten is None else (BASE, HANDWRITTEN)

    def try_out(self, model: "PreTrainedModel", rows: Sequence[TokenRow] = ()) -> None:
        """Run the longest rows once, so that problems are found before anything is measured or written.

        Args:
            model: A model with prompts; put into eval mode.
            rows: Further rows that must work, those to train on.

        Raises:
            ValueError: If a row has tokens or positions that the model lacks, or the prompt cannot be used on it.
        """
        check_tokens([*rows, *self.rows, *self.handwritten_rows], model)
        target_loss(model, self.objective.longest([*rows, *self.rows]), self.objective.collate)
        if not self.handwritten_rows:
            return
        longest, prompts = self._instructed.longest(self.handwritten_rows), model.prompts
        try:
            with prompts.disabled():  # type: ignore[operator]
                target_loss(model, longest, self.objective.collate)
        except IndexError as error:  # raised by the base model's own position table
            raise ValueError(
                f"the longest row has {len(longest[0])} tokens after the hand-written prompt, "
                "more than the model has positions; shorten --handwritten"
            ) from error

    def loss(self, model: "PreTrainedModel") -> float:
        """Measure the loss of the model in its current state."""
        return target_loss(model, self.rows, self.objective.collate)

    def score(self, name: str, model: "PreTrainedModel", tell: Callable[[str], None]) -> Score:
        """Measure a row of the table.

        Args:
            name: `BASE`, `HANDWRITTEN` or `TRAINED`; prompts are off except for the last.
            model: A model with prompts. Not changed.
            tell: Called with lines about progress.

        Returns:
            The row.
        """
        is_instructed = name == HANDWRITTEN
        rows = self.handwritten_rows if is_instructed else self.rows
        objective = self._instructed if is_instructed else self.objective
        prompts: Any = model.prompts
        tell(f"measuring the {name}: {len(rows)} rows, answers to {self.metric_rows}")
        with contextlib.nullcontext() if name == TRAINED else prompts.disabled():
            measured = objective.measure(model, self.examples, rows, self.metric_rows)
        return Score(name, self._prompt_tokens(name, model), **vars(measured))

    def _prompt_tokens(self, name: str, model: "PreTrainedModel") -> int:
        """Count the tokens before the text."""
        if name == TRAINED:
            return _active_tokens(model.prompts)
        if name == HANDWRITTEN:
            return self.objective.instruction_tokens(str(self.handwritten))
        return 0


def _active_tokens(prompts: Any) -> int:
    return sum(prompts[name].num_virtual_tokens for name in prompts.active)


@torch.no_grad()
def target_loss(
    model: "PreTrainedModel", rows: Sequence[R], collate: Callable[[Sequence[R]], dict[str, Tensor]]
) -> float:
    """Return the mean loss per label, over all rows.

    Args:
        model: The model; put into eval mode.
        rows: The rows.
        collate: Makes batches of them.

    Returns:
        The loss in nats.
    """
    model.eval()
    total, labels = 0.0, 0
    for _, batch in batches(model, rows, collate):
        count = int((batch["labels"] != IGNORED).sum())
        total += float(model(**batch).loss) * count
        labels += count
    return total / labels


def batches(
    model: "PreTrainedModel", rows: Sequence[R], collate: Callable[[Sequence[R]], dict[str, Tensor]]
) -> Iterator[tuple[list[int], dict[str, Tensor]]]:
    """Iterate over batches of rows, sorted by length.

    Args:
        model: The model to whose device the batches are moved.
        rows: The rows.
        collate: Makes batches of them.

    Returns:
        For each batch, the indices of its rows and the batch.
    """
    order = sorted(range(len(rows)), key=lambda index: len(rows[index]))
    for start in range(0, len(rows), BATCH_SIZE):
        chosen = order[start : start + BATCH_SIZE]
        yield chosen, _moved(collate([rows[index] for index in chosen]), model)


def generate(model: "PreTrainedModel", tokenizer: Any, texts: Sequence[list[int]], max_new_tokens: int) -> list[str]:
    """Generate greedy answers.

    Args:
        model: The model; put into eval mode.
        tokenizer: Its tokenizer.
        texts: Token ids of each text.
        max_new_tokens: Longest answer, in tokens.

    Returns:
        An answer for each text, in order, without special tokens.
    """
    model.eval()
    answers: list[str] = []
    for start in range(0, len(texts), BATCH_SIZE):
        batch = pad(texts[start : start + BATCH_SIZE], tokenizer.pad_token_id, left=True)
        ids = _continued(model, tokenizer, _moved(batch, model), max_new_tokens)
        answers += tokenizer.batch_decode(ids, skip_special_tokens=True)
    return [answer.strip() for answer in answers]


def _continued(model: Any, tokenizer: Any, batch: dict[str, Tensor], max_new_tokens: int) -> Any:
    """Return the ids that the model generates after each text, `(rows, length)`."""
    length = batch["input_ids"].shape[1]
    start = 0 if model.config.is_encoder_decoder else length  # a decoder's output does not repeat the text
    try:
        output = model.generate(
            **batch,
            **GREEDY,
            max_new_tokens=_cut_to_room(max_new_tokens, model, max(start, 1)),
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    except IndexError as error:  # raised by the model's own position table
        raise ValueError(f"a text has {length} tokens, more than the model has positions; shorten it") from error
    return output[:, start:]


def _moved(batch: dict[str, Tensor], model: "PreTrainedModel") -> dict[str, Tensor]:
    """Move a batch to the model's device."""
    return {name: tensor.to(model.device) for name, tensor in batch.items()}


def _cut_to_room(max_new_tokens: int, model: "PreTrainedModel", length: int) -> int:
    """Limit answers to the model's positions; a text that is itself too long is refused elsewhere."""
    bound = max_positions(model)
    if bound is None:
        return max_new_tokens
    prompts: Any = getattr(model, "prompts", None)
    virtual = 0 if prompts is None else _active_tokens(prompts)
    room = bound - virtual - length + 1  # an answer's last token is never fed to the model
    return min(max_new_tokens, room) if room > 0 else max_new_tokens
