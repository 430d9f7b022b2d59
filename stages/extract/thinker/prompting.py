"""From frames and a prompt to a model's inputs: one video where the model takes video, else images.

Frames are passed as chosen: a processor that samples again would drop some of them.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any

from thinkjepa.stages.errors import StageError
from thinkjepa.stages.extract.thinker.contract import TimedFrames

CLOCK_FPS = 1000
"""Frames are placed on a clock of milliseconds: real times at any frame rate. The video's length and average
rate, which would tell of the future, have no part in it."""


class Prompting(ABC):
    """Chat input of one family of models."""

    as_video: bool
    """Whether frames are one video rather than images."""
    part: Any
    """The processor's visual part that frames go through."""
    options: dict[str, Any]
    """Arguments of the processor's visual part, besides frames and times."""

    def __init__(self, processor: Any, prompt: str) -> None:
        self._processor = processor
        self._prompt = prompt

    @abstractmethod
    def content(self, source: TimedFrames) -> list[dict[str, str]]:
        """The parts of the user's turn: texts, and placeholders for the frames."""

    @abstractmethod
    def inputs(self, source: TimedFrames) -> Mapping[str, Any]:
        """The model's inputs, with a batch axis of one."""

    def text(self, source: TimedFrames) -> str:
        """The conversation in the model's template, up to where the generation begins, without frames."""
        turn = {"role": "user", "content": self.content(source)}
        return str(self._processor.apply_chat_template([turn], tokenize=False, add_generation_prompt=True))


def choose_prompting(processor: Any, prompt: str, *, model: str, frames_as: str) -> Prompting:
    """Video where the processor has a video part, else images, unless `frames_as` says which.

    Raises StageError where the processor lacks the part that is asked for, or has neither.
    """
    parts = {"video": "video_processor", "images": "image_processor"}
    has = [name for name, part in parts.items() if getattr(processor, part, None) is not None]
    if not has:
        raise StageError(
            f"--thinker {model!r} takes neither video nor images: choose a vision-language model"
        )
    if frames_as not in ("auto", *has):
        raise StageError(f"--thinker {model!r} takes no {frames_as}: give --frames-as {has[0]}")
    chosen = has[0] if frames_as == "auto" else frames_as
    return VideoPrompting(processor, prompt) if chosen == "video" else FramePrompting(processor, prompt)


class VideoPrompting(Prompting):
    """One video item with the frames' real times, which the model's own processor writes into the text."""

    as_video = True

    def __init__(self, processor: Any, prompt: str) -> None:
        super().__init__(processor, prompt)
        self.part = processor.video_processor
        self.options = {"do_sample_frames": False}
        if hasattr(processor.video_processor, "cap_pixels_per_frame"):
            self.options["cap_pixels_per_frame"] = True

    def content(self, source: TimedFrames) -> list[dict[str, str]]:
        """The same parts for all frames: the processor writes the times."""
        return [{"type": "video"}, {"type": "text", "text": self._prompt}]

    def inputs(self, source: TimedFrames) -> Mapping[str, Any]:
        """As promised, from one video."""
        found: Mapping[str, Any] = self._processor(
            text=[self.text(source)],
            videos=[[source.frames]],
            videos_kwargs={**self.options, "video_metadata": [[clock_metadata(source.times_s)]]},
            return_tensors="pt",
        )
        return found


class FramePrompting(Prompting):
    """One image item per frame, each after a line with its time, for models that take images only."""

    as_video = False

    def __init__(self, processor: Any, prompt: str) -> None:
        super().__init__(processor, prompt)
        self.part = processor.image_processor
        self.options = {}
        if hasattr(processor.image_processor, "do_image_splitting"):
            self.options["do_image_splitting"] = False  # tiles would make 17 images of each frame

    def content(self, source: TimedFrames) -> list[dict[str, str]]:
        """The parts with the time of each frame before it."""
        parts: list[dict[str, str]] = []
        for time_s in source.times_s:
            parts += [{"type": "text", "text": f"<{time_s:.1f} seconds>"}, {"type": "image"}]
        return [*parts, {"type": "text", "text": self._prompt}]

    def inputs(self, source: TimedFrames) -> Mapping[str, Any]:
        """As promised, from one image per frame."""
        found: Mapping[str, Any] = self._processor(
            text=[self.text(source)],
            images=[list(source.frames)],
            images_kwargs=self.options,
            return_tensors="pt",
        )
        return found


def clock_metadata(times_s: Sequence[float]) -> dict[str, Any]:
    """Frame times for the processor, on a millisecond clock that ends with the last observed frame."""
    ticks = [round(time_s * CLOCK_FPS) for time_s in times_s]
    length = ticks[-1] - ticks[0] + max(1, ticks[-1] - ticks[-2])
    return {
        "fps": CLOCK_FPS,
        "frames_indices": ticks,
        "total_num_frames": length,
        "duration": length / CLOCK_FPS,
    }
