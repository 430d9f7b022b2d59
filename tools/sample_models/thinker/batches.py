"""Training examples of the sample's thinker: frames that are changed at random, and what there is to say of
them.

A card is also pasted from one episode into another, which has a thing of its color. So what is told is read
off the card: no table tells what its card will be. Frames are moved by some pixels with the positions that
are told of them, made brighter or darker, and compressed as in a video.
"""

from __future__ import annotations

import io
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
import torch
from hands.plan import CONDITIONS, Condition
from hands.things import COLORS
from PIL import Image
from torch import Tensor
from transformers import Qwen3VLProcessor

from sample_models.thinker.model import PROMPT
from sample_models.thinker.sights import Bytes, Sights
from sample_models.thinker.words import Sight
from thinkjepa.stages.extract.thinker.contract import TimedFrames
from thinkjepa.stages.extract.thinker.prompting import choose_prompting

PASTED, COMPRESSED, WITH_CARD = 0.7, 0.5, 0.8
"""Shares of examples: with the card of another episode, compressed, of those with two frames such with a
card."""

MISHEARD = 0.5
"""Share of answers that tell a color in which any color stands for it, to go on from. Pairs of color and
place are held out: else a model learns that a color excludes a place."""

MOST_MOVED_PX = 8

BRIGHTNESS = (0.85, 1.15)

JPEG_QUALITY = (25, 80)

CUE, NO_CUE, LATE_CUE = (CONDITIONS.index(condition) for condition in ("cue", "no-cue", "late-cue"))


@dataclass(frozen=True, slots=True)
class Example:
    """Frames `(frame, height, width, 3)` uint8, their times, and the true answer."""

    frames: Bytes
    times_s: tuple[float, ...]
    sight: Sight
    told: bool


@dataclass(frozen=True, slots=True)
class Batch:
    """Inputs of the model for B examples of equally long prompts, and what it is to say."""

    input_ids: Tensor
    """`(B, S)`: prompt, answer, end of turn, padding."""
    heard_ids: Tensor
    """The same, with another color in some answers: what follows is to be seen, not concluded from the
    color."""
    pixels: Tensor
    """`(B * patches, value)`"""
    grid: Tensor
    """`(B, 3)`: frame pairs, rows and columns of patches."""
    token_types: Tensor
    """`(B, S)`: 2 for visual tokens."""
    prompt_length: int
    answer_length: Tensor
    """`(B,)` with the end of turn."""
    sentence_length: Tensor
    """`(B,)` of the first sentence."""


class ExampleMaker:
    """Draws examples from sights."""

    def __init__(self, drawn: Sights) -> None:
        self._drawn = drawn
        self._by_color: defaultdict[str, list[int]] = defaultdict(list)
        for number, sight in enumerate(drawn.sights):
            self._by_color[_color(sight.names[0])].append(number)

    def draw(self, rng: np.random.Generator, *, one_pair: bool = False) -> Example:
        """One example, which depends on the state of `rng` alone; of two frames that a tower merges, or of
        all."""
        number = int(rng.integers(len(self._drawn.sights)))
        condition = CONDITIONS[int(rng.integers(len(CONDITIONS)))]
        if condition != "no-cue" and rng.random() < PASTED:
            frames, sight = self._pasted(rng, number, condition)
        else:
            frames, sight = (
                self._drawn.frames[number, CONDITIONS.index(condition)],
                self._drawn.sights[number],
            )
        times_s = self._drawn.times_s[number]
        shows_card = (frames != without_card(self._drawn.frames[number])).any(axis=(1, 2, 3))
        if one_pair:
            first = 2 * _pair(rng, shows_card)
            chosen = slice(first, first + 2)
            frames, times_s, shows_card = frames[chosen], times_s[chosen], shows_card[chosen]
        told = condition != "no-cue" and bool(shows_card.any())
        frames, sight = _moved(rng, frames, sight)
        bright = np.clip(frames * np.float32(rng.uniform(*BRIGHTNESS)), 0, 255).astype(np.uint8)
        if rng.random() < COMPRESSED:
            bright = compressed(bright, quality=int(rng.integers(*JPEG_QUALITY)))
        return Example(bright, times_s, sight, told)

    def _pasted(self, rng: np.random.Generator, number: int, condition: Condition) -> tuple[Bytes, Sight]:
        """An episode with the card of another one, whose color one of its things has."""
        sight = self._drawn.sights[number]
        known = [index for index, name in enumerate(sight.names) if self._by_color[_color(name)]]
        taken = known[int(rng.integers(len(known)))]
        donors = self._by_color[_color(sight.names[taken])]
        donor = donors[int(rng.integers(len(donors)))]
        shown, mask = card(self._drawn.frames[donor], condition)
        frames = np.where(mask, shown, without_card(self._drawn.frames[number]))
        order = [taken, *(index for index in range(len(sight.names)) if index != taken)]
        return frames, replace(
            sight,
            names=tuple(sight.names[index] for index in order),
            things=tuple(sight.things[index] for index in order),
            place=self._drawn.sights[donor].place,
        )


def without_card(episode: Bytes) -> Bytes:
    """Frames `(frame, ...)` of an episode `(condition, frame, ...)` with no card in any of them."""
    early = (episode[CUE] != episode[NO_CUE]).any(axis=(1, 2, 3), keepdims=True)
    return np.where(early, episode[LATE_CUE], episode[NO_CUE])


