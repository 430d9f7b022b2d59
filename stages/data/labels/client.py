"""Reading of label files by a child process: HDF5 and Arrow crash and hang on files that are damaged.

One changed byte of an HDF5 file ended the reader by a signal, or kept it in C code where Ctrl-C is not heard.
"""

from __future__ import annotations

import atexit
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from math import prod
from pathlib import Path
from typing import Any

import numpy as np

from thinkjepa.cache import VideoLabels
from thinkjepa.stages.child_process import ChildEndedError, ChildProcess, Message, NoAnswerError
from thinkjepa.stages.data.labels.contract import LabelError

CHILD = "thinkjepa.stages.data.labels.child"

TIMEOUT_S = 60.0
BYTES_PER_S = 10_000_000
"""A file may take `TIMEOUT_S`, and a second for so many bytes: a CSV of 2 GB takes half a minute."""

TEXTS = ("source", "reference_frame", "description")

NUMBERS = {
    "positions_m": np.float32,
    "confidences": np.float32,
    "camera_poses": np.float64,
    "intrinsics": np.float64,
}
"""Arrays of labels, as they come through the pipe."""

ENVIRONMENT = {
    "ARROW_DEFAULT_MEMORY_POOL": "system",  # others reserve memory beyond the limit
    "HDF5_PLUGIN_PRELOAD": "::",  # no filter is loaded because a file names it
    "OMP_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
}


class LabelProcess:
    """Reads label files one after the other in a child process, for any thread.

    Every method raises LabelError without the file's name, and StageError where there can be no process.
    After a time-out or a crash the next file is read by a new child.
    """

    def __init__(self, *, timeout_s: float = TIMEOUT_S) -> None:
        self.timeout_s = timeout_s
        self._child: ChildProcess | None = None
        self._lock = threading.Lock()

    @property
    def pid(self) -> int | None:
        """Process id of the child, where there is one."""
        return self._child.pid if self._child else None

    def holds(self, path: Path, video: str) -> bool:
        """True if a folder's file has rows of a video, by the video's path under the folder."""
        with self._answering() as child:
            return bool(self._ask(child, "holds", path, video)["holds"])

    def read(self, path: Path, *, rows_of: str | None = None) -> VideoLabels:
        """The checked labels of a video's own file, or of its rows in a folder's file."""
        with self._answering() as child:
            header = self._ask(child, "read", path, rows_of)
            shapes = header["shapes"]
            contents = {name: child.receive(self.timeout_s) for name in NUMBERS if name in shapes}
        arrays: dict[str, Any] = {
            name: np.frombuffer(content, dtype=NUMBERS[name], count=prod(shapes[name])).reshape(shapes[name])
            for name, content in contents.items()
        }
        texts = {name: header[name] for name in TEXTS}
        return VideoLabels(joint_names=tuple(header["joint_names"]), **texts, **arrays)

    def close(self) -> None:
        """End the child."""
        child, self._child = self._child, None
        if child:
            child.stop()

    def close_in(self, owner: int) -> None:
        """End the child where this is the process `owner`, and not one that was forked of it."""
        if os.getpid() == owner:
            self.close()

    def _ask(self, child: ChildProcess, do: str, path: Path, rows_of: str | None) -> Message:
        seconds = self.timeout_s + _size_bytes(path) / BYTES_PER_S
        request = {"do": do, "path": os.fspath(path.absolute()), "rows_of": rows_of, "cpu_s": seconds}
        child.send(request)
        answer = child.answer(seconds)
        if "error" in answer:
            raise LabelError(answer["error"])
        return answer

    @contextmanager
    def _answering(self) -> Iterator[ChildProcess]:
        """The child, for one thread at a time. Its end is a LabelError."""
        with self._lock:
            try:
                yield self._started()
            except LabelError:
                raise
            except NoAnswerError as error:
                self.close()
                raise LabelError(f"cannot be read: {error}; it is malformed, or its disk hangs") from error
            except ChildEndedError as error:
                self.close()
                raise LabelError(f"cannot be read: the process that reads it {error}") from error
            except BaseException:  # its answer would be taken for that of the next request
                self.close()
                raise

    def _started(self) -> ChildProcess:
        """The child; a new one where there is none, or the thread that started it took it along."""
        if self._child is not None and self._child.has_ended:
            self.close()
        if self._child is None:
            self._child = ChildProcess(CHILD, name="the process that reads labels", environment=ENVIRONMENT)
            self._child.wait_until_ready()
        return self._child


def label_process() -> LabelProcess:
    """The one child of this process that reads labels. It starts when the first file is read."""
    return _label_process(os.getpid())


@lru_cache(maxsize=1)
def _label_process(owner: int) -> LabelProcess:
    process = LabelProcess()
    atexit.register(process.close_in, owner)
    return process


def _size_bytes(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:  # the child's answer says why
        return 0
