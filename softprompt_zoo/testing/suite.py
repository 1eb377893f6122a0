"""The base of all suites: a method, its options, and a tiny model with and without its prompt."""

import contextlib
import functools
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, TypeVar

import pytest
import torch

from softprompt_zoo.errors import UnsupportedError
from softprompt_zoo.method import get_method
from softprompt_zoo.testing.models import tiny_model
from softprompt_zoo.testing.subject import Subject


class Suite:
    """Checks of one method, chosen by `suite_of`."""

    pytestmark = pytest.mark.filterwarnings("ignore:a prompt of the method .* asks for learning rates:UserWarning")
    """One rate for all parameters is enough to see what is trained."""

    method: str
    options: Mapping[str, Any]
    longer: Mapping[str, Any]
    subject_type: type[Subject] = Subject
    """Attaches the method to a model; other libraries' prompts have their own."""
    shows_refusals: bool = False
    """Whether an `UnsupportedError` is raised; otherwise it skips the check."""
    architectures: tuple[str, ...] = ()
    """Models of which at least one must not be refused; if there are none, this is not checked."""
    is_stochastic: bool = False
    """Whether training forwards draw random numbers, so that two of them are compared from the same seed."""

    @pytest.fixture(autouse=True)
    def _one_thread(self) -> Any:
        """Use one thread: tiny models are very slow with more."""
        before = torch.get_num_threads()
        torch.set_num_threads(1)
        yield
        torch.set_num_threads(before)

    @pytest.fixture
    def subject(self, architecture: str) -> Subject:
        """A tiny model with a prompt of the method; skips if the method does not support the model."""
        return self.prompted(architecture)

    @pytest.fixture
    def base(self, architecture: str) -> Subject:
        """The same model without a prompt."""
        return Subject(architecture, tiny_model(architecture))

    def prompted(self, architecture: str, **how: Any) -> Subject:
        """Return a tiny model with a prompt of the method; `how` is `tiny_model`'s."""
        with self.may_be_refused():
            try:
                return self.subject_type.prompted(architecture, self.method, self.options, **how)
            except UnsupportedError as error:
                if not (self.shows_refusals or self._works_somewhere()):  # a suite that skips all is not a success
                    pytest.fail(f"{self.method!r} is refused on every model: {error}", pytrace=False)
                raise

    @classmethod
    @functools.cache
    def _works_somewhere(cls) -> bool:
        """Return whether the method can be attached to one of the models."""
        for architecture in cls.architectures:
            with contextlib.suppress(UnsupportedError):
                cls.subject_type.attached(tiny_model(architecture), cls.method, cls.options)
                return True
        return not cls.architectures

    @contextlib.contextmanager
    def may_be_refused(self) -> Iterator[None]:
        """Skip the check if it may be refused."""
        try:
            yield
        except UnsupportedError as error:
            if self.shows_refusals:
                raise
            pytest.skip(f"refused: {error}")


Kind = TypeVar("Kind", bound=Suite)
FIVE = {"num_virtual_tokens": 5}


def _two_more(options: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return options, and those of a prompt with two more virtual tokens."""
    return options, {"num_virtual_tokens": options["num_virtual_tokens"] + 2}


def suite_of(
    kind: type[Kind],
    method: str,
    options: Mapping[str, Any] | None,
    architectures: Iterable[str],
    longer: Mapping[str, Any] | None,
    kept: tuple[str, ...],
) -> type[Kind]:
    """Make a pytest class with the checks of a suite for a method.

    Args:
        kind: The suite.
        method: Name of a registered method.
        options: Its options, with 5 virtual tokens if not given; by default its page's `EXAMPLE_OPTIONS`.
        architectures: Keys of `TINY_MODELS` or of `models.MORE_MODELS`.
        longer: Options for a longer prompt; by default also the page's, or two more virtual tokens.
        kept: Prefixes of the names of the checks to run, after `test_`.

    Returns:
        A class to assign to a name that starts with `Test`.
    """
    own, own_longer = get_method(method).example_options if options is None else _two_more({**FIVE, **options})
    members: dict[str, Any] = {"method": method, "options": own, "longer": own_longer if longer is None else longer}
    members |= dict.fromkeys(_left_out(kind, tuple(f"test_{name}" for name in kept)))
    members["architectures"] = tuple(architectures)
    suite = type(f"Test_{method}", (kind,), members)
    return pytest.mark.parametrize("architecture", members["architectures"])(suite)


def _left_out(kind: type, kept: tuple[str, ...]) -> list[str]:
    """List the checks of a suite whose names start differently."""
    return [name for name in vars(kind) if name.startswith("test_") and not name.startswith(kept)]
