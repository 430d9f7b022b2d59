"""From frames and a question to a model's inputs: as one video where the model takes video, else as images.

Frames are passed as chosen: a processor that samples again would show the model fewer of them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from thinkjepa.stages.errors import StageError
from thinkjepa.stages.extract.thinker.contract import Scene

CLOCK_FPS = 1000
"""Frames are placed on a clock of milliseconds: real times at any frame rate, and nothing derived from the
video's length or average rate, which only the future would tell."""


class Prompting(Protocol):
    """How a family of models is shown a scene."""

    @property
    def options(self) -> Mapping[str, Any]:
        """What the part of the processor that sees is told, besides frames and times."""
        ...

    def content(self, scene: Scene) -> list[dict[str, str]]:
        """What the user's turn is made of: texts, and places for the frames."""
        ...

    def text(self, scene: Scene) -> str:
        """The conversation before its frames are filled in."""
        ...

    def inputs(self, scene: Scene) -> Mapping[str, Any]:
        """The model's inputs, with a batch axis of one."""
        ...


def choose_prompting(processor: Any, prompt: str, *, model: str, frames_as: str) -> Prompting:
    """Video where the processor has a video part, else images, where `frames_as` does not say which.

    Raises StageError where the processor does not have the part that is asked for, or neither.
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


class VideoPrompting:
    """One video item, with the frames' real times; what the text says of them is the model's own."""

    def __init__(self, processor: Any, prompt: str) -> None:
        self._processor = processor
        self._prompt = prompt
        self.options: dict[str, Any] = {"do_sample_frames": False}
        if hasattr(processor.video_processor, "cap_pixels_per_frame"):
            self.options["cap_pixels_per_frame"] = True

    def content(self, scene: Scene) -> list[dict[str, str]]:
        """The same for all scenes: the processor writes the times."""
        return [{"type": "video"}, {"type": "text", "text": self._prompt}]

    def text(self, scene: Scene) -> str:
        return _chat(self._processor, self.content(scene))

    def inputs(self, scene: Scene) -> Mapping[str, Any]:
        found: Mapping[str, Any] = self._processor(
            text=[self.text(scene)],
            videos=[[scene.frames]],
            videos_kwargs={**self.options, "video_metadata": [[clock_metadata(scene)]]},
            return_tensors="pt",
        )
        return found


class FramePrompting:
    """One image item a frame, behind a line with its time, for models that take images only."""

    def __init__(self, processor: Any, prompt: str) -> None:
        self._processor = processor
        self._prompt = prompt
        self.options: dict[str, Any] = {}
        if hasattr(processor.image_processor, "do_image_splitting"):
            self.options["do_image_splitting"] = False  # tiles would make 17 images of each frame

    def inputs(self, scene: Scene) -> Mapping[str, Any]:
        found: Mapping[str, Any] = self._processor(
            text=[self.text(scene)],
            images=[list(scene.frames)],
            images_kwargs=self.options,
            return_tensors="pt",
        )
        return found

    def content(self, scene: Scene) -> list[dict[str, str]]:
        """With the time of each frame before it."""
        parts: list[dict[str, str]] = []
        for time_s in scene.times_s:
            parts += [{"type": "text", "text": f"<{time_s:.1f} seconds>"}, {"type": "image"}]
        return [*parts, {"type": "text", "text": self._prompt}]

    def text(self, scene: Scene) -> str:
        return _chat(self._processor, self.content(scene))


def clock_metadata(scene: Scene) -> dict[str, Any]:
    """Frame times for the processor, on a millisecond clock that ends with the last frame seen."""
    ticks = [round(time_s * CLOCK_FPS) for time_s in scene.times_s]
    length = ticks[-1] - ticks[0] + max(1, ticks[-1] - ticks[-2])
    return {
        "fps": CLOCK_FPS,
        "frames_indices": ticks,
        "total_num_frames": length,
        "duration": length / CLOCK_FPS,
    }


def _chat(processor: Any, content: Sequence[Mapping[str, str]]) -> str:
    """The conversation as the model's template writes it, up to where the answer begins."""
    turn = {"role": "user", "content": list(content)}
    return str(processor.apply_chat_template([turn], tokenize=False, add_generation_prompt=True))
