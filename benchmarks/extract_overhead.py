"""Cost of extraction beyond the models' forwards, and the saving against a plain loop.

All subjects run the same models, float32, on the same clips, one thread for the models, each run in a process
of its own:

- `ours`: `extract`, from the plan to the last index, without the time in which models are loaded;
- `forward`: the bare model calls, generation included, on inputs that are decoded and preprocessed before;
- `loop`: what one would write in an afternoon: open the video, decode, batch of one, `generate` with
  `output_hidden_states=True`, the encoder, `np.savez_compressed`; then the next clip.

Memory is the peak resident set of a process above what it was when the models were loaded, and that of its
children, less what they share with it. The models' own is their weights, and what bare calls on a clip take
(`own`): `memory_ratio` is what is beyond both, `memory_ratio_weights` what is beyond the weights.
`rss_growth` compares the peaks of extractions of few and of many clips with tiny models.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import psutil
import torch
from heavy_models import write_heavy_models
from measure import machine, median_ratio, report, rounded, work_folder

from thinkjepa.cache import ClipRow
from thinkjepa.pipeline.sample.models import write_tiny_models
from thinkjepa.pipeline.sample.videos import write_videos
from thinkjepa.stages.data.cutting.folder import plan_folder
from thinkjepa.stages.data.decoding.client import VideoDecoder
from thinkjepa.stages.data.decoding.exact_frames import ExactFrames
from thinkjepa.stages.data.plan import ClipSettings, PlannedFolder
from thinkjepa.stages.data.videos import find_videos
from thinkjepa.stages.extract.models.pair import FrozenModels
from thinkjepa.stages.extract.run import extract
from thinkjepa.stages.extract.settings import ExecutionSettings, ModelSettings
from thinkjepa.stages.extract.thinker.contract import TimedFrames
from thinkjepa.stages.extract.thinker.hooks import HookedThinker
from thinkjepa.stages.progress import NoProgress

CLIPS = ClipSettings(thinker_frames=32, observed_frames=16, future_frames=16, dense_fps=30.0, stride_s=1.0)
CLIPS_A_VIDEO = 5
SIZE_PX = (1280, 720)
SMALL_CLIPS = ClipSettings(
    thinker_frames=4, observed_frames=4, future_frames=4, dense_fps=15.0, stride_s=0.05
)
SMALL_CLIPS_A_VIDEO = 100
MODELS = {
    "slow": {"thinker_layers": 8, "encoder_layers": 2, "mlp_ratio": 2.0},
    # As many layers as the paper's thinker has, 8 of them stored; narrow, to take a second a clip.
    "fast": {"thinker_layers": 28, "encoder_layers": 1, "mlp_ratio": 0.25, "attention_width": 192},
}
Run = dict[str, float]


def settings(folder: Path) -> ModelSettings:
    models = {name: str(folder / name) for name in ("thinker", "encoder")}
    return ModelSettings(**models, max_new_tokens=8)


def peak_bytes(pid: int) -> int:
    """Highest resident set of a process since its mark was set back."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM"))


def own_peak_bytes(child: psutil.Process) -> int:
    """Peak of a child, without the libraries and the like that it shares with us: they are counted here."""
    now = child.memory_full_info()
    return peak_bytes(child.pid) - (now.rss - now.uss)


@contextmanager
def measured(run: Run) -> Iterator[None]:
    """Seconds, and bytes above what is resident now, children included."""
    Path("/proc/self/clear_refs").write_text("5")
    me, before, began = psutil.Process(), psutil.Process().memory_info().rss, time.perf_counter()
    yield
    run["seconds"] = time.perf_counter() - began
    run["extra_bytes"] = peak_bytes(me.pid) - before
    run["extra_bytes"] += sum(own_peak_bytes(child) for child in me.children(recursive=True))
    run["peak_bytes"] = before + run["extra_bytes"]


def run_ours(folder: Path, clips: ClipSettings) -> Run:
    """One extraction. Memory and time are counted from the moment when both models are loaded."""
    run: Run = {}
    context: list[Any] = []
    load, loading = FrozenModels.load, [0.0]

    def loaded(self: FrozenModels, kinds: Any) -> None:
        kinds, began = list(kinds), time.perf_counter()
        load(self, kinds)
        if kinds:
            touch_weights(self)
            loading[0] += time.perf_counter() - began
            context.append(measured(run))
            context[-1].__enter__()

    class AtEnd(NoProgress):
        """The decoder's process ends with the extraction: its peak is read before."""

        left = 0

        def begin(self, task: str, *, total: int, unit: str) -> None:
            self.left = total if task == "extracting" else 0

        def advance(self, count: int) -> None:
            self.left -= count
            if self.left == 0 and context:
                context[-1].__exit__(None, None, None)
                context.clear()

    FrozenModels.load = loaded  # type: ignore[method-assign]
    execution = ExecutionSettings(shard_mb=100)
    began = time.perf_counter()
    done = extract(
        folder / "videos",
        folder / "cache",
        clips=clips,
        models=settings(folder),
        execution=execution,
        progress=AtEnd(),
    )
    whole_s = time.perf_counter() - began - loading[0]
    if done.failures:
        raise SystemExit(done.failures[0].reason)
    return {**run, "seconds": whole_s, "clips": done.clips}


