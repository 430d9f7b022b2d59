"""The contract of every thinker, and all that its backends share: description, prompts, features.

A backend adds how hidden states are generated. The configuration describes a thinker before `load`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor
from transformers import AutoConfig, AutoProcessor

from thinkjepa.cache import ArraySpec, ClipFeatures, ClipRow, Kind
from thinkjepa.stages.data.decoding.client import FrameStack
from thinkjepa.stages.data.framing import Framing
from thinkjepa.stages.data.plan import ClipSettings
from thinkjepa.stages.errors import StageError
from thinkjepa.stages.extract.models.digests import preprocessing_digest, weights_digest
from thinkjepa.stages.extract.models.runtime import library_versions, run_source
from thinkjepa.stages.extract.models.weights import ModelFolder, explained_load_errors
from thinkjepa.stages.extract.settings import ModelSettings, parse_layers
from thinkjepa.stages.extract.thinker.contract import (
    HiddenStates,
    Prompt,
    TimedFrames,
    token_kinds,
)
from thinkjepa.stages.extract.thinker.kept import Kept
from thinkjepa.stages.extract.thinker.layout import (
    VisualLayout,
    cut_by_processor,
    find_layout,
    part_of_frame,
)
from thinkjepa.stages.extract.thinker.prompting import CLOCK_FPS, Prompting, choose_prompting
from thinkjepa.stages.extract.views import shrink, view_box, viewed


class Thinker(ABC):
    """A frozen vision-language model. `load` brings its weights, which a description does without."""

    kind: ClassVar[Kind] = "thinker"
    backend: ClassVar[str]

    def __init__(
        self,
        folder: ModelFolder,
        settings: ModelSettings,
        *,
        dtype: str,
        device: torch.device,
        view: Framing | None = None,
    ) -> None:
        """`view` is the framing of the encoder whose part of the frames it is given, None for all of them."""
        self.folder = folder
        self.settings = settings
        self.view = view
        self.dtype = dtype
        self.device = device
        with explained_load_errors(folder, "thinker"):
            self.config = config = AutoConfig.from_pretrained(folder.path, trust_remote_code=False)
            text = config.get_text_config()
            self.num_layers, self.width = int(text.num_hidden_layers), int(text.hidden_size)
            self.patch_px = int(getattr(getattr(config, "vision_config", None), "patch_size", 1))
            self.visual_ids = frozenset(
                token
                for name in ("image_token_id", "video_token_id")
                if isinstance(token := getattr(config, name, None), int)
            )
        self.layers = parse_layers(settings.layers, num_layers=self.num_layers)
        self.kept = Kept.of(settings)
        self.prompting: Prompting
        self._processor: Any = None
        self._stop_ids: frozenset[int] = frozenset()

    @property
    def origin(self) -> dict[str, Any]:
        """Everything that determines the states, and what is kept of them, without the sampling of frames."""
        return {
            "backend": self.backend,
            "weights": weights_digest(self.folder),
            "layers": list(self.layers),
            "prompt": self.settings.prompt,
            "max_new_tokens": self.settings.max_new_tokens,
            "dtype": self.dtype,
            "preprocessing": self.preprocessing,
            "versions": library_versions(),
            **self.kept.origin,
        }

    @property
    def preprocessing(self) -> dict[str, Any]:
        """Everything that determines the model's inputs, given frames and prompt."""
        return {
            "files": preprocessing_digest(self.folder),
            "short_side_px": self.settings.thinker_size,
            "cap_pixels_per_frame": True,
            "clock_fps": CLOCK_FPS,
            **({"frames_as": "images"} if self.settings.frames_as == "images" else {}),
            **({"view": self.view} if self.view else {}),
        }

    @property
    def source(self) -> dict[str, Any]:
        """Model name, revision, versions and device, for people."""
        return run_source(self.folder, self.device)

    def sampling(self, clips: ClipSettings) -> dict[str, Any]:
        """The rule that chooses the frames."""
        return clips.thinker_sampling

    def arrays(self, clips: ClipSettings) -> tuple[ArraySpec, ...]:
        """The arrays of the feature set."""
        return self.kept.arrays(self.layers, width=self.width, dtype=self.dtype)

    def windows(self, clip: ClipRow) -> list[Sequence[int]]:
        """Frame indices of the one window that a clip's prompt is made of."""
        return [clip.thinker_frames]

    def load_processor(self) -> None:
        """Load what `prompt` needs. Raises StageError for what transformers cannot load."""
        if self._processor is not None:
            return
        with explained_load_errors(self.folder, "thinker"):
            processor = AutoProcessor.from_pretrained(self.folder.path, trust_remote_code=False)
            _require_chat_template(processor, self.folder)
            self.prompting = choose_prompting(
                processor,
                self.settings.prompt,
                model=self.folder.name,
                frames_as=self.settings.frames_as,
            )
        self._think_tags = [_token_id(processor.tokenizer, tag) for tag in ("<think>", "</think>")]
        self._processor = processor

    @abstractmethod
    def load(self) -> None:
        """Load processor and weights, or reach whatever has them. Raises StageError where that fails."""

    @abstractmethod
    def close(self) -> None:
        """Release everything that would outlive this process."""

    def preprocess(self, frames: FrameStack) -> Tensor:
        """Frames `(frame, 3, height, width)` uint8, cut to the view and scaled down to `--thinker-size`."""
        return shrink(viewed(frames, self.view), short_side_px=self.settings.thinker_size)

    def prompt(self, source: TimedFrames) -> Prompt:
        """The model's inputs for the frames as they are chosen, never sampled again."""
        inputs = self.prompting.inputs(source)
        return Prompt(inputs, self._layout(inputs, source))

    def _layout(self, inputs: Mapping[str, Tensor], source: TimedFrames) -> VisualLayout:
        height_px, width_px = source.frames.shape[-2:]
        cut = cut_by_processor(self.prompting.part, width_px=width_px, height_px=height_px)
        return find_layout(
            inputs,
            visual_ids=self.visual_ids,
            times_s=source.times_s,
            view=part_of_frame(source.view, cut),
            frame_px=source.frame_px,
            processor=self._processor,
            model_type=self.config.model_type,
        )

    def prepare(self, clip: ClipRow, windows: Sequence[Tensor], *, frame_px: tuple[int, int]) -> Prompt:
        """The prompt of a clip's preprocessed frames. May run in another thread while the model works."""
        (frames,) = windows
        view = view_box(self.view, width_px=frame_px[0], height_px=frame_px[1])
        return self.prompt(TimedFrames(frames, clip.thinker_times_s, view, frame_px))

    @abstractmethod
    def generate(self, prompts: Sequence[Prompt], *, batch_size: int = 1) -> list[HiddenStates]:
        """Hidden states for every prompt, on the CPU. No prompt's states depend on its neighbors."""

    def run(self, prepared: Sequence[tuple[ClipRow, Prompt]], *, batch_size: int) -> list[ClipFeatures]:
        """Features of prepared clips, in their order."""
        states = self.generate([prompt for _, prompt in prepared], batch_size=batch_size)
        return [item.to_features(clip, self.kept) for (clip, _), item in zip(prepared, states, strict=True)]

    def hidden_states(self, sources: Sequence[TimedFrames], *, batch_size: int = 1) -> list[HiddenStates]:
        """Hidden states for every clip's preprocessed frames."""
        return self.generate([self.prompt(source) for source in sources], batch_size=batch_size)

    def _as_hidden_states(
        self, hidden_LSD: Tensor, ids: Sequence[int], prompt_length: int, layout: VisualLayout
    ) -> HiddenStates:
        """States of a prompt and its generation, cut after the first stop token."""
        prompt_ids = ids[:prompt_length]
        generated_ids = until_stop(ids[prompt_length:], self._stop_ids)
        num_states = len(prompt_ids) + len(generated_ids) - 1
        think_open, think_close = self._think_tags
        return HiddenStates(
            hidden_LSD=hidden_LSD[:, :num_states].contiguous(),
            token_kind_S=token_kinds(
                prompt_ids,
                generated_ids,
                visual_ids=self.visual_ids,
                think_open=think_open,
                think_close=think_close,
            ),
            token_ids=(*prompt_ids, *generated_ids),
            prompt_token_count=len(prompt_ids),
            text=self._processor.tokenizer.decode(generated_ids, skip_special_tokens=True),
            layout=layout,
        )


def until_stop(generated_ids: Sequence[int], stop_ids: frozenset[int]) -> list[int]:
    """Generated tokens up to and including the first stop token. Padding follows it."""
    for index, token in enumerate(generated_ids):
        if token in stop_ids:
            return list(generated_ids[: index + 1])
    return list(generated_ids)


def as_stop_ids(eos_token_id: int | Sequence[int] | None) -> frozenset[int]:
    """Stop tokens from the three forms that generation configs give them in."""
    return frozenset([eos_token_id] if isinstance(eos_token_id, int) else eos_token_id or [])


def _require_chat_template(processor: Any, folder: ModelFolder) -> None:
    """Raise StageError where nothing says how this model's prompts are written."""
    tokenizer = getattr(processor, "tokenizer", None)
    if not (getattr(processor, "chat_template", None) or getattr(tokenizer, "chat_template", None)):
        raise StageError(
            f"--thinker {folder.name!r} has no chat template (chat_template.jinja, or in the tokenizer's "
            "config): copy the whole folder of the model, or choose one that was trained on instructions"
        )


def _token_id(tokenizer: Any, token: str) -> int | None:
    number = tokenizer.convert_tokens_to_ids(token)
    return number if isinstance(number, int) and number != tokenizer.unk_token_id else None
