"""The conclusion in words: which method is best, how certain that is, and whether it is worth choosing over LoRA."""

import dataclasses
import statistics
from collections.abc import Sequence

from softprompt_zoo.training.amounts import shown_bytes
from softprompt_zoo.training.comparison.candidates.all import BASELINE_CLASSES
from softprompt_zoo.training.comparison.measure import Measure
from softprompt_zoo.training.comparison.statistics import Difference, difference, holm
from softprompt_zoo.training.comparison.summary import Line
from softprompt_zoo.training.comparison.table import shown_interval

LEVEL = 0.05
"""The p value below which a difference counts as significant."""
RIVAL = "lora"
"""The baseline that the best method is compared with first."""


@dataclasses.dataclass(frozen=True)
class Contrast:
    """The best method against another line."""

    other: Line
    difference: Difference
    """Positive where the best method is better."""
    p_value: float
    """Corrected for all contrasts of the comparison, by Holm's procedure."""

    @property
    def is_significant(self) -> bool:
        """Whether the difference is significant."""
        return self.p_value < LEVEL


@dataclasses.dataclass(frozen=True)
class Conclusion:
    """The conclusion and its evidence."""

    best: Line | None
    """The method with the best mean; `None` if no method was run."""
    contrasts: Sequence[Contrast]
    """Contrasts of the best method with every other line."""
    sentences: Sequence[str]
    """The conclusion in words."""


def is_method(line: Line) -> bool:
    """Return whether a line belongs to a soft-prompt method rather than a baseline."""
    return line.trial.candidate not in BASELINE_CLASSES


def conclude(lines: Sequence[Line], measure: Measure) -> Conclusion:
    """Draw the conclusion of a comparison.

    Args:
        lines: The lines of the table.
        measure: The measure that they are compared by.
    """
    methods = [line for line in lines if is_method(line)]
    if not methods:
        return Conclusion(None, [], ["No soft-prompt method was compared, so none can be recommended."])
    best = max(methods, key=measure.goodness)
    contrasts = _contrasts(best, [line for line in lines if line is not best], measure)
    sentences = [
        _winner(best, measure),
        *(_against(best, one, measure) for one in contrasts if one.other.trial.candidate == RIVAL),
        *_against_cheaper(contrasts, measure),
        *_not_told_apart(contrasts),
        *_forgetting(best, lines),
        _caveat(best, len(contrasts)),
    ]
    return Conclusion(best, contrasts, sentences)


def _contrasts(best: Line, others: Sequence[Line], measure: Measure) -> list[Contrast]:
    found = [difference(measure.rows(best), measure.rows(other)) for other in others]
    corrected = holm([one.p_value for one in found])
    return [Contrast(*parts) for parts in zip(others, found, corrected, strict=True)]


def _winner(best: Line, measure: Measure) -> str:
    seeds = f"{len(best.seeds)} seeds" if len(best.seeds) > 1 else "one seed, which gives no interval"
    return (
        f"{best.name} has the best {measure.title} of all methods: {shown_interval(measure.over_seeds(best))} on "
        f"{measure.count} validation rows, over {seeds}."
    )


def _against(best: Line, contrast: Contrast, measure: Measure) -> str:
    """Return whether the best method is worth choosing over the rival, in words."""
    sizes = _sizes(best, contrast.other)
    told = f"{_told(contrast, measure)}, and {sizes}"
    if not contrast.is_significant:
        return (
            f"The difference from {contrast.other.name} is not significant ({told}): the prompt is worth choosing if "
            "size matters."
        )
    if contrast.difference.value > 0:
        return f"It is worth choosing over {contrast.other.name}: it is better ({told})."
    return (
        f"{contrast.other.name} is better ({told}): the prompt is worth choosing only if size or a prompt per row "
        "matters."
    )


def _told(contrast: Contrast, measure: Measure) -> str:
    value, error = measure.sign * contrast.difference.value, contrast.difference.error
    return f"{measure.title} {value:+.3f} ± {error:.3f} standard error, p {_shown_p(contrast)}"


def _shown_p(contrast: Contrast) -> str:
    return f"= {contrast.p_value:.2g}" if contrast.p_value >= 1e-4 else "< 0.0001"


def _sizes(best: Line, other: Line) -> str:
    files = [line.mean(lambda result: result.file_bytes) or 0.0 for line in (best, other)]
    trained = [line.mean(lambda result: result.parameters) or 0.0 for line in (best, other)]
    return (
        f"it trains {trained[0]:,.0f} parameters instead of {trained[1]:,.0f} and stores {shown_bytes(files[0])} "
        f"instead of {shown_bytes(files[1])}"
    )


def _against_cheaper(contrasts: Sequence[Contrast], measure: Measure) -> list[str]:
    """Return whether training was worth it, compared with each untrained candidate, in words."""
    return [
        f"Training it {'is worth it' if _is_better(one) else 'is not shown to be worth it'}, compared with "
        f"{one.other.name} ({_told(one, measure)})."
        for one in contrasts
        if not one.other.is_trained
    ]


def _is_better(contrast: Contrast) -> bool:
    return contrast.is_significant and contrast.difference.value > 0


def _not_told_apart(contrasts: Sequence[Contrast]) -> list[str]:
    names = [one.other.name for one in contrasts if not one.is_significant]
    if not names:
        return ["All differences from the other candidates are significant."]
    return [f"The differences from {', '.join(names)} are not significant: any of these may be just as good."]


def _forgetting(best: Line, lines: Sequence[Line]) -> list[str]:
    own = best.mean(lambda result: result.forgetting)
    if own is None:
        return []
    others = [(line.mean(lambda result: result.forgetting), line.name) for line in lines if line.is_trained]
    least, name = min((value, name) for value, name in others if value is not None)
    middle = statistics.median(value for value, _ in others if value is not None)
    return [
        f"On unrelated text it changes the loss per token by {own:+.3f} nats; the median over trained candidates is "
        f"{middle:+.3f}, the minimum {least:+.3f} ({name}). Leaving a prompt out undoes its effect completely."
    ]


def _caveat(best: Line, count: int) -> str:
    return (
        "The best method was chosen on the same rows it is reported on, which flatters it slightly; p values are for "
        "paired differences, use the larger of the standard errors over rows and over seeds, and are corrected for "
        f"{count} contrasts (Holm). All were trained for {best.trial.steps} steps of {best.trial.batch_size} rows at "
        "their own learning rates: longer training or other rates may change the order."
    )
