"""The side of the pipe that opens label files: HDF5 and Arrow, in a process with little memory that may end.

A file may take the memory of what it holds, and no more: 131 kB of HDF5 declared numbers of 1.1 GB.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from functools import lru_cache
from multiprocessing.connection import Connection
from pathlib import Path

import numpy as np

from thinkjepa.cache import VideoLabels
from thinkjepa.stages.child_process import Message, next_request, send
from thinkjepa.stages.confinement import allow_cpu, allow_memory, confine
from thinkjepa.stages.data.labels.client import NUMBERS, TEXTS
from thinkjepa.stages.data.labels.contract import LabelError, check_values
from thinkjepa.stages.data.labels.formats import FOLDER_FILES, OWN_FILES
from thinkjepa.stages.data.videos import FileSignature, file_signature

FREE_BYTES = 256 * 2**20
"""Memory for any file, next to what this process has when it opens the file."""

BYTES_OF_A_BYTE = 16
"""Memory for each byte of a file. Compressed tables and CSV take up to ten while they are read."""

MAX_MESSAGE = 500
"""Characters of an error: a file may hold names of any length, which errors quote."""


def serve(pipe: Connection) -> None:
    """Answer requests until the parent is gone: labels, or an error in words."""
    pipe.send_bytes(b"{}")
    while (request := next_request(pipe)) is not None:
        path, name = Path(request["path"]), request["rows_of"]
        try:
            allow_cpu(request["cpu_s"])
            allow_memory(FREE_BYTES + BYTES_OF_A_BYTE * path.stat().st_size)
            if request["do"] == "holds":
                send(pipe, {"holds": name in _read_folder(path, file_signature(path))})
            else:
                _send_labels(pipe, _read(path, name))
        except LabelError as error:
            _send_error(pipe, str(error))
        except MemoryError:
            _send_error(pipe, "needs more memory than a file of its size may: it declares more than it holds")
        except OSError as error:
            _send_error(pipe, f"cannot be read: {error.strerror or error}")
        except Exception as error:  # whatever a library raises is this file's answer, not the child's end
            _send_error(pipe, f"cannot be read ({type(error).__name__}: {error})")


def _read(path: Path, name: str | None) -> VideoLabels:
    if name is None:
        labels = OWN_FILES[path.suffix].read(path)
    else:
        held = _read_folder(path, file_signature(path))
        if name not in held:
            raise LabelError(f"has no rows of {name!r} any more")
        labels = held[name]()
    check_values(labels)
    return labels


@lru_cache(maxsize=2)
def _read_folder(path: Path, signature: FileSignature) -> Mapping[str, Callable[[], VideoLabels]]:
    """Read once for all videos of the folder, again where the file has changed."""
    return FOLDER_FILES[path.name].read_folder(path)


def _send_labels(pipe: Connection, labels: VideoLabels) -> None:
    """Send texts and shapes, then the numbers of each array that is there."""
    arrays = {
        name: np.ascontiguousarray(values)
        for name in NUMBERS
        if (values := getattr(labels, name)) is not None
    }
    header: Message = {name: getattr(labels, name) for name in TEXTS}
    shapes = {name: values.shape for name, values in arrays.items()}
    send(pipe, {**header, "joint_names": labels.joint_names, "shapes": shapes})
    for values in arrays.values():  # as they are: a copy might not have the memory
        pipe.send_bytes(values.reshape(-1).view(np.uint8).data)


def _send_error(pipe: Connection, text: str) -> None:
    line = " ".join(text.split())
    send(pipe, {"error": line if len(line) <= MAX_MESSAGE else line[:MAX_MESSAGE] + " ..."})


if __name__ == "__main__":
    confine()
    serve(Connection(int(sys.argv[1])))
