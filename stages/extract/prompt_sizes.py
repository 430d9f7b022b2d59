"""How many tokens the thinker will read of each clip: its real processor on blank frames of the real size.

Frames of one size become the same number of visual tokens; only the digits of the time stamps differ between
clips, by a token each. So one clip stands for all of its size: the one in the middle by time.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from thinkjepa.cache import ClipRow
from thinkjepa.stages.extract.hooked_thinker import HookedThinker, shrink
from thinkjepa.stages.extract.model_costs import PromptSize, prompt_size
from thinkjepa.stages.extract.thinker import TOKEN_CAPACITY, Scene

FrameSize = tuple[int, int]
"""Width and height in pixels."""


@dataclass(frozen=True, slots=True)
class PromptSizes:
    """Prompt sizes by the frame size of a clip's video."""

    new_tokens: int
    frame_sizes: Mapping[str, FrameSize]
    """By video digest."""
    sizes: Mapping[FrameSize, PromptSize]
    refused: Mapping[FrameSize, str]
    """Frame sizes that the processor does not take, with its reason."""

    @classmethod
    def count(
        cls, clips: Sequence[ClipRow], frame_sizes: Mapping[str, FrameSize], thinker: HookedThinker
    ) -> PromptSizes:
        """Run the processor once per frame size that the thinker's frames have after scaling down."""
        groups: dict[FrameSize, list[ClipRow]] = defaultdict(list)
        for clip in clips:
            groups[frame_sizes[clip.video_digest]].append(clip)
        by_seen: dict[FrameSize, PromptSize | str] = {}
        for size, group in groups.items():
            seen = seen_size(size, thinker.settings.thinker_size)
            if seen not in by_seen:
                by_seen[seen] = _processed(seen, group, thinker)
        found = {size: by_seen[seen_size(size, thinker.settings.thinker_size)] for size in groups}
        return cls(
            new_tokens=thinker.settings.max_new_tokens,
            frame_sizes=frame_sizes,
            sizes={size: result for size, result in found.items() if isinstance(result, PromptSize)},
            refused={size: result for size, result in found.items() if isinstance(result, str)},
        )

    def of(self, clip: ClipRow) -> PromptSize | None:
        """None where the processor refuses the clip's frames."""
        return self.sizes.get(self.frame_sizes[clip.video_digest])

    def num_tokens(self, size: PromptSize) -> int:
        """States of a clip: the prompt and all generated tokens but the last. Answers may end earlier."""
        return size.prompt_tokens + self.new_tokens - 1

    def fits(self, size: PromptSize) -> bool:
        """Whether the cache can hold a clip of this size."""
        return self.num_tokens(size) <= TOKEN_CAPACITY

    def problems(self, clips: Sequence[ClipRow]) -> list[str]:
        """Which clips will have no thinker features, why, and what helps; one line per frame size."""
        lines = []
        for size in sorted({self.frame_sizes[clip.video_digest] for clip in clips}):
            number = sum(self.frame_sizes[clip.video_digest] == size for clip in clips)
            who = f"{number} clips of {size[0]}x{size[1]} px will fail:"
            if size in self.refused:
                lines.append(f"{who} the thinker's processor says {self.refused[size]}")
            elif not self.fits(self.sizes[size]):
                lines.append(
                    f"{who} {self.num_tokens(self.sizes[size])} thinker tokens, the cache holds at most "
                    f"{TOKEN_CAPACITY}; lower --thinker-size or --thinker-frames"
                )
        return lines


def seen_size(size: FrameSize, short_side_px: int) -> FrameSize:
    """The size that frames have after scaling down."""
    width, height = size
    seen = shrink(np.zeros((1, height, width, 3), dtype=np.uint8), short_side_px=short_side_px)
    return int(seen.shape[-1]), int(seen.shape[-2])


def _processed(seen: FrameSize, group: Sequence[ClipRow], thinker: HookedThinker) -> PromptSize | str:
    """The size of the middle clip's prompt, or why the processor refuses such frames."""
    clip = sorted(group, key=lambda clip: clip.split_time_s)[len(group) // 2]
    width, height = seen
    blank = torch.zeros((len(clip.thinker_frames), 3, height, width), dtype=torch.uint8)
    try:
        return prompt_size(thinker, thinker.prepare(Scene(blank, clip.thinker_times_s)).inputs)
    except (RuntimeError, ValueError, IndexError, TypeError, KeyError) as error:
        return f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
