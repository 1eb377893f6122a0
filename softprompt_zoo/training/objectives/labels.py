"""Class labels: which ones exist, and whether they can be learned and measured."""

import difflib
import random
from collections import Counter
from collections.abc import Sequence

from softprompt_zoo.errors import DataError
from softprompt_zoo.examples import Example
from softprompt_zoo.training.data import MAX_HELD_OUT, Data


def learnable(data: Data) -> list[str]:
    """Return the labels of a classification in alphabetical order.

    Args:
        data: The data, whose targets are labels.

    Returns:
        The labels.

    Raises:
        DataError: If a label occurs once, there is only one, or the training and validation rows have different labels.
    """
    counts = Counter(str(example.target) for example in data.train)
    _check_repeated(data, counts)
    if len(counts) < 2:
        [label] = counts
        raise DataError(
            f"{next(iter(data.train)).place}: all {len(data.train)} rows have the label {label!r}; a classifier needs "
            "at least two; add rows with another label"
        )
    check_known(data.validation, sorted(counts))
    measured = {str(example.target) for example in data.validation}
    if missing := sorted(set(counts) - measured):
        raise DataError(
            f"{_file(data.validation)}: no validation row has the label {missing[0]!r}, which {counts[missing[0]]} "
            f"training rows have, so it cannot be measured; their labels: {_listed(measured)}; add a row with it"
        )
    return sorted(counts)


def _check_repeated(data: Data, counts: Counter[str]) -> None:
    """Refuse a label that only one row has: it is usually a typo, and nothing can be learned from it."""
    everywhere = counts + Counter(str(example.target) for example in data.validation if data.whole is not None)
    if 1 not in everywhere.values():
        return
    for example in data.train:
        label = str(example.target)
        if everywhere[label] == 1:
            near = difflib.get_close_matches(label, [name for name, count in everywhere.items() if count > 1], n=1)
            meant = f" (did you mean {near[0]!r}?)" if near else ""
            raise DataError(
                f"{example.place}: the label {label!r} occurs once{meant}; a class needs at least two rows; correct "
                "the label, add rows with it, or drop the row"
            )


def check_known(examples: Sequence[Example], labels: Sequence[str]) -> None:
    """Refuse rows whose class is not among the known ones.

    Args:
        examples: The rows.
        labels: Labels of the classes.

    Raises:
        DataError: If there is one.
    """
    for example in examples:
        if example.target not in labels:
            near = difflib.get_close_matches(str(example.target), labels, n=1)
            raise DataError(
                f"{example.place}: the label {example.target!r} is not one of the classes to learn: "
                f"{_listed(labels)}; {f'did you mean {near[0]!r}?' if near else 'correct it or drop the row'}"
            )


def hold_out(data: Data, seed: int) -> Data:
    """Hold out a tenth of every class, if the user gives no validation file.

    Args:
        data: The data.
        seed: Seed of the random choice.

    Returns:
        The same rows; each class with at least two rows has one or more in each part.
    """
    if data.whole is None:
        return data
    by_label: dict[str, list[int]] = {}
    for index, example in enumerate(data.whole):
        by_label.setdefault(str(example.target), []).append(index)
    share = min(0.1, MAX_HELD_OUT / len(data.whole))
    draw = random.Random(seed)
    held_out = {
        index
        for _, own in sorted(by_label.items())
        for index in draw.sample(own, max(1, round(share * len(own))) if len(own) > 1 else 0)
    }
    train = [example for index, example in enumerate(data.whole) if index not in held_out]
    return Data(train, [data.whole[index] for index in sorted(held_out)], data.sources, data.whole)


def _file(examples: Sequence[Example]) -> str:
    """Return the file that rows were read from, without the line."""
    return examples[0].place.rpartition(":")[0]


def _listed(labels: Sequence[str] | set[str], most: int = 10) -> str:
    shown = [repr(label) for label in sorted(labels)]
    return ", ".join(shown[:most] + (["..."] if len(shown) > most else []))