def card(episode: Bytes, condition: Condition) -> tuple[Bytes, npt.NDArray[np.bool_]]:
    """Frames with the card as a condition shows it, and its pixels `(frame, height, width, 1)`."""
    shown = episode[CONDITIONS.index(condition)]
    return shown, (shown != without_card(episode)).any(axis=-1, keepdims=True)


def compressed(frames: Bytes, *, quality: int) -> Bytes:
    """Frames after JPEG, whose colors are of half the resolution as those of videos."""
    results = []
    for frame in frames:
        file = io.BytesIO()
        Image.fromarray(frame).save(file, format="JPEG", quality=quality)
        results.append(np.asarray(Image.open(file)))
    return np.stack(results)


class Collator:
    """Makes model inputs of examples, as extraction makes them of clips."""

    def __init__(self, processor: Qwen3VLProcessor) -> None:
        self._prompting = choose_prompting(processor, PROMPT, model="thinker", frames_as="auto")
        self._tokenizer, part = processor.tokenizer, processor.video_processor
        self._patch, self._merge = part.patch_size, part.merge_size
        self._video_token = processor.video_token_id
        self._color_ids = [self._ids(color)[0] for color in COLORS]
        self._prompts: dict[tuple[float, ...], list[int]] = {}

    def batch(self, examples: Sequence[Example], rng: np.random.Generator | None = None) -> Batch:
        """The inputs of examples, with wrong colors where `rng` draws them.

        Raises ValueError where their prompts are not equally long.
        """
        prompts = [self._prompt(example) for example in examples]
        if len(lengths := set(map(len, prompts))) > 1:
            raise ValueError(
                f"prompts of {sorted(lengths)} tokens in a batch: times must have equally many digits"
            )
        end = [self._tokenizer.eos_token_id]
        answers = [self._ids(example.sight.answer(told=example.told)) + end for example in examples]
        longest = max(map(len, answers))
        pad = [self._tokenizer.pad_token_id]
        rows = [
            prompt + answer + pad * (longest - len(answer))
            for prompt, answer in zip(prompts, answers, strict=True)
        ]
        input_ids = torch.tensor(rows)
        frames = torch.from_numpy(np.stack([example.frames for example in examples]))
        sides = (frames.shape[1] // 2, *(side // self._patch for side in frames.shape[2:4]))
        return Batch(
            input_ids=input_ids,
            heard_ids=input_ids if rng is None else self._misheard(input_ids, examples, len(prompts[0]), rng),
            pixels=patches_of(frames, patch=self._patch, merge=self._merge),
            grid=torch.tensor([sides] * len(examples)),
            token_types=2 * (input_ids == self._video_token).int(),
            prompt_length=len(prompts[0]),
            answer_length=torch.tensor([len(answer) for answer in answers]),
            sentence_length=torch.tensor(
                [len(self._ids(item.sight.first_sentence(told=item.told))) for item in examples]
            ),
        )

    def _misheard(
        self, input_ids: Tensor, examples: Sequence[Example], first: int, rng: np.random.Generator
    ) -> Tensor:
        """Ids with any color at `first` in a share of the answers that begin with one."""
        heard_ids = input_ids.clone()
        for row, example in enumerate(examples):
            if example.told and rng.random() < MISHEARD:
                heard_ids[row, first] = self._color_ids[int(rng.integers(len(self._color_ids)))]
        return heard_ids

    def _ids(self, text: str) -> list[int]:
        return list(self._tokenizer(text)["input_ids"])

    def _prompt(self, example: Example) -> list[int]:
        """Tokens of the prompt, which depend on the frames' size, number and times alone."""
        if example.times_s not in self._prompts:
            source = TimedFrames(torch.from_numpy(example.frames), example.times_s)
            self._prompts[example.times_s] = self._prompting.inputs(source)["input_ids"][0].tolist()
        return self._prompts[example.times_s]


def patches_of(frames: Tensor, *, patch: int, merge: int) -> Tensor:
    """Patches `(B * patches, value)` of frames `(B, F, H, W, 3)` uint8, as Qwen's processor orders them.

    It normalizes to -1 to 1. Patches that are merged follow one another.
    """
    batch, num_frames, height, width, _ = frames.shape
    block = patch * merge
    parts = (frames.float() / 127.5 - 1).view(
        batch, num_frames // 2, 2, height // block, merge, patch, width // block, merge, patch, 3
    )
    return parts.permute(0, 1, 3, 6, 4, 7, 9, 2, 5, 8).reshape(-1, 3 * 2 * patch * patch)


def _pair(rng: np.random.Generator, shows_card: npt.NDArray[np.bool_]) -> int:
    """Index of a pair of frames, mostly of one with a card."""
    pairs = shows_card.reshape(-1, 2).any(axis=1)
    chosen = np.flatnonzero(pairs) if pairs.any() and rng.random() < WITH_CARD else np.arange(len(pairs))
    return int(rng.choice(chosen))


def _moved(rng: np.random.Generator, frames: Bytes, sight: Sight) -> tuple[Bytes, Sight]:
    """Frames moved by up to MOST_MOVED_PX, their border repeated where they leave a gap."""
    most, size = MOST_MOVED_PX, frames.shape[1]
    down, right = (int(value) for value in rng.integers(-most, most + 1, 2))
    padded = np.pad(frames, ((0, 0), (most, most), (most, most), (0, 0)), mode="edge")
    moved = padded[:, most - down : most - down + size, most - right : most - right + size]
    return moved, sight.moved(right / size, down / size)


def _color(name: str) -> str:
    return name.split()[0]
