"""Running the hooks of every plugin on a tiny model, to find those that break their contract."""

import dataclasses
import itertools
from collections.abc import Iterator, Sequence

import torch

from softprompt_zoo.cli.command import quiet
from softprompt_zoo.cli.tried_method import quietly, tried
from softprompt_zoo.errors import UnsupportedError
from softprompt_zoo.methods import BUILTINS
from softprompt_zoo.registry.attribute_check import declared
from softprompt_zoo.registry.discovery import GROUP, WRAPPER_GROUP, PluginReport
from softprompt_zoo.registry.loaded_method import LoadedMethod
from softprompt_zoo.registry.plugin_check import config_of, optional_hooks, unmarked
from softprompt_zoo.registry.registry import registry
from softprompt_zoo.registry.wrappers import Wrappers
from softprompt_zoo.testing.comparison import TOLERANCE
from softprompt_zoo.testing.subject import LENGTHS, Subject, random_text

NOT_RUN = "loads; hooks not run: "


def check_hooks(reports: Sequence[PluginReport]) -> tuple[list[PluginReport], dict[str, str]]:
    """Run the hooks of all plugins that loaded: methods without wrappers, wrappers around built-in methods.

    Args:
        reports: The reports so far.

    Returns:
        The reports with the problems found, and, by plugin name, why hooks could not be run.
    """
    quiet()
    checked: list[PluginReport] = []
    notes: dict[str, str] = {}
    for report in reports:
        problem, note = report.problem, ""
        if problem is None:
            with quietly():
                problem, note = _check(report)
        checked.append(dataclasses.replace(report, problem=problem))
        notes |= {report.name: note} if note else {}
    return checked, notes


def _check(report: PluginReport) -> tuple[str | None, str]:
    """Return what is wrong with a plugin, or why its hooks could not be run."""
    try:
        if report.kind == "method":
            return _check_method(registry.lookup(report.name))
        return _check_wrapper(report)
    except UnsupportedError as error:
        return None, f"{NOT_RUN}{error}"
    except Exception as error:  # the user wants to read whatever the plugin's hook raises
        name = "" if type(error).__module__.startswith("softprompt_zoo") else f"{type(error).__name__}: "
        notes = "".join(f"; {note}" for note in getattr(error, "__notes__", ()))
        return f"{name}{error}{notes}", ""


def _check_method(method: LoadedMethod) -> tuple[str | None, str]:
    problem = next(
        itertools.chain(unmarked(method.plugin, optional_hooks(GROUP)), _aliases_that_find_nothing(method)), None
    )
    if problem is not None:
        return problem, ""
    try:
        method.read_options(method.example_options[0])
    except (TypeError, ValueError) as error:
        return None, f"{NOT_RUN}{error}"
    subject = tried(method.within(Wrappers({})), {})
    return next(itertools.chain(_without_gradient(subject), _merged_otherwise(subject)), None), ""


def _aliases_that_find_nothing(method: LoadedMethod) -> Iterator[str]:
    for alias in declared(method.plugin)["ALIASES"]:
        if not registry.knows(alias):
            yield f"its alias {alias!r} finds nothing: ALIASES is read from the source text; write a literal tuple"


def _without_gradient(subject: Subject) -> Iterator[str]:
    """Yield a problem if a training step leaves parameters of the prompt without a gradient."""
    subject.model.train()
    subject.loss(random_text(LENGTHS[0], 0)).backward()
    learned = subject.model.prompts["default"].learned
    missed = [
        name for name, parameter in learned.named_parameters() if parameter.requires_grad and parameter.grad is None
    ]
    if missed:
        names = ", ".join(map(repr, missed))
        yield (
            f"a training step gives its Parameters {names} no gradient: they are not used, or only detached; remove "
            "them, or set requires_grad=False"
        )


def _merged_otherwise(subject: Subject) -> Iterator[str]:
    """Yield a problem if merging the prompt changes the outputs; prompts that cannot be merged are skipped."""
    subject.model.eval()
    text = random_text(LENGTHS[0], 1)
    trained = subject.logits(text)
    try:
        subject.merge()
    except UnsupportedError:
        return
    difference = float((subject.logits(text) - trained).abs().max())
    if not difference <= TOLERANCE * max(1.0, float(trained.abs().max())):
        yield (
            f"its hook 'merge' returns different tokens from 'build_virtual_tokens' in eval mode: logits differ by "
            f"{difference:.2g}"
        )


def _check_wrapper(report: PluginReport) -> tuple[str | None, str]:
    every = registry.wrappers.plugins.items()
    candidate, plugin = next(one for one in every if (one[0].name, one[0].origin) == (report.name, report.origin))
    problem = next(unmarked(plugin, optional_hooks(WRAPPER_GROUP)), None)
    if problem is not None:
        return problem, ""
    kind = config_of(plugin)
    try:
        chosen = {} if kind is None else {report.name: kind().to_dict()}
    except (TypeError, ValueError) as error:
        return None, f"{NOT_RUN}{error}"
    alone = Wrappers({candidate: plugin})
    for method in map(registry.lookup, BUILTINS):
        if method.plain_kind is not None:  # one of each kind
            _use(tried(method.within(alone), chosen))
    return None, ""


def _use(subject: Subject) -> None:
    """Train, run and merge a prompt."""
    subject.model.train()
    subject.loss(random_text(LENGTHS[0], 0)).backward()
    subject.model.eval()
    with torch.no_grad():
        subject.merge()
        subject.logits(random_text(LENGTHS[0], 1))
