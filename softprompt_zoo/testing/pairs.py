"""The promises for two prompts at once: the same suite, with a second method's prompt after the first."""

from collections.abc import Iterable, Mapping
from typing import Any, ClassVar

from torch import Tensor

from softprompt_zoo.method import combine, get_method
from softprompt_zoo.testing.conformance import ConformanceSuite, conformance_suite
from softprompt_zoo.testing.subject import Subject

SECOND = "second"
"""Name of the prompt after the first one."""
FAMILIES = ("llama", "bert", "t5")
PROMISES = (1, 2, 3, 4, 6, 7, 9, 10, 11)
"""Without the fifth, since the keys of a later prefix are not moved after the first prompt; and without the eighth,
since a PEFT adapter holds one prompt: `zoo.fold` combines several into one."""


class PairSubject(Subject):
    """A tiny model with two active prompts; wherever the suite names one, the second follows it."""

    second: ClassVar[str]
    second_options: ClassVar[Mapping[str, Any]]

    @classmethod
    def attached(cls, model: Any, method: str, options: Mapping[str, Any]) -> Any:
        """Attach both methods to a model, and return it."""
        first = get_method(method).configure(name="default", **options)
        return combine(first, get_method(cls.second).configure(name=SECOND, **cls.second_options))(model)

    def inputs(self, ids: Tensor, mask: Tensor | None = None, **more: Any) -> dict[str, Any]:
        """Build the arguments of a forward."""
        return super().inputs(ids, mask, **self._with_second(more))

    def generate(self, ids: Tensor, mask: Tensor | None = None, **options: Any) -> Any:
        """Generate from texts."""
        return super().generate(ids, mask, **self._with_second(options))

    def _with_second(self, arguments: dict[str, Any]) -> dict[str, Any]:
        prompts = arguments.get("prompts")
        if prompts is None:
            return arguments
        names = self._names(prompts) if isinstance(prompts, Tensor) else prompts
        return {**arguments, "prompts": [name and [name, SECOND] for name in names]}

    def _names(self, indices: Tensor) -> list[str | None]:
        """Return the name of each row's prompt; `None` for a row without one, which has -1."""
        names = [name for name in self.model.prompts if name != SECOND]
        return [None if index < 0 else names[index] for index in indices.tolist()]


def combination_suite(
    first: str,
    second: str,
    options: Mapping[str, Any] | None = None,
    second_options: Mapping[str, Any] | None = None,
    architectures: Iterable[str] = FAMILIES,
    longer: Mapping[str, Any] | None = None,
) -> type[ConformanceSuite]:
    """Make a pytest class that checks two methods on one model against the promises.

    Args:
        first: Name of a registered method, whose prompt comes first.
        second: Name of the second method; it may be the same.
        options: Options of the first, as in `conformance_suite`.
        second_options: Options of the second, with 7 virtual tokens if not given; by default those of its page's longer
            prompt.
        architectures: Keys of `TINY_MODELS` or of `models.MORE_MODELS`.
        longer: Options for a longer prompt of the first, as in `conformance_suite`.

    Returns:
        A class to assign to a name that starts with `Test`.
    """
    other = get_method(second)
    usual, longer_still = other.example_options
    # With a length that differs from the first.
    chosen = {**usual, **longer_still} if second_options is None else {"num_virtual_tokens": 7, **second_options}
    members = {"second": other.name, "second_options": chosen}
    suite = conformance_suite(first, options, architectures, longer, PROMISES)
    suite.architectures = ()  # two methods may have no model in common
    suite.subject_type = type("PairSubject", (PairSubject,), members)
    return suite
