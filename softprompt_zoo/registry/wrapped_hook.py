"""A wrapper's hook around a method's, called as by pluggy, except that exactly the hook that fails is named."""

import dataclasses
import functools
from collections.abc import Callable, Generator, Mapping, Sequence
from typing import Any

import pluggy

from softprompt_zoo.config.options import Options
from softprompt_zoo.errors import PluginError
from softprompt_zoo.registry.plugin_check import CONFIG_ARGUMENT, add_origin_note


@dataclasses.dataclass(frozen=True)
class WrappingHook:
    """One hook of one wrapper."""

    wrapper: str
    """Canonical name of the wrapper."""
    source: str
    """Plugin and hook, for messages."""
    function: Callable[..., Any]
    """The generator function."""
    asks_for: tuple[str, ...]
    """Names of its arguments."""
    is_chosen: bool
    """Whether it has options, so that it runs only for prompts whose user chose the wrapper."""
    returns_a_value: bool
    """Whether it must return a value other than `None`."""

    def acts(self, chosen: Mapping[str, Options]) -> bool:
        """Return whether it runs if these wrappers are chosen."""
        return not self.is_chosen or self.wrapper in chosen

    def around(self, within: Callable[[], Any], arguments: Mapping[str, Any], chosen: Mapping[str, Options]) -> Any:
        """Run it around an inner call.

        Args:
            within: Calls the method's hook and the wrappers inside this one.
            arguments: All arguments of the hook's spec.
            chosen: The wrappers that the user chose, by name, with their options.

        Returns:
            Its result.

        Raises:
            PluginError: If it returned nothing, or did not yield exactly once.
            Exception: Whatever it raises itself, with a note that names it; errors from within get no note.
        """
        given = {**arguments, CONFIG_ARGUMENT: chosen.get(self.wrapper)}
        generator = self.function(*[given[name] for name in self.asks_for])
        try:
            next(generator)
        except StopIteration:
            raise PluginError(
                f"{self.source} did not yield; expected one yield, which runs the method's hook"
            ) from None
        except Exception as error:
            add_origin_note(error, self.source.rstrip(","))
            raise
        try:
            result = within()
        except BaseException as error:
            return self._end(generator.throw, error)
        return self._end(generator.send, result)

    def _end(self, resume: Callable[[Any], Any], outcome: Any) -> Any:
        """Resume the generator with what was returned or raised within, and return its result."""
        try:
            resume(outcome)
        except StopIteration as stop:
            returned = stop.args[0] if stop.args else None  # torch.compile cannot trace `stop.value`
        except BaseException as error:
            if error is not outcome:
                add_origin_note(error, self.source.rstrip(","))
            raise
        else:
            raise PluginError(f"{self.source} yielded twice; expected one yield, which runs the method's hook")
        if returned is None and self.returns_a_value:
            raise PluginError(f"{self.source} returned nothing; expected the result of yield, or another value like it")
        return returned


def call(
    wrappers: Sequence[WrappingHook],
    own: Callable[[], Any],
    arguments: Mapping[str, Any],
    chosen: Mapping[str, Options],
) -> Any:
    """Call a hook within its wrappers; the last one is the outermost."""
    if not wrappers:
        return own()
    return wrappers[-1].around(functools.partial(call, wrappers[:-1], own, arguments, chosen), arguments, chosen)


def in_new_style(function: Callable[..., Any]) -> Callable[..., Generator[None, Any, Any]]:
    """Convert a generator function in pluggy's old style, which receives a `pluggy.Result`, to the new style."""

    @functools.wraps(function)
    def around(*arguments: Any) -> Generator[None, Any, Any]:
        generator = function(*arguments)
        next(generator)
        try:
            outcome = pluggy.Result((yield), None)
        except BaseException as error:
            outcome = pluggy.Result(None, error)
        try:
            generator.send(outcome)
        except StopIteration:
            return outcome.get_result()
        raise PluginError("the hook yielded twice; expected one yield, which runs the method's hook")

    return around
