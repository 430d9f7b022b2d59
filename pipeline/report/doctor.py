"""Checks of `thinkjepa-cache doctor`: everything that extraction needs, tried on this machine."""

from __future__ import annotations

import fcntl
import mmap
import os
import platform
import resource
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path
from typing import Literal

import psutil
import torch
from packaging.requirements import Requirement

from thinkjepa.cache import ThinkJepaError
from thinkjepa.cache.text import one_line
from thinkjepa.pipeline.cli.console import counted, human_bytes
from thinkjepa.pipeline.sample.models import write_tiny_models
from thinkjepa.pipeline.sample.videos import write_videos
from thinkjepa.stages.data.decoding.client import VideoDecoder
from thinkjepa.stages.data.decoding.exact_frames import missing_decoders
from thinkjepa.stages.data.plan import ClipSettings
from thinkjepa.stages.device import choose_device, chosen_threads, usable_cores
from thinkjepa.stages.extract.models import digests
from thinkjepa.stages.extract.run import extract
from thinkjepa.stages.extract.settings import ExecutionSettings, ModelSettings
from thinkjepa.stages.progress import NoProgress

State = Literal["ok", "warning", "broken"]

SHOWN = ("torch", "transformers", "zarr", "pyarrow", "av", "dask", "accelerate")
"""Libraries whose versions decide what is computed, or how it is stored."""

CODECS = ("h264", "hevc", "vp9", "av1", "mpeg4")

CLIP = ClipSettings(thinker_frames=4, observed_frames=4, future_frames=4, dense_fps=10)

ROOM = 10**9

FILES_AT_ONCE = 1024


@dataclass(frozen=True, slots=True)
class Finding:
    """The result of one check. `remedy` is empty where all is well."""

    name: str
    state: State
    found: str
    remedy: str = ""


def examine(cache_dir: Path, *, device: str, rehash: bool = False) -> Iterator[Finding]:
    """Findings as they come, a few seconds in all. A check that fails with an error is a finding, too.

    With `rehash` the weights of all remembered models are read again before.
    """
    with tempfile.TemporaryDirectory(prefix="thinkjepa-doctor-") as scratch:
        checks: Sequence[tuple[str, Callable[[], Iterator[Finding]]]] = (
            ("versions", check_versions),
            ("decoder", lambda: check_decoder(Path(scratch))),
            ("devices", lambda: check_devices(device)),
            ("disk", lambda: check_disk(cache_dir)),
            ("limits", check_limits),
            ("extraction", lambda: check_extraction(Path(scratch), device)),
        )
        weights = [("weights", check_weights)] if rehash else []
        for name, check in (*weights, *checks):
            try:
                yield from check()
            except (ThinkJepaError, OSError, RuntimeError, ValueError, ImportError) as error:
                reason = one_line(str(error))[:300]
                yield Finding(name, "broken", f"{type(error).__name__}: {reason}", "see the message")


def check_versions() -> Iterator[Finding]:
    """Installed libraries against what this version asks for."""
    python = f"Python {platform.python_version()} ({sys.executable})"
    shown = ", ".join(f"{name} {version(name)}" for name in SHOWN)
    yield Finding("versions", "ok", f"thinkjepa {version('thinkjepa')}, {python}, {shown}")
    for line in requires("thinkjepa") or ():
        needed = Requirement(line)
        if needed.marker is not None and not needed.marker.evaluate({"extra": ""}):
            continue
        try:
            found = version(needed.name)
        except PackageNotFoundError:
            found = "not installed"
        if found == "not installed" or not needed.specifier.contains(found, prereleases=True):
            yield Finding(
                "versions",
                "broken",
                f"{needed.name} is {found}",
                f"pip install '{needed.name}{needed.specifier}'",
            )


def check_weights() -> Iterator[Finding]:
    """Remembered digests of weights against the weights, all of which are read."""
    models, num_bytes = 0, 0
    for found in digests.rehash():
        models, num_bytes = models + 1, num_bytes + found.num_bytes
        if found.changed:
            yield Finding(
                "weights",
                "broken",
                f"{', '.join(found.changed)} in {str(found.folder)!r} changed and kept size and times: sets "
                "extracted since then name the weights of before",
                "the memory is corrected now; extract again, which makes new sets",
            )
    read = f"{counted(models, 'model')} remembered, {human_bytes(num_bytes)} read again"
    yield Finding("weights", "ok", f"{read}, in {str(digests.memory_folder())!r}")


def check_decoder(scratch: Path) -> Iterator[Finding]:
    """A video is written, and decoded in the decoder's own process."""
    (path,) = write_videos(scratch / "videos", num_videos=1, seconds=2.0)
    with VideoDecoder(timeout_s=60) as decoder:
        info = decoder.open(path)
        shape = decoder.frames(path, [0, len(info.times_s) - 1]).shape
    yield Finding("decoder", "ok", f"{len(info.times_s)} frames of H.264, {shape[2]}x{shape[1]} pixels")
    if missing := missing_decoders(CODECS):
        yield Finding(
            "decoder", "warning", f"cannot read {', '.join(missing)}", "pip install --force-reinstall av"
        )