def hooked(frozen: FrozenModels) -> HookedThinker:
    assert isinstance(frozen.thinker, HookedThinker)
    return frozen.thinker


def touch_weights(frozen: FrozenModels) -> None:
    """Weights are mapped from their files: unread ones would count as memory of the first forward."""
    for model in (hooked(frozen)._model, frozen.encoder._model):
        for parameter in model.parameters():
            parameter.sum()


def ready_models(folder: Path) -> tuple[FrozenModels, PlannedFolder]:
    frozen = FrozenModels.find(settings(folder), device="cpu")
    with VideoDecoder(timeout_s=60) as decoder:
        videos = find_videos(folder / "videos")
        planned = plan_folder(videos, folder / "videos", CLIPS, decoder=decoder, progress=NoProgress())
    frozen.load(["thinker", "encoder"])
    touch_weights(frozen)
    return frozen, planned


def decoded(frozen: FrozenModels, planned: PlannedFolder, clip: ClipRow) -> tuple[Any, list[torch.Tensor]]:
    """The models' inputs of a clip, all its frames decoded at once."""
    reader = ExactFrames(str(planned.videos[clip.video_digest].source.path))
    frames = frozen.thinker.preprocess(plainly_decoded(reader, clip.thinker_frames))
    windows = [
        plainly_preprocessed(frozen, plainly_decoded(reader, indices))
        for indices in (clip.observed_frames, *clip.future_frames)
    ]
    reader.close()
    return frozen.thinker.prompt(TimedFrames(frames, clip.thinker_times_s)).inputs, windows


def plainly_decoded(reader: ExactFrames, indices: Sequence[int]) -> np.ndarray:
    """Frames `(frame, height, width, 3)`, all of them held at once."""
    frames = np.empty((len(indices), *reader.first.shape), dtype=np.uint8)
    for place, image in enumerate(reader.images(indices)):
        frames[place] = image
    return frames


def plainly_preprocessed(frozen: FrozenModels, frames: np.ndarray) -> torch.Tensor:
    """A window `(frame, 3, height, width)` float32, as the processor gives it."""
    video = torch.from_numpy(frames).permute(0, 3, 1, 2)
    options = {"return_tensors": "pt", "do_sample_frames": False}
    window: torch.Tensor = frozen.encoder._processor(videos=[video], **options)["pixel_values_videos"][0]
    return window


def generate(frozen: FrozenModels, inputs: Any, **options: Any) -> Any:
    return hooked(frozen)._model.generate(**inputs, generation_config=hooked(frozen)._generation, **options)


def encode(frozen: FrozenModels, window: torch.Tensor) -> torch.Tensor:
    latents: torch.Tensor = frozen.encoder._model.get_vision_features(window[None])[0]
    return latents


@torch.inference_mode()
def run_forward(folder: Path) -> Run:
    frozen, planned = ready_models(folder)
    seconds = 0.0
    for clip in planned.clips:
        inputs, windows = decoded(frozen, planned, clip)
        began = time.perf_counter()
        generate(frozen, inputs)
        for window in windows:
            encode(frozen, window)
        seconds += time.perf_counter() - began
    return {"seconds": seconds, "clips": len(planned.clips)}


@torch.inference_mode()
def run_own(folder: Path) -> Run:
    """Memory of the bare calls: nothing is kept, and the inputs were there before."""
    frozen, planned = ready_models(folder)
    inputs, windows = decoded(frozen, planned, planned.clips[0])
    run: Run = {"clips": 1}
    with measured(run):
        for _ in range(3):
            generate(frozen, inputs)
            for window in windows:
                encode(frozen, window)
    return run


@torch.inference_mode()
def run_loop(folder: Path) -> Run:
    frozen, planned = ready_models(folder)
    layers = frozen.thinker.layers
    run: Run = {"clips": len(planned.clips)}
    (folder / "npz").mkdir()
    with measured(run):
        for clip in planned.clips:
            inputs, windows = decoded(frozen, planned, clip)
            answer = generate(frozen, inputs, output_hidden_states=True, return_dict_in_generate=True)
            tokens = torch.stack([torch.cat([step[k][0] for step in answer.hidden_states]) for k in layers])
            observed, *future = [encode(frozen, window) for window in windows]
            np.savez_compressed(
                folder / "npz" / f"{clip.split_frame}-{clip.video_digest[:8]}.npz",
                tokens=tokens.numpy(),
                observed=observed.numpy(),
                future=torch.stack(future).numpy(),
            )
    shutil.rmtree(folder / "npz")
    return run


