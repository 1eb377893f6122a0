"""All errors that the package raises deliberately, besides `ValueError` and `TypeError` for invalid options."""

import importlib.util
import re

_UNPRINTABLE = re.compile(
    r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ufff9-\ufffb\ud800-\udfff]"
)
"""Control characters except tab and line feed, characters that change text direction, and lone surrogates."""


def printable(text: str) -> str:
    """Escape a text so that a terminal only displays it.

    Args:
        text: Any text, for example from a file.

    Returns:
        The text, with control characters as Python escapes.
    """
    return _UNPRINTABLE.sub(lambda found: ascii(found[0])[1:-1], text)


def one_line(error: BaseException) -> str:
    """Return the text of any error on one line, for a message.

    Args:
        error: The error, which may have no text: `assert`, `raise NotImplementedError`.

    Returns:
        Its text without line breaks; the name of its class if it has none. Never empty.
    """
    return " ".join(str(error).split()) or type(error).__name__


def first_line(error: BaseException) -> str:
    """Return the first line of the text of any error, for a message; other libraries' texts may have many.

    Args:
        error: The error, which may have no text.

    Returns:
        The first line that is not blank; the name of the error's class if there is none. Never empty.
    """
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)


def described(error: BaseException) -> str:
    """Return the class of any error and the first line of its text, for a message.

    Args:
        error: The error, which may have no text.

    Returns:
        `ValueError: the first line`; only the name of the class if the error has no text.
    """
    name, line = type(error).__name__, first_line(error)
    return name if line == name else f"{name}: {line}"


class ZooError(Exception):
    """Base of all errors of the package; catch it to catch them all. Its text is always printable."""

    def __init__(self, *args: object) -> None:
        super().__init__(*(printable(part) if isinstance(part, str) else part for part in args))


class UnsupportedError(ZooError, ValueError):
    """The request is not possible with this model, prompt or file; raised before anything is changed."""


class UnknownMethodError(ZooError, LookupError):
    """No installed plugin offers the requested soft-prompt method."""


class UnknownPromptError(ZooError, LookupError):
    """The model has no prompt of that name."""


class PromptExistsError(ZooError, ValueError):
    """The model already has a prompt of that name."""


class PluginError(ZooError, RuntimeError):
    """A plugin failed to load, or one of its hooks broke its contract."""


class ShapeError(PluginError):
    """A hook returned tensors of the wrong shape."""


class CheckpointError(ZooError, ValueError):
    """A saved prompt is missing, truncated, corrupt, or does not match its index."""


class BackboneMismatchError(CheckpointError):
    """A saved prompt, or a bank, was made for another backbone."""


class HubError(CheckpointError):
    """A prompt cannot be fetched from or pushed to the Hugging Face Hub."""


class BankError(ZooError, RuntimeError):
    """A bank of prompts cannot be opened or written: no bank, no permission, a full disk, or something else there."""


class DataError(ZooError, ValueError):
    """A data file, a row in it or a text template cannot be used."""


class MissingModelError(ZooError, RuntimeError):
    """An embedded model, or a package needed to unpack it, is not installed."""


class BrokenModelError(ZooError, RuntimeError):
    """The weights of an embedded model are damaged or do not convert correctly."""


class ModelCacheError(ZooError, OSError):
    """The folder for converted models cannot be used."""


class OutputError(CheckpointError):
    """The output folder cannot be used as asked."""


class MissingPackageError(UnsupportedError, ImportError):
    """A package that this feature needs, but most of the library does not, is not installed."""


class StoppedError(ZooError):
    """The user stopped the run; the message says how to resume it."""


def check_packages(use: str, *names: str, remedy: str | None = None) -> None:
    """Check that packages are installed, without importing them.

    Args:
        use: Beginning of the message, up to the packages: "training needs".
        *names: The packages' import names.
        remedy: The command that installs them; by default it names the missing ones.

    Raises:
        MissingPackageError: If one is not installed.
    """
    missing = [name for name in names if importlib.util.find_spec(name) is None]
    if missing:
        command = remedy or f"pip install {' '.join(missing)}"
        raise MissingPackageError(f"{use} {' and '.join(missing)}, not installed; run: {command}")
