"""Choices of what guidance reads of the thinker's states: levels, streams, slots and tokens."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Literal

from thinkjepa.cache import TOKEN_KINDS
from thinkjepa.stages.errors import StageError

GuidanceKind = Literal["film", "adaln", "cross", "spatial"]

GuidanceForm = Literal["shared", "paper"]

LevelAssignment = Literal["fixed", "mixture"]

LevelChoice = Literal["all", "last", "middle"]

TokenArray = Literal["tokens", "text_tokens"]

PROMPT_KINDS, GENERATED_KINDS = ("text", "visual"), ("generated", "reasoning")

TOKEN_PARTS: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        "all": TOKEN_KINDS,
        "prompt": PROMPT_KINDS,
        "text": ("text",),
        "visual": ("visual",),
        "generated": GENERATED_KINDS,
        "reasoning": ("reasoning",),
        "answer": ("generated",),
    }
)
"""Kinds of the cache by the names of `--cross-tokens`.

Generated are all that the thinker generated, as in `--use-streams`: its reasoning, and its answer, which
few tokens of a thinking model do not reach."""

STREAM_KINDS: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        "prompt": PROMPT_KINDS,
        "visual": ("visual",),
        "text": ("text",),
        "last": ("text",),
        "generated": GENERATED_KINDS,
    }
)
"""Kinds of the tokens that each stream of `pooled` is a mean of."""

SLOTS = "slots"
"""Name of the slots among those of `--cross-tokens`."""

TEXT_PARTS = ("text", "generated")
"""Names of all that `text_tokens` holds."""

FIRST_STREAMS = ("prompt", "generated")
"""Streams of the sets of earlier versions, and of the paper."""

EARLIER_CHOICE = "both"
"""Earlier name of both first streams."""


def chosen_streams(choice: str, held: Sequence[str], *, of: str = "the run") -> tuple[str, ...]:
    """The streams of `held` that `--use-streams` chooses, in their order. Raises StageError for others.

    `auto` leaves out the mean over the whole prompt where its parts are held.
    """
    if choice == "auto":
        return tuple(name for name in held if name != "prompt" or "visual" not in held)
    names = FIRST_STREAMS if choice == EARLIER_CHOICE else split_names(choice)
    if unknown := [name for name in names if name not in STREAM_KINDS]:
        raise StageError(
            f"--use-streams {choice!r}: {unknown[0]!r} is no stream: give auto, or some of "
            f"{', '.join(STREAM_KINDS)}"
        )
    if missing := [name for name in names if name not in held]:
        raise StageError(
            f"--use-streams {choice}: {of} has no stream {missing[0]!r}, only {', '.join(held)}: choose of "
            "these, or extract again (thinkjepa-cache upgrade is enough where all tokens are kept)"
        )
    return tuple(name for name in held if name in names)


def split_names(text: str) -> tuple[str, ...]:
    """Names with commas between."""
    return tuple(name.strip() for name in text.split(","))


@dataclass(frozen=True, slots=True)
class TokenReading:
    """The thinker's states that a model reads one by one. False where means are enough."""

    slots: bool = False
    """Whether slots are read."""
    kinds: tuple[int, ...] = ()
    """Values of the cache's `token_kind` of the tokens that are read."""
    array: TokenArray = "tokens"
    """The array that these tokens are read from."""
    positioned: bool = False
    """Whether their times and places are read."""

    def __bool__(self) -> bool:
        return bool(self.arrays)

    @property
    def arrays(self) -> tuple[str, ...]:
        """Names of the arrays that are read."""
        return (*((SLOTS,) if self.slots else ()), *((self.array,) if self.kinds else ()))


@dataclass(frozen=True, slots=True)
class GuidanceShape:
    """Guidance of the predictor's depths by the thinker's levels and streams."""

    kind: GuidanceKind = "film"
    levels: LevelAssignment = "fixed"
    use_levels: LevelChoice = "all"
    use_streams: str = "auto"
    cross_tokens: str = "all"
    form: GuidanceForm = "shared"
    token_array: TokenArray = "tokens"
    """Array of the tokens of `cross_tokens`."""
    positions: bool = False
    """Whether attention knows when and where its states are of. Those of earlier versions do not tell."""

    def used_levels(self, num_levels: int) -> tuple[int, ...]:
        """Levels that guide, in order, of those stored."""
        if self.use_levels == "all":
            return tuple(range(num_levels))
        return (num_levels - 1,) if self.use_levels == "last" else (num_levels // 2,)

    def check_names(self) -> None:
        """Raises StageError for a choice of streams or tokens that no feature set has."""
        chosen_streams(self.use_streams, tuple(STREAM_KINDS))
        if self.cross_tokens != "auto":
            self.chosen_tokens()

    def reading(self) -> TokenReading:
        """The states that guidance reads one by one. Raises StageError for a choice of none."""
        if self.kind == "spatial":
            return TokenReading(slots=True, positioned=True)
        return self.chosen_tokens() if self.kind == "cross" else TokenReading()

    def chosen_tokens(self) -> TokenReading:
        """The states that `cross_tokens` names within `use_streams`. Raises StageError for none."""
        names = split_names(self.cross_tokens)
        if unknown := [name for name in names if name not in TOKEN_PARTS and name != SLOTS]:
            allowed = ", ".join((SLOTS, *TOKEN_PARTS))
            raise StageError(f"cross_tokens has {unknown[0]!r}, it may have {allowed}")
        within = self._kinds_within_streams()
        kinds = {kind for name in names if name != SLOTS for kind in TOKEN_PARTS[name]} & within
        slots = SLOTS in names and "visual" in within
        if not kinds and not slots:
            raise StageError(
                f"cross_tokens {self.cross_tokens!r} has no token of the {self.use_streams} stream, to which "
                "use_streams limits it: change one of the two"
            )
        numbers = tuple(number for number, kind in enumerate(TOKEN_KINDS, start=1) if kind in kinds)
        return TokenReading(slots, numbers, self.token_array, self.positions)

    def _kinds_within_streams(self) -> set[str]:
        if self.use_streams in ("auto", EARLIER_CHOICE):
            return set(TOKEN_KINDS)
        return {kind for name in split_names(self.use_streams) for kind in STREAM_KINDS.get(name, ())}

    def for_features(self, name: str, *, streams: Sequence[str], arrays: Collection[str]) -> "GuidanceShape":
        """This guidance with all choices settled by what the named feature set holds. Raises StageError.

        `auto` reads slots and the text after them where a set holds them, else all tokens. Text without
        visual tokens comes from `text_tokens` where a set holds them.
        """
        settled = replace(self, use_streams=",".join(chosen_streams(self.use_streams, streams, of=name)))
        return settled._with_settled_tokens(arrays) if self.kind == "cross" else settled

    def _with_settled_tokens(self, arrays: Collection[str]) -> "GuidanceShape":
        names = self.cross_tokens
        if names == "auto":
            parts = (*((SLOTS,) if SLOTS in arrays else ()), *(TEXT_PARTS if "text_tokens" in arrays else ()))
            names = ",".join(parts) or "all"
        settled = replace(self, cross_tokens=names, token_array="tokens")
        visual = TOKEN_KINDS.index("visual") + 1
        if "text_tokens" in arrays and visual not in settled.chosen_tokens().kinds:
            settled = replace(settled, token_array="text_tokens")
        positions = settled.token_array == "text_tokens" or "token_position" in arrays
        return replace(settled, positions=positions or settled.chosen_tokens().slots)
