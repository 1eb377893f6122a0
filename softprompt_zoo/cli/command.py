"""What all commands share: one red line instead of a traceback, and `--debug`."""

import errno
import functools
import inspect
from collections.abc import Callable
from typing import TYPE_CHECKING, Annotated, Any

import typer

from softprompt_zoo.errors import ZooError, printable

if TYPE_CHECKING:
    from pathlib import Path

    from rich.console import Console

FULL = (errno.ENOSPC, getattr(errno, "EDQUOT", errno.ENOSPC))
"""Error numbers for a full disk or an exhausted quota."""
USER_ERROR, INTERRUPTED = 2, 130
Debug = Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")]


def command(function: Callable[..., None]) -> Callable[..., None]:
    """Turn user errors into one red line and exit code 2.

    Args:
        function: The command. Not changed.

    Returns:
        The command with an additional option `--debug`.
    """

    @functools.wraps(function)
    def wrapper(*args: Any, debug: bool = False, **kwargs: Any) -> None:
        try:
            function(*args, **kwargs)
        except BrokenPipeError:  # the reader, such as `head`, has closed the pipe; typer ends quietly
            raise
        except (ZooError, ValueError, TypeError, OSError) as error:
            if debug:
                raise
            _print_error(_describe(error))
            raise typer.Exit(INTERRUPTED if isinstance(error.__cause__, KeyboardInterrupt) else USER_ERROR) from error
        except KeyboardInterrupt:
            _print_error("stopped")
            raise typer.Exit(INTERRUPTED) from None

    signature = inspect.signature(function)
    option = inspect.Parameter("debug", inspect.Parameter.KEYWORD_ONLY, default=False, annotation=Debug)
    wrapper.__signature__ = signature.replace(parameters=[*signature.parameters.values(), option])  # type: ignore[attr-defined]
    wrapper.__annotations__ = {**function.__annotations__, "debug": Debug}
    return wrapper


def _describe(error: Exception) -> str:
    if isinstance(error, OSError) and error.errno in FULL:
        place = f" ({error.filename})" if error.filename else ""
        return f"the disk is full{place}; free some space, and run the command again; resume a training with --resume"
    return str(error) or type(error).__name__


def console() -> "Console":
    """Return the console that commands print to."""
    from rich.console import Console

    return Console(emoji=False)  # print a text with :smile: in it verbatim


def quiet() -> None:
    """Silence warnings and progress bars of transformers, which are not meant for users of the command line."""
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()


def check_file(option: str, path: "Path | None") -> None:
    """Reject a file that cannot be written, before anything is computed.

    Args:
        option: The flag that names the file, for the message.
        path: The file; `None` if there is none.

    Raises:
        ValueError: If its folder does not exist, or it is a folder.
    """
    if path is not None and not path.parent.is_dir():
        raise ValueError(f"{option} is {str(path)!r}, whose folder does not exist; create it first")
    if path is not None and path.is_dir():
        raise ValueError(f"{option} is {str(path)!r}, a folder; give the name of a file to write")


def _print_error(text: str) -> None:
    from rich.console import Console

    # Messages of other libraries may have many lines; the first one says what is wrong.
    line = printable(next((line for line in text.splitlines() if line.strip()), text))
    Console(stderr=True).print(line, style="red", markup=False, highlight=False, soft_wrap=True)
