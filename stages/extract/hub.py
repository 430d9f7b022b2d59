"""Models on a hub: their files, downloaded if need be, or one sentence that says what stands in the way."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from thinkjepa.stages.errors import StageError

REVISION_FLAGS = {"thinker": "--revision", "encoder": "--encoder-revision"}


class ModelUnavailableError(StageError):
    """A hub's model is out of reach, for now or from here."""


def hub_snapshot(name: str, *, revision: str, role: str, files: Sequence[str]) -> Path:
    """The folder of a model's files that match `files`. Raises StageError with the remedy.

    Without network, and where HF_HUB_OFFLINE is set, it is what an earlier download left, perhaps not all.
    """
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError

    try:
        return Path(snapshot_download(name, revision=revision, allow_patterns=list(files)))
    except HFValidationError as error:
        raise StageError(
            f"--{role} {name!r} is neither a folder nor a hub name such as 'Qwen/Qwen3-VL-2B'"
        ) from error
    except (OSError, ValueError) as error:
        reason = _reason(error, name, revision=revision, role=role)
        raise ModelUnavailableError(f"--{role} {name!r} is no local folder, and {reason}") from error


def _reason(error: Exception, name: str, *, revision: str, role: str) -> str:
    """Why a snapshot is not to be had, and what to do."""
    from huggingface_hub import constants
    from huggingface_hub.errors import GatedRepoError, OfflineModeIsEnabled, RevisionNotFoundError

    causes = list(_causes(error))
    status = next((code for cause in causes if (code := _status(cause))), None)
    missing = f"HF_HOME ({constants.HF_HOME}) does not hold it"
    elsewhere = f"fetch it where there is network (hf download {name}) and bring HF_HOME or the folder here"
    if any(isinstance(cause, OfflineModeIsEnabled) for cause in causes):
        return f"{missing} while HF_HUB_OFFLINE forbids to fetch it: unset HF_HUB_OFFLINE, or {elsewhere}"
    if status == 403 or any(isinstance(cause, GatedRepoError) for cause in causes):
        page = f"{constants.ENDPOINT}/{name}"
        return f"the hub gates it: accept its conditions at {page}, then log in (hf auth login, or HF_TOKEN)"
    if any(isinstance(cause, RevisionNotFoundError) for cause in causes):
        flag = REVISION_FLAGS.get(role, "revision")
        return f"the hub has it, but not at {flag} {revision!r}: give a branch, tag or commit"
    if status in (401, 404):
        return (
            f"the hub ({constants.ENDPOINT}) shows no model of that name: check the name, log in where it is "
            "private (hf auth login, or HF_TOKEN), or give a folder that holds the model"
        )
    if status is not None:
        return (
            f"the hub ({constants.ENDPOINT}) answers with status {status}: try again later, or {elsewhere}; "
            f"{missing}"
        )
    last = " ".join(str(causes[-1]).split())[:100]
    return f"the hub ({constants.ENDPOINT}) cannot be reached ({last}) and {missing}: {elsewhere}"


def _causes(error: BaseException) -> Iterator[BaseException]:
    """An error, and what it was raised from."""
    cause: BaseException | None = error
    while cause is not None:
        yield cause
        cause = cause.__cause__


def _status(error: BaseException) -> int | None:
    """The status of a server's answer, where an error carries one."""
    number = getattr(getattr(error, "response", None), "status_code", None)
    return number if isinstance(number, int) else None
