"""Running every method's hooks on a tiny model, to find those that break their contract."""

import dataclasses
from collections.abc import Sequence
from typing import TYPE_CHECKING

from softprompt_zoo.cli.command import quiet
from softprompt_zoo.errors import UnsupportedError
from softprompt_zoo.registry.loaded_method import LoadedMethod
from softprompt_zoo.registry.registry import PluginReport, registry

if TYPE_CHECKING:
    from softprompt_zoo.backbone.backbone import Backbone


def check_hooks(reports: Sequence[PluginReport]) -> tuple[list[PluginReport], dict[str, str]]:
    """Run the hooks of all methods that loaded.

    Args:
        reports: What is known already.

    Returns:
        The reports, with problems that were found, and by method why its hooks could not be run.
    """
    from softprompt_zoo.testing import tiny_model
    from softprompt_zoo.trial.examination import inspect_backbone

    quiet()
    backbone, _ = inspect_backbone(tiny_model("gpt2"))
    checked, notes = [], {}
    for report in reports:
        if report.kind != "method" or report.problem is not None:
            checked.append(report)
            continue
        method = registry.lookup(report.name)
        problem, note = _run(method, backbone)
        checked.append(dataclasses.replace(report, problem=problem))
        if note is not None:
            notes[report.name] = f"loads; hooks not run: {note}"
    return checked, notes


def _run(method: LoadedMethod, backbone: "Backbone") -> tuple[str | None, str | None]:
    """Return what is wrong with the hooks, or why they could not be run."""
    from softprompt_zoo.model.making import make_prompt

    options = method.example_options[0]
    try:
        try:
            method.config_class.from_options(dict(options))
        except (TypeError, ValueError) as error:
            return None, str(error)
        make_prompt(method, options, backbone)
    except UnsupportedError as error:
        return None, str(error)
    except Exception as error:  # whatever a stranger's hook raises is what the user wants to read
        return _in_words(error), None
    return None, None


def _in_words(error: Exception) -> str:
    """Return an error's message and notes, with its name if it is not one of ours."""
    name = "" if type(error).__module__.startswith("softprompt_zoo") else f"{type(error).__name__}: "
    notes = "".join(f"; {note}" for note in getattr(error, "__notes__", ()))
    return f"{name}{error}{notes}"
