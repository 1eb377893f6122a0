"""The kinds of objectives, and which one suits given data and a model."""

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
"""The objective for each form of data, except pairs, for which there are several."""


def choose(settings: Settings, data: Data, base: "Base") -> tuple[Objective[Any, Any], Data]:
    """Create the objective of a run: the one the user named, or the one that suits the data and the model.

    Args:
        settings: The run.
        data: Its data.
        base: Its model; weights are not needed.

    Returns:
        The objective, and the data with rows held out as the objective needs them.

    Raises:
        DataError: If the objective cannot learn from the data.
        UnsupportedError: If the model does not support the objective.
    """
    kind = KINDS[settings.objective or suitable(data, base)]
    data, facts = kind.learn(data, settings)
    return kind(base, settings.template, **facts), data


def suitable(data: Data, base: "Base") -> str:
    """Return the objective for data: for pairs, models that write text learn to write targets, encoders classes.

    Args:
        data: The data.
        base: The model.

    Returns:
        The name of the objective.

    Raises:
        UnsupportedError: If the targets are all different, so texts, and the model does not write text.
    """
    if data.form in OF_FORMS:
        return OF_FORMS[data.form]
    if base.writes_text:
        return Writing.name
    if len({example.target for example in data.train}) == len(data.train):
        base.check_writes_text()
    return Classification.name


def recorded(record: dict[str, Any], base: "Base", template: str) -> Objective[Any, Any]:
    """Recreate the objective of an earlier run; one that writes text if nothing is recorded.

    Args:
        record: What the run recorded: `name`, and the facts.
        base: The model.
        template: Template that turns an input into a text.

    Returns:
        The objective.

    Raises:
        DataError: If there is no such objective, or its facts are incomplete.
    """
    facts = dict(record)
    name, tasks = facts.pop("name", Writing.name), facts.pop("tasks", None)
    try:
        made: Objective[Any, Any] = KINDS[name](base, template, **facts)
    except (KeyError, TypeError) as error:
        raise DataError(
            f"the run recorded the objective {record!r}, which this version cannot create; known ones: "
            f"{', '.join(KINDS)}"
        ) from error
    return made if tasks is None else Tasks(made, tasks)