def check_devices(device: str) -> Iterator[Finding]:
    """The CPU and GPUs, and a matrix product on the chosen device."""
    memory = psutil.virtual_memory()
    yield Finding(
        "cpu",
        "ok",
        f"{usable_cores()} usable of {os.cpu_count()} cores, {counted(chosen_threads(0), 'thread')}, "
        f"{human_bytes(memory.available)} of {human_bytes(memory.total)} memory free",
    )
    for number in range(torch.cuda.device_count()):
        free, total = torch.cuda.mem_get_info(number)
        bf16 = "bfloat16" if torch.cuda.is_bf16_supported() else "no bfloat16: give --dtype float16"
        name = torch.cuda.get_device_name(number)
        yield Finding(
            "gpu", "ok", f"cuda:{number} {name}, {human_bytes(free)} of {human_bytes(total)} free, {bf16}"
        )
    if torch.cuda.device_count() == 0:
        found = "none that torch can use"
        if shutil.which("nvidia-smi"):
            yield Finding(
                "gpu", "warning", found, "there is a driver: install a torch built for its CUDA version"
            )
        else:
            yield Finding("gpu", "ok", found)
    chosen = choose_device(device)
    ones = torch.ones(64, 64, device=chosen)
    if float((ones @ ones)[0, 0]) != 64:
        yield Finding("device", "broken", f"{chosen} multiplies matrices wrongly", "choose another --device")


def check_disk(cache_dir: Path) -> Iterator[Finding]:
    """The file system of a cache: space, locks, renaming, syncing and mapping."""
    whole_path = cache_dir.absolute()
    folder = next(parent for parent in (whole_path, *whole_path.parents) if parent.is_dir())
    free = shutil.disk_usage(folder).free
    low = free < ROOM
    yield Finding(
        "disk",
        "warning" if low else "ok",
        f"{human_bytes(free)} free in {str(folder)!r}",
        "free space, or choose another --cache-dir" if low else "",
    )
    with tempfile.TemporaryDirectory(prefix=".thinkjepa-doctor-", dir=folder) as name:
        first, second = Path(name) / "first", Path(name) / "second"
        with first.open("w+b") as file:
            file.write(b"thinkjepa")
            file.flush()
            os.fsync(file.fileno())
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            with first.open("rb") as other:
                try:
                    fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    yield Finding(
                        "disk",
                        "broken",
                        "locks do not hold: two writers would not know of each other",
                        "mount the file system with locking (flock), or choose another --cache-dir",
                    )
                except BlockingIOError:
                    pass
        first.replace(second)
        with second.open("rb") as again, mmap.mmap(again.fileno(), 0, access=mmap.ACCESS_READ) as mapped:
            whole = mapped[:] == b"thinkjepa"
        yield (
            Finding("disk", "ok", "writes, syncs, locks, renames and maps files")
            if whole
            else Finding(
                "disk", "broken", "does not read back what was written", "choose another --cache-dir"
            )
        )


def check_limits() -> Iterator[Finding]:
    """Open files that a process may have."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    low = soft < FILES_AT_ONCE
    yield Finding(
        "limits", "warning" if low else "ok", f"{soft} open files", "raise it with `ulimit -n`" if low else ""
    )


def check_extraction(scratch: Path, device: str) -> Iterator[Finding]:
    """The whole path on a clip: tiny untrained models of the real classes, decoded, run, stored."""
    write_tiny_models(scratch / "models", seed=0)
    models = ModelSettings(
        thinker=str(scratch / "models" / "thinker"), encoder=str(scratch / "models" / "encoder")
    )
    report = extract(
        scratch / "videos",
        scratch / "cache",
        clips=CLIP,
        models=models,
        execution=ExecutionSettings(device=device),
        progress=NoProgress(),
    )
    if report.failures:
        failure = report.failures[0]
        yield Finding("extraction", "broken", f"{failure.stage}: {failure.reason}", "see the message")
    else:
        yield Finding("extraction", "ok", f"{report.extracted} clip of tiny models in {report.seconds:.1f} s")


def describe_finding(finding: Finding) -> str:
    """A line, and one more with what to do."""
    mark = {"ok": "ok     ", "warning": "WARNING", "broken": "BROKEN "}[finding.state]
    line = f"{mark} {finding.name:<10} {finding.found}"
    return f"{line}\n{' ' * 19}-> {finding.remedy}" if finding.remedy else line


def is_healthy(findings: Sequence[Finding]) -> bool:
    """True if nothing is broken; warnings are allowed."""
    return all(finding.state != "broken" for finding in findings)
