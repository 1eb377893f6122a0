"""Teachers for methods that distill, and the distance between them and a student, for each `TrainingStep`."""

import os
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn import functional

from softprompt_zoo.config.options import GIVEN
from softprompt_zoo.errors import BackboneMismatchError, ShapeError, UnsupportedError
from softprompt_zoo.exchange import TrainingStep
from softprompt_zoo.shapes import Float, Shaped

if TYPE_CHECKING:
    from softprompt_zoo.backbone.backbone import Backbone

IGNORED = -100
"""Label that the losses of transformers ignore."""


def check_teacher(name: str, teacher: Any, count: int) -> None:
    """Refuse anything except the required number of prompts to distill from, or none.

    Args:
        name: The option's name, for the message.
        teacher: `None`; a list of prompts or saved folders; a tensor `(prompts, tokens, hidden)`; or `"given"`, as in
            saved configs.
        count: The required number.

    Raises:
        TypeError: If it is something else.
        ValueError: If their number is wrong.
    """
    if teacher is None or (isinstance(teacher, str) and teacher == GIVEN):
        return
    expected = f"expected a list of {count} prompts or saved folders, one per task, or a tensor (tasks, tokens, hidden)"
    problem = _problem_of_tensor(teacher, count) if isinstance(teacher, Tensor) else _problem_of_list(teacher, count)
    if problem is not None:
        raise problem[0](f"{name} {problem[1]}; {expected}")


def _problem_of_tensor(teacher: Shaped[Tensor, "..."], count: int) -> tuple[type[Exception], str] | None:
    is_right = teacher.ndim == 3 and teacher.shape[0] == count
    return None if is_right else (ValueError, f"is a tensor of shape {tuple(teacher.shape)}")


def _problem_of_list(teacher: Any, count: int) -> tuple[type[Exception], str] | None:
    if not isinstance(teacher, tuple | list):
        return TypeError, f"is {teacher!r} ({type(teacher).__name__})"
    wrong = [part for part in teacher if not _is_prompt_or_folder(part)]
    if wrong:
        return TypeError, f"holds {wrong[0]!r} ({type(wrong[0]).__name__})"
    return None if len(teacher) == count else (ValueError, f"has {len(teacher)} entries")


def _is_prompt_or_folder(part: Any) -> bool:
    return isinstance(part, str | os.PathLike) or hasattr(part, "merged_tokens")


def _check_shape(what: str, embeddings: Float[Tensor, "..."] | None, expected: tuple[int, int]) -> None:
    shape = "keys and values" if embeddings is None else tuple(embeddings.shape)
    if shape != expected:
        raise UnsupportedError(
            f"{what} is {shape}; expected tokens at the input embeddings of shape {expected}, with the same number "
            "and width as the student's"
        )


def teacher_embeddings(
    name: str, teacher: Any, tokens: int, backbone: "Backbone"
) -> Float[Tensor, "tasks tokens hidden"] | None:
    """Return the virtual tokens of teachers at the input embeddings.

    Args:
        name: The option's name, for the message.
        teacher: A teacher that `check_teacher` accepts, with its folders already read.
        tokens: The number of virtual tokens that each must have.
        backbone: The student's model.

    Returns:
        The tokens of each in at least float32; `None` if there is no teacher, or no longer one.

    Raises:
        UnsupportedError: If one has a different shape, or no tokens at the input embeddings.
        BackboneMismatchError: If one was made for a model of different sizes.
    """
    if teacher is None or isinstance(teacher, str):
        return None
    prompts: list[Any] = list(teacher.detach()) if isinstance(teacher, Tensor) else _at_input(name, teacher, backbone)
    for index, prompt in enumerate(prompts):
        _check_shape(f"{name} {index}", prompt, (tokens, backbone.hidden_size))
    dtype = torch.promote_types(backbone.dtype, torch.float32)
    return torch.stack([prompt.to(device=backbone.device, dtype=dtype) for prompt in prompts])


def _at_input(name: str, teachers: Any, backbone: "Backbone") -> list[Float[Tensor, "... _ _"] | None]:
    """Return the tokens of each teacher at the input embeddings; `None` for a teacher without any."""
    for index, prompt in enumerate(teachers):
        prompt.refuse_weight(f"{name} {index}", "a teacher")
    try:
        return [prompt.merged_tokens(backbone).at_input for prompt in teachers]
    except ShapeError as error:
        raise BackboneMismatchError(
            f"{name} has a prompt that was made for a model of different sizes: {error}; give prompts for this model"
        ) from error


def logit_divergence(step: TrainingStep, teacher: Any, temperature: float) -> Float[Tensor, ""]:
    """Compare the predictions of teacher and student where there is a label.

    Args:
        step: The student's forward.
        teacher: The output of `step.run`.
        temperature: Divides the logits of both; the result is not scaled by it.

    Returns:
        The mean of KL(teacher || student), a scalar; zero without labels.
    """
    student, other, labels = step.output.logits, teacher.logits, step.inputs["labels"].to(step.output.logits.device)
    if step.predicts_next:
        student, other, labels = student[:, :-1], other[:, :-1], labels[:, 1:]
    log_student = functional.log_softmax(student.float() / temperature, dim=-1)
    log_teacher = functional.log_softmax(other.float() / temperature, dim=-1)
    divergence = functional.kl_div(log_student, log_teacher, reduction="none", log_target=True).sum(-1)
    return _mean(divergence, labels != IGNORED)


def hidden_distance(step: TrainingStep, teacher: Any) -> Float[Tensor, ""]:
    """Compare the hidden states of teacher and student at the text, as virtual positions are in no output.

    Args:
        step: The student's forward.
        teacher: The output of `step.run`.

    Returns:
        The mean squared difference over positions, layers and features, a scalar; for an encoder-decoder, the sum
        over both stacks.
    """
    student, inputs = step.output, step.inputs
    mask = inputs.get("attention_mask")
    if student.get("encoder_hidden_states") is None:
        return _mean_square(student.hidden_states, teacher.hidden_states, mask)
    decoder_mask = inputs.get("decoder_attention_mask")
    if decoder_mask is None and inputs.get("decoder_input_ids") is None:
        decoder_mask = inputs["labels"] != IGNORED
    return _mean_square(student.encoder_hidden_states, teacher.encoder_hidden_states, mask) + _mean_square(
        student.decoder_hidden_states, teacher.decoder_hidden_states, decoder_mask
    )


def _mean_square(
    student: tuple[Float[Tensor, "rows length hidden"], ...],
    teacher: tuple[Float[Tensor, "rows length hidden"], ...],
    mask: Shaped[Tensor, "..."] | None,
) -> Float[Tensor, ""]:
    # The first are the embeddings of the text, which no prompt changes.
    pairs = zip(student[1:], teacher[1:], strict=True)
    squares = [(one.float() - other.float()).pow(2).mean(dim=-1) for one, other in pairs]
    return _mean(torch.stack(squares).mean(dim=0), mask)


def _mean(values: Float[Tensor, "rows length"], mask: Shaped[Tensor, "..."] | None) -> Float[Tensor, ""]:
    """Return the mean of the values selected by a mask of the same shape; zero if it selects none."""
    if mask is None or mask.shape != values.shape:
        return values.mean()
    seen = values[mask.to(values.device).bool()]
    return seen.sum() / max(seen.numel(), 1)
