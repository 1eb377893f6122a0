"""The kinds of objective, and which one suits data and a model."""

from typing import TYPE_CHECKING, Any

from softprompt_zoo.errors import DataError
from softprompt_zoo.training.data import Data
from softprompt_zoo.training.objectives.chat import Chatting
from softprompt_zoo.training.objectives.classification import Classification
from softprompt_zoo.training.objectives.label_words import LabelWords
from softprompt_zoo.training.objectives.objective import Objective
from softprompt_zoo.training.objectives.tasks import Tasks
from softprompt_zoo.training.objectives.token_classification import TokenClassification
from softprompt_zoo.training.objectives.writing import Writing
from softprompt_zoo.training.settings import Settings

if TYPE_CHECKING:
    from softprompt_zoo.training.base import Base

KINDS: dict[str, Any] = {
    kind.name: kind for kind in (Writing, LabelWords, Classification, Chatting, TokenClassification)
}
OF_FORMS = {"chats": Chatting.name, "tagged": TokenClassification.name}
"""What is learned of each form of data but pairs, of which several things can be."""


def choose(settings: Settings, data: Data, base: "Base") -> tuple[Objective[Any, Any], Data]:
    """Make the objective of a run: the one that the user named, or that suits the data and the model.

    Args:
        settings: The run.
        data: Its rows.
        base: Its model, whose weights are not needed.

    Returns:
        The objective, and the data with rows held out as it needs them.

    Raises:
        DataError: If the data are not such as it learns from.
        UnsupportedError: If the model cannot be trained so.
    """
    kind = KINDS[settings.objective or suitable(data, base)]
    data, facts = kind.learn(data, settings)
    return kind(base, settings.template, **facts), data


def suitable(data: Data, base: "Base") -> str:
    """Return the objective for data: of pairs a model that writes text learns to write targets, an encoder classes.

    Args:
        data: The rows.
        base: The model.

    Returns:
        The name of the objective.

    Raises:
        UnsupportedError: If the targets are texts, none like another, and the model writes none.
    """
    if data.form in OF_FORMS:
        return OF_FORMS[data.form]
    if base.writes_text:
        return Writing.name
    if len({example.target for example in data.train}) == len(data.train):
        base.check_writes_text()
    return Classification.name


def recorded(record: dict[str, Any], base: "Base", template: str) -> Objective[Any, Any]:
    """Make the objective of a run that has been, or one that writes text where nothing is known.

    Args:
        record: What the run wrote of it: `name`, and its facts.
        base: The model.
        template: How an input becomes a text.

    Returns:
        The objective.

    Raises:
        DataError: If there is no such objective, or something of it is missing.
    """
    facts = dict(record)
    name, tasks = facts.pop("name", Writing.name), facts.pop("tasks", None)
    try:
        made: Objective[Any, Any] = KINDS[name](base, template, **facts)
    except (KeyError, TypeError) as error:
        raise DataError(
            f"the training wrote down the objective {record!r}, which this version cannot make; known are "
            f"{', '.join(KINDS)}"
        ) from error
    return made if tasks is None else Tasks(made, tasks)