SUBJECTS: dict[str, Callable[[Path], Run]] = {
    "ours": lambda folder: run_ours(folder, CLIPS),
    "small": lambda folder: run_ours(folder, SMALL_CLIPS),
    "forward": run_forward,
    "own": run_own,
    "loop": run_loop,
}


def in_own_process(subject: str, folder: Path) -> Run:
    command = [sys.executable, __file__, "--subject", subject, "--folder", str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{subject} failed: {done.stderr[-2000:]}")
    shutil.rmtree(folder / "cache", ignore_errors=True)
    run: Run = json.loads(done.stdout.splitlines()[-1])
    return run


def compared(kind: str, peer: str, folder: Path, *, videos: int, rounds: int) -> dict[str, list[Run]]:
    """Runs of ours and of a peer in turns, on models of one kind."""
    place = folder / kind
    write_heavy_models(place, **MODELS[kind])  # type: ignore[arg-type]
    write_videos(place / "videos", num_videos=videos, size=SIZE_PX)
    runs: dict[str, list[Run]] = {"ours": [], peer: []}
    for number in range(rounds):
        for subject in (("ours", peer), (peer, "ours"))[number % 2]:
            runs[subject].append(in_own_process(subject, place))
    return runs


def growth(folder: Path, *, clips: Sequence[int]) -> list[Run]:
    """Extractions of few and of many clips with tiny models."""
    runs = []
    for count in clips:
        place = folder / f"tiny-{count}"
        write_tiny_models(place, seed=0)
        seconds = 1.0 + min(count, SMALL_CLIPS_A_VIDEO) * SMALL_CLIPS.stride_s
        write_videos(place / "videos", num_videos=-(-count // SMALL_CLIPS_A_VIDEO), seconds=seconds)
        runs.append(in_own_process("small", place))
    return runs


def seconds_of(runs: Sequence[Run]) -> list[float]:
    return [run["seconds"] for run in runs]


def figures(folder: Path, *, videos: int, rounds: int, few: int, many: int) -> dict[str, object]:
    slow = compared("slow", "forward", folder, videos=videos, rounds=rounds)
    fast = compared("fast", "loop", folder, videos=videos, rounds=rounds)
    own = in_own_process("own", folder / "fast")["extra_bytes"]
    small = growth(folder, clips=(few, many))
    memory = {name: median(run["extra_bytes"] for run in runs) for name, runs in fast.items()}
    per_clip = {
        f"{kind}_s_per_clip": median(seconds_of(runs)) / runs[0]["clips"]
        for kind, runs in (("ours", slow["ours"]), ("forward", slow["forward"]), ("loop", fast["loop"]))
    }
    return {
        "vs_forward": 1 / median_ratio(seconds_of(slow["forward"]), seconds_of(slow["ours"])),
        "vs_loop": median_ratio(seconds_of(fast["loop"]), seconds_of(fast["ours"])),
        "memory_ratio": (memory["ours"] - own) / (memory["loop"] - own),
        "memory_ratio_weights": memory["ours"] / memory["loop"],
        "rss_growth": small[1]["peak_bytes"] / small[0]["peak_bytes"],
        "ours_extra_mb": memory["ours"] / 1e6,
        "loop_extra_mb": memory["loop"] / 1e6,
        "own_extra_mb": own / 1e6,
        **per_clip,
        "clips": videos * CLIPS_A_VIDEO,
        "few_clips": small[0]["clips"],
        "many_clips": small[1]["clips"],
        "rounds": rounds,
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("--folder", type=Path, help="where to work (default: where temporary files go)")
    parser.add_argument("--videos", type=int, default=2, help=f"videos of {CLIPS_A_VIDEO} clips each")
    parser.add_argument("--rounds", type=int, default=2, help="runs of every subject, in turns")
    parser.add_argument("--few", type=int, default=10, help="clips of the small extraction")
    parser.add_argument("--many", type=int, default=1000, help="clips of the large one")
    parser.add_argument("--subject", choices=SUBJECTS, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    if arguments.subject:
        sys.stdout.write(json.dumps(SUBJECTS[arguments.subject](arguments.folder)) + "\n")
        return
    with work_folder(arguments.folder, needed_bytes=4 * 10**9) as folder:
        found = figures(
            folder,
            videos=arguments.videos,
            rounds=arguments.rounds,
            few=arguments.few,
            many=arguments.many,
        )
        place = machine(folder)
    report({**rounded(found), **place}, as_json=arguments.json)


if __name__ == "__main__":
    main()
