"""Refusals of the Hugging Face Hub, as messages that say what to do."""

import contextlib
from collections.abc import Iterator

from huggingface_hub import HfApi, constants
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from softprompt_zoo.errors import HubError, first_line

HTTP_ERROR: type[Exception] = HfHubHTTPError.__bases__[0]
"""Error of the HTTP client if there is no answer; the client depends on huggingface_hub's version."""
LOG_IN = "give token=…, or run: hf auth login"


@contextlib.contextmanager
def reading(name: str, revision: str | None, token: str | bool | None, files: list[str]) -> Iterator[None]:
    """Translate the errors of reading a repository.

    Args:
        name: The repository.
        revision: The requested revision.
        token: The user's access token.
        files: The files needed from it.

    Raises:
        HubError: If it cannot be read.
    """
    try:
        yield
    except RevisionNotFoundError as error:
        raise HubError(
            f"{name!r} on the Hugging Face Hub has no revision {revision!r}; expected {_revisions(name, token)}"
        ) from error
    except (LocalEntryNotFoundError, OfflineModeIsEnabled) as error:
        # If the hub refused, the cache was searched only because of its answer.
        refused = error.__cause__ if isinstance(error.__cause__, HfHubHTTPError) else None
        why = _unreachable(name, revision, files, error) if refused is None else _unanswered(name, refused)
        raise HubError(why) from error
    except HfHubHTTPError as error:
        raise HubError(_unanswered(name, error)) from error
    except (HTTP_ERROR, OSError) as error:
        raise HubError(f"{name!r} cannot be fetched from {constants.ENDPOINT}: {_told(error)}") from error


@contextlib.contextmanager
def writing(name: str) -> Iterator[None]:
    """Translate the errors of writing a repository.

    Args:
        name: The repository.

    Raises:
        HubError: If it cannot be written.
    """
    try:
        yield
    except OfflineModeIsEnabled as error:
        raise HubError(
            f"{name!r} cannot be pushed while HF_HUB_OFFLINE is set; unset it, or save the prompts with "
            "save_pretrained and push the folder later"
        ) from error
    except HfHubHTTPError as error:
        raise HubError(_refused(name, error)) from error
    except HTTP_ERROR as error:
        raise HubError(
            f"{name!r} cannot be pushed: the hub at {constants.ENDPOINT} cannot be reached ({_told(error)}): "
            "check the network, and HF_ENDPOINT"
        ) from error
    except OSError as error:
        raise HubError(f"{name!r} cannot be pushed to {constants.ENDPOINT}: {_told(error)}") from error


def _unanswered(name: str, error: HfHubHTTPError) -> str:
    """Return the hub's answer in place of a repository, and what to do."""
    if isinstance(error, GatedRepoError):  # to huggingface_hub, a kind of repository that is not found
        return (
            f"{name!r} is gated on the Hugging Face Hub: ask for access at {constants.ENDPOINT}/{name}, then {LOG_IN}"
        )
    if isinstance(error, RepositoryNotFoundError):
        return (
            f"{name!r} is not a local folder, and you have access to no repository of that name on the Hugging Face "
            f"Hub ({constants.ENDPOINT}); check the name; for a private one, {LOG_IN}"
        )
    return f"{name!r} cannot be fetched: {constants.ENDPOINT} answered {_told(error)}; {_advice(name, error)}"


def _advice(name: str, error: HfHubHTTPError) -> str:
    status = _status(error)
    if status in (401, 403):
        return f"it may be gated or private: ask for access at {constants.ENDPOINT}/{name}, then {LOG_IN}"
    if status == 429:
        return f"too many requests: wait a few minutes and try again; logged in, you can make more: {LOG_IN}"
    if status >= 500:
        return "the hub itself has a problem: try again later; https://status.huggingface.co shows its state"
    return "check the name, and HF_ENDPOINT"


def _status(error: HfHubHTTPError) -> int:
    """Return the HTTP status that the hub answered with; 0 if the error carries none."""
    return 0 if error.response is None else error.response.status_code


def _refused(name: str, error: HfHubHTTPError) -> str:
    status = _status(error)
    advice = f"; you need write access: {LOG_IN}" if status in (401, 403, 404) else ""
    return f"{name!r} cannot be pushed to {constants.ENDPOINT}: {_told(error)}{advice}"


def _told(error: Exception) -> str:
    """Return the first line of the hub client's message, without its final period."""
    return first_line(error).rstrip(".")


def _unreachable(name: str, revision: str | None, files: list[str], error: Exception) -> str:
    wanted = repr(name) if revision is None else f"{name!r} at {revision!r}"
    missing = (
        f"{wanted} is not a local folder, and the cache {constants.HF_HUB_CACHE} lacks its {' or '.join(files[:2])}"
    )
    if constants.is_offline_mode():
        return f"{missing}; HF_HUB_OFFLINE is set: unset it, or download it while online: hf download {name}"
    cause = error.__cause__ or error
    why = _told(cause if isinstance(cause, Exception) else error)
    return f"{missing}; the hub at {constants.ENDPOINT} cannot be reached ({why}): check the network, and HF_ENDPOINT"


def _revisions(name: str, token: str | bool | None) -> str:
    """Describe the revisions of a repository, listing them if possible."""
    with contextlib.suppress(Exception):
        refs = HfApi(token=token).list_repo_refs(name)
        return "one of " + ", ".join(ref.name for ref in (*refs.branches, *refs.tags)) + ", or a commit"
    return "a branch, a tag or a commit of it"
