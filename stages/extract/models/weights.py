"""Model files: local folders or hub snapshots, checked for completeness and identified by digests.

Every failure is one sentence with the remedy.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from rich.filesize import decimal
from safetensors import SafetensorError, safe_open

from thinkjepa.cache.disk.json_text import parse_json
from thinkjepa.cache.text import one_line, without_passwords
from thinkjepa.stages.errors import StageError
from thinkjepa.stages.settings import expanded

REVISION_FLAGS = {"thinker": "--revision", "encoder": "--encoder-revision"}


class ModelUnavailableError(StageError):
    """An error for a hub's model that is out of reach, for now or from here."""


def hub_snapshot(name: str, *, revision: str, role: str, files: Sequence[str]) -> Path:
    """The folder of a model's files that match `files`. Raises StageError with the remedy.

    Without network, and where HF_HUB_OFFLINE is set, it has an earlier download, perhaps not whole.
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
        reason = without_passwords(_reason(error, name, revision=revision, role=role))
        raise ModelUnavailableError(f"--{role} {name!r} is no local folder, and {reason}") from error


def _reason(error: Exception, name: str, *, revision: str, role: str) -> str:
    """The reason why a snapshot is not available, and the remedy."""
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
    last = one_line(str(causes[-1]))[:100]
    return f"the hub ({constants.ENDPOINT}) cannot be reached ({last}) and {missing}: {elsewhere}"


def _causes(error: BaseException) -> Iterator[BaseException]:
    """An error and the chain of its causes."""
    cause: BaseException | None = error
    while cause is not None:
        yield cause
        cause = cause.__cause__


def _status(error: BaseException) -> int | None:
    """The status of a server's response, where an error carries one."""
    number = getattr(getattr(error, "response", None), "status_code", None)
    return number if isinstance(number, int) else None


DESCRIPTION = ("*.json", "*.jinja", "*.txt", "*.model")
"""The small files of a model: configuration, tokenizer, processor, chat template, no code."""

NEEDED = (*DESCRIPTION, "*.safetensors")
"""Files to fetch from a hub to run a model, without pickled weights."""

TOKENIZERS = ("tokenizer.json", "tokenizer.model", "vocab.json", "spiece.model")
"""A thinker needs one of them. Without any, transformers silently makes an empty tokenizer of the rest."""

LACKING = r"a directory containing an? (?:file named )?([\w.-]+\.\w+)"
"""The message of transformers for a missing file, after much about its hub."""

UNFINISHED = "where its download into {path} never ended, run again with network and without HF_HUB_OFFLINE"

INFORMATIVE = ("README.md", ".gitattributes", ".thinkjepa-digest.json")
"""Files that change nothing. The last one was an earlier version's memory of the weights' digest."""


@dataclass(frozen=True, slots=True)
class ModelFolder:
    """A model in standard transformers files. `name` is the user's name for it."""

    name: str
    path: Path
    revision: str

    @property
    def weight_files(self) -> Sequence[Path]:
        """Its safetensors files, sorted by name."""
        return sorted(path for path in self.path.glob("*.safetensors") if path.is_file())

    @property
    def described(self) -> str:
        """Its name and the size of its weights, for messages."""
        return f"{self.name} ({decimal(sum(path.stat().st_size for path in self.weight_files))})"


def find_model(name: str, *, revision: str, role: str, need_weights: bool = True) -> ModelFolder:
    """The local folder, or the hub's snapshot (downloaded if need be). Raises StageError with the remedy.

    Without `need_weights` the model can be described but not loaded, and its weights are not downloaded.
    """
    folder = expanded(name)
    if folder.is_dir():
        found = ModelFolder(name, folder, revision="local")
    else:
        files = NEEDED if need_weights else DESCRIPTION
        path = hub_snapshot(name, revision=revision, role=role, files=files)
        found = ModelFolder(name, path, revision=path.name)
    if problem := _missing_files(found, role, need_weights=need_weights):
        remedy = "copy the whole folder" if found.revision == "local" else UNFINISHED.format(path=found.path)
        raise StageError(f"--{role} {name!r}: {problem}; {remedy}")
    return found


def _missing_files(model: ModelFolder, role: str, *, need_weights: bool) -> str:
    """The sentence about the files that a model's folder lacks, empty where it is complete."""
    if not (model.path / "config.json").is_file():
        return "the folder has no config.json, so it is not a transformers model"
    if need_weights and not model.weight_files:
        return "no .safetensors weights, and other formats are never loaded: convert them first"
    listed = {shard for index in model.path.glob("*.safetensors.index.json") for shard in _shards(index)}
    missing = sorted(listed - {path.name for path in model.weight_files})
    if need_weights and missing:
        return f"{len(missing)} of {len(listed)} weight files are missing, e.g. {missing[0]}"
    for path in model.weight_files if need_weights else ():
        try:
            with safe_open(path, framework="np"):
                pass
        except (OSError, SafetensorError) as error:
            return f"{path.name} is damaged or was not copied whole ({error})"
    if role == "thinker" and not any((model.path / name).is_file() for name in TOKENIZERS):
        return f"the folder has no tokenizer ({', '.join(TOKENIZERS)})"
    return ""


def _shards(index: Path) -> set[str]:
    """The weight files that an index names. Raises StageError where it cannot be read."""
    try:
        return set(parse_json(index.read_bytes())["weight_map"].values())
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise StageError(f"{str(index)!r} cannot be read ({error}): copy the model again") from error


@contextmanager
def explained_load_errors(model: ModelFolder, role: str) -> Iterator[None]:
    """Turn the errors of transformers for a folder that it cannot load into one line."""
    try:
        yield
    except StageError:
        raise
    except (OSError, ValueError, KeyError, RuntimeError, ImportError, AttributeError, TypeError) as error:
        reason = one_line(str(error))
        if "trust_remote_code" in reason:
            raise StageError(
                f"--{role} {model.name!r} is loaded by Python code of its own, which is never run: choose a "
                "model of a type that transformers has"
            ) from error
        if lacking := re.search(LACKING, reason):
            raise StageError(
                f"--{role} {model.name!r} has no {lacking[1]}: copy the whole folder of the model"
            ) from error
        raise StageError(
            f"--{role} {model.name!r} cannot be loaded: {type(error).__name__}: {reason[:300]}"
        ) from error
