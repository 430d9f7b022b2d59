"""The result of an extraction, and the failures that are counted while it runs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from thinkjepa.cache import Failure
from thinkjepa.stages.data.history import Histories
from thinkjepa.stages.data.repeated_frames import RepeatedFrames
from thinkjepa.stages.data.short_videos import ShortVideo
from thinkjepa.stages.extract.work.units import BatchDone
from thinkjepa.stages.progress import Progress


@dataclass(slots=True)
class ExtractReport:
    """The result of a run. Counts of clips are over the planned ones."""

    cache_dir: str
    thinker_set: str
    encoder_set: str
    history_set: str = field(default="", kw_only=True)
    """Empty where the encoder's features of the thinker's frames are not kept."""
    videos: int
    clips: int
    extracted: int = 0
    already_there: int = 0
    failed_clips: int = 0
    remaining_clips: int = 0
    """Clips that neither failed nor are ready: a run that stopped early leaves them to the next one."""
    labelled_videos: int = 0
    broken_labels: int = 0
    """Broken label files of planned videos. They are listed and count as no failure of their video."""
    failed_videos: int = 0
    failed_before: int = 0
    """Clips that failed in an earlier run and were not tried again."""
    allowed_failed_videos: int | None = None
    """None where no number was given."""
    stopped_early: bool = False
    """More videos failed than were to be accepted, so clips are left unprocessed."""
    seconds: float = 0.0
    failures: list[Failure] = field(default_factory=list)
    too_short: list[ShortVideo] = field(default_factory=list)
    """Videos that open and have no room for a clip. They are no failures."""
    repeats: list[tuple[str, str]] = field(default_factory=list)
    dense_fps: float | None = None
    """Rate of the dense windows. None where the preset cuts by index."""
    repeated_frames: RepeatedFrames = field(default_factory=RepeatedFrames)
    histories: Histories = field(default_factory=Histories)
    clip_ids: list[str] = field(default_factory=list)
    """Clips of this folder that have features in all sets."""

    @property
    def too_many_failures(self) -> bool:
        """True if more videos failed than are accepted."""
        return self.failed_videos > (self.allowed_failed_videos or 0)

    def to_json(self) -> dict[str, Any]:
        """All but the clip ids, for `--json`."""
        numbers = {name: value for name, value in asdict(self).items() if name != "clip_ids"}
        return {
            **numbers,
            "seconds": round(self.seconds, 3),
            "too_many_failures": self.too_many_failures,
            "repeated_frames": self.repeated_frames.to_json(),
        }


@dataclass(slots=True)
class Tally:
    """The failures of a run, reported as they come."""

    progress: Progress
    limit: int | None = None
    """Abort after this many failed videos. None never aborts."""
    failures: list[Failure] = field(default_factory=list)

    @property
    def over_limit(self) -> bool:
        """True if more videos have failed than are accepted."""
        return self.limit is not None and len({failure.video for failure in self.failures}) > self.limit

    def add(self, done: BatchDone) -> None:
        """Count a batch and report its failures."""
        self._record(done.failures)
        for note in done.notes:
            self.progress.note(note)
        if done.clips:
            self.progress.advance(done.clips)

    def _record(self, found: Sequence[Failure]) -> None:
        """Keep new failures, and report each video's failure once, not for every clip and set."""
        reported = {(failure.video, failure.stage, failure.reason) for failure in self.failures}
        for failure in found:
            if failure in self.failures:
                continue
            self.failures.append(failure)
            if (failure.video, failure.stage, failure.reason) not in reported:
                reported.add((failure.video, failure.stage, failure.reason))
                self.progress.failed(failure)
