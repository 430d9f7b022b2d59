"""The thinker's records: timed frames in, hidden states of chosen layers out.

Shape letters: L layers, S tokens (prompt, then all generated but the last), D width.
Layer k is the residual stream that enters decoder layer k. 0 is the embeddings, N comes after the last layer
and before the final norm.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from thinkjepa.cache import ClipFeatures, ClipRow
from thinkjepa.stages.data.framing import Box
from thinkjepa.stages.extract.thinker.kept import KIND, Kept
from thinkjepa.stages.extract.thinker.layout import WHOLE, VisualLayout


@dataclass(frozen=True, slots=True)
class TimedFrames:
    """Frames `(frame, 3, height, width)` uint8 of a clip, and their times in seconds.

    `view` is the part of the video's frame that they show, in shares of its width and height. `frame_px` are
    these, 0 where they are not known.
    """

    frames: Tensor
    times_s: Sequence[float]
    view: Box = WHOLE
    frame_px: tuple[int, int] = (0, 0)


@dataclass(frozen=True, slots=True)
class Prompt:
    """A model's inputs for one clip, on the CPU, with a batch axis of one.

    `layout` tells where its visual tokens are. `source` keeps the frames where an engine processes them by
    itself.
    """

    inputs: Mapping[str, Tensor]
    layout: VisualLayout
    source: TimedFrames | None = None


@dataclass(frozen=True, slots=True)
class HiddenStates:
    """Hidden states of one clip. `token_ids` includes the last generated token, which has no state."""

    hidden_LSD: Tensor
    token_kind_S: Tensor
    token_ids: tuple[int, ...]
    prompt_token_count: int
    text: str
    layout: VisualLayout

    def to_features(self, clip: ClipRow, kept: Kept) -> ClipFeatures:
        """The arrays and columns that the cache stores of a clip."""
        arrays = kept.features(
            self.hidden_LSD,
            self.token_kind_S,
            self.layout,
            prompt_token_count=self.prompt_token_count,
            split_time_s=clip.split_time_s,
        )
        return ClipFeatures(
            clip_id=clip.clip_id,
            arrays=arrays,
            token_count=self.hidden_LSD.shape[1],
            slot_count=len(arrays.get("slot_position", ())),
            text_count=len(arrays.get("text_kind", ())),
            frame_width_px=self.layout.frame_px[0],
            frame_height_px=self.layout.frame_px[1],
            prompt_token_count=self.prompt_token_count,
            token_ids=self.token_ids,
            generated_text=self.text,
        )


def token_kinds(
    prompt_ids: Sequence[int],
    generated_ids: Sequence[int],
    *,
    visual_ids: frozenset[int],
    think_open: int | None,
    think_close: int | None,
) -> Tensor:
    """Kinds `(S,)` uint8 of the prompt and of all generated tokens but the last.

    Generated tokens between a thinking model's think tags are reasoning. A prompt that ends inside an
    open tag, as the template of such models does, begins there.
    """
    kinds = [KIND["visual"] if token in visual_ids else KIND["text"] for token in prompt_ids]
    tags = [token for token in prompt_ids if think_open is not None and token in (think_open, think_close)]
    thinking = bool(tags) and tags[-1] == think_open
    for token in generated_ids[:-1]:
        if token == think_open:
            thinking = True
        kinds.append(KIND["reasoning"] if thinking else KIND["generated"])
        if token == think_close:
            thinking = False
    return torch.tensor(kinds, dtype=torch.uint8)
