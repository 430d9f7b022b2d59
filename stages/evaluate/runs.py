"""Finished training runs: their models, splits and features, and their current evaluations."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field

from thinkjepa.cache import FeatureCache
from thinkjepa.cache.disk.layout import cache_json
from thinkjepa.stages.data.partition import SPLIT_NAMES, SplitName, clip_digests
from thinkjepa.stages.data.tracked_files import labels_digest
from thinkjepa.stages.errors import StageError
from thinkjepa.stages.evaluate.compared.groups import EvaluatedRun
from thinkjepa.stages.evaluate.metrics import VALIDATION_METRICS
from thinkjepa.stages.evaluate.table import ClipTable, table_path
from thinkjepa.stages.json_files import Digest, check_record, read_json, read_record
from thinkjepa.stages.train.data.feature_sets import find_serving, guiding_record, serves
from thinkjepa.stages.train.data.features import Features, build_features
from thinkjepa.stages.train.data.sources import ORACLE_FILE, GuidanceSource, shuffled_source
from thinkjepa.stages.train.fit.state import Checkpoint, load_model, shape_from_json
from thinkjepa.stages.train.model.config import ModelShape, Variant, parse_source
from thinkjepa.stages.train.model.forecast import ForecastModel
from thinkjepa.stages.train.plan import RUN_SCHEMA

MAX_PATH = 4096
"""Bytes of a path, of Linux."""

LARGEST_SIZE = 2**16
"""Of a model's widths and counts: a run.json with larger ones was changed by hand."""

LARGEST_COUNT = 2**10
"""Of blocks, levels and windows, each of which is made by itself."""

MADE_ONE_BY_ONE = ("depth", "levels", "windows")


Positive = Annotated[int, Field(gt=0)]


@dataclass(frozen=True, slots=True)
class _Weights:
    file: Annotated[str, Field(pattern=r"^checkpoints/[A-Za-z0-9_.-]+\.safetensors$")]
    sha256: Digest


@dataclass(frozen=True, slots=True)
class _ReadSet:
    name: str
    fingerprint: str
    layers: list[int] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class _ReadSets:
    encoder: _ReadSet
    thinker: _ReadSet | None = None
    history: _ReadSet | None = None


@dataclass(frozen=True, slots=True)
class _Settings:
    seed: int
    clips_per_forward: Positive
    guidance_source: str = "own"
    min_confidence: float = 0.0


@dataclass(frozen=True, slots=True)
class _Guidance:
    kind: str = ""
    cross_tokens: str = "all"


@dataclass(frozen=True, slots=True)
class _Grid:
    observed_steps: Positive
    future_steps: Positive
    height: Positive
    width: Positive
    dim: Positive


@dataclass(frozen=True, slots=True)
class _Model:
    variant: Variant
    grid: _Grid
    guidance: _Guidance = field(default_factory=_Guidance)


@dataclass(frozen=True, slots=True)
class _RunRecord:
    """Content of run.json, as far as an evaluation reads it. The model's sizes are checked by its shape."""

    cache: Annotated[str, Field(pattern=r"^[^\x00]+$", max_length=MAX_PATH)]
    settings: _Settings
    feature_sets: _ReadSets
    model: _Model
    labels: str
    checkpoint: _Weights
    split_sha256: str
    reference_frames: list[str] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class _Clips:
    train: list[str]
    validation: list[str]
    test: list[str]


@dataclass(frozen=True, slots=True)
class _Division:
    """Content of split.json, as far as it is read."""

    rule: dict[str, Any]
    grouping: str
    clips: _Clips


@dataclass(frozen=True, slots=True)
class TrainedRun:
    """A finished run: its folder and its record `run.json`."""

    path: Path
    record: Mapping[str, Any]

    @classmethod
    def open(cls, path: Path) -> "TrainedRun":
        """Raises StageError where `path` holds no finished run, or one of another schema."""
        if not (path / "run.json").is_file():
            raise StageError(_no_run(path))
        record = read_json(path / "run.json")
        if record.get("schema") != RUN_SCHEMA:
            raise StageError(
                f"run {str(path)!r} has schema {record.get('schema')!r}, this version reads {RUN_SCHEMA!r}: "
                "train again"
            )
        check_record(record, _RunRecord, path / "run.json")
        _refuse_earlier_tokens(path, record)
        _refuse_sizes(record["model"], path / "run.json")
        run = cls(path=path, record=record)
        _ = run.shape  # raises for none
        return run

    @property
    def variant(self) -> str:
        return str(self.record["model"]["variant"])

    @property
    def clips_per_forward(self) -> int:
        return int(self.record["settings"]["clips_per_forward"])

    @property
    def min_confidence(self) -> float:
        """Confidence below which joints are unknown to the run. Earlier versions had none."""
        return float(self.record["settings"].get("min_confidence", 0.0))

    @property
    def shape(self) -> ModelShape:
        return shape_from_json(self.record["model"], path=self.path / "run.json")

    def model(self) -> ForecastModel:
        """The best epoch's model, in evaluation mode."""
        checkpoint = Checkpoint(**self.record["checkpoint"])
        return load_model(self.path, checkpoint, self.shape)

    def cache(self, cache_dir: Path | None) -> FeatureCache:
        """`cache_dir` or, where None, the cache that the run names.

        A cache above the run counts only where it holds what the run reads: another may have its name.
        Raises StageError where the cache is found neither from this folder nor from one above the run.
        """
        if cache_dir is not None:
            return FeatureCache.open(cache_dir)
        named = Path(self.record["cache"])
        here, *above = candidates(named, self.path)
        if cache_json(here).is_file():
            return FeatureCache.open(here)
        wanted = [item for item in self.record["feature_sets"].values() if item]
        for path in above:
            if cache_json(path).is_file():
                found = FeatureCache.open(path)
                held = found.feature_sets.values()
                if all(any(serves(item, record) for item in held) for record in wanted):
                    return found
        raise StageError(
            f"run {str(self.path)!r} was trained from {str(named)!r}, which is not a feature cache, seen "
            "from this folder or from one above the run: name the cache with --cache-dir"
        )

    def features(self, cache_dir: Path | None, *, windows: int = 1) -> Features:
        """The features that the run reads, in `cache_dir` or, where None, the cache that the run names.

        They come from the set that holds these with the fewest more, and so many future windows. Raises
        StageError where no set does.
        """
        cache, sets = self.cache(cache_dir), self.record["feature_sets"]
        encoder = find_serving(cache, "encoder", sets["encoder"], windows=windows)
        guiding = guiding_record(sets)
        shape = self.shape
        thinker = find_serving(cache, *guiding, arrays=shape.reading.arrays) if guiding else None
        features = build_features(
            cache,
            encoder,
            thinker,
            task="trajectory" if shape.head else "latent",
            joints=",".join(shape.head.joints) if shape.head else "auto",
            min_confidence=self.min_confidence,
            transform=shape.view,
            reading=shape.reading,
            streams=shape.thinker.streams if shape.thinker else (),
            layers=tuple(guiding[1].get("layers", ())) if guiding else (),
            windows=windows,
            reads_latents=shape.has_latents,
        )
        return replace(features, source=self.guidance_source) if thinker else features

    @property
    def guidance_source(self) -> GuidanceSource:
        """The source of the states that the run was guided by. Earlier versions had but the clips' own."""
        settings = self.record["settings"]
        kind, _ = parse_source(settings.get("guidance_source", "own"))
        if kind == "shuffled":
            return shuffled_source({side: self.clip_ids(side) for side in SPLIT_NAMES}, seed=settings["seed"])
        if kind == "oracle":
            return _oracle(self.path / ORACLE_FILE)
        return GuidanceSource(kind)

    def clip_ids(self, split_name: SplitName) -> tuple[str, ...]:
        """The clips of this split when the run was trained, sorted."""
        return tuple(self.division["clips"][split_name])

    @property
    def division(self) -> dict[str, Any]:
        """The run's partition, with its clips by split name."""
        return read_record(self.path / "split.json", _Division)

    @property
    def trained_on(self) -> dict[str, dict[str, Any]]:
        """Count and digest of the run's clips by split name, and of their hand labels where it read any.

        They are those of split.json, which runs of every version have.
        """
        found = clip_digests(self.division["clips"])
        if not self.record["labels"]:
            return found
        num_clips = sum(int(clips["count"]) for clips in found.values())
        return {**found, "labels": {"count": num_clips, "sha256": self.record["labels"]}}

    def split_name_of(self, video_id: str) -> SplitName | None:
        """The split that has clips of this video, None where the run has none."""
        prefix = f"{video_id}@"
        for split_name in SPLIT_NAMES:
            if any(name.startswith(prefix) for name in self.clip_ids(split_name)):
                return split_name
        return None


def _refuse_sizes(record: Mapping[str, Any], path: Path) -> None:
    """Raise StageError for a model that no memory holds, before any of it is built."""
    for name, value in record.items():
        most = LARGEST_COUNT if name.endswith(MADE_ONE_BY_ONE) else LARGEST_SIZE
        if isinstance(value, dict):
            _refuse_sizes(value, path)
        elif isinstance(value, int) and not 0 <= value <= most:
            raise StageError(
                f"{str(path)!r} was changed by hand: {name} of its model is {value}, of 0 to {most}"
            )


def _oracle(path: Path) -> GuidanceSource:
    record = read_json(path)
    try:
        return GuidanceSource.of_oracle(record)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise StageError(f"{str(path)!r} is damaged or was changed by hand ({error}): train again") from error


def _refuse_earlier_tokens(path: Path, record: Mapping[str, Any]) -> None:
    """Raises StageError for a run that was trained when `generated` left the reasoning out.

    Such runs record no digests of their clips.
    """
    guidance = record.get("model", {}).get("guidance", {})
    names = [name.strip() for name in guidance.get("cross_tokens", "all").split(",")]
    if "clips" not in record and guidance.get("kind") == "cross" and "generated" in names:
        raise StageError(
            f"run {str(path)!r} is of an earlier version, in which cross_tokens 'generated' left out the "
            "reasoning: train again with --cross-tokens answer for the same, or generated for both"
        )


def candidates(recorded: Path, folder: Path) -> list[Path]:
    """Paths that a relative path may mean: from the current folder, from `folder`, from those above it."""
    folder = folder.resolve()
    return [recorded, *(above / recorded for above in (folder, *folder.parents))]


def _no_run(path: Path) -> str:
    """The message for a path that is no finished run, with one beneath it where there is one."""
    if not path.exists():
        return f"{str(path)!r} is no finished training run: there is no such folder"
    if below := sorted(found.parent for found in path.glob("**/run.json")):
        return f"{str(path)!r} is no finished training run, but one is beneath it: {str(below[0])!r}"
    return f"{str(path)!r} has no run.json: it is no finished training run"


def runs_under(folder: Path) -> list[Path]:
    """Folders of finished training runs at any depth, sorted. Raises StageError where there is none."""
    found = sorted(path.parent for path in folder.glob("**/run.json"))
    if not found:
        raise StageError(f"{str(folder)!r} holds no finished training run (a folder with run.json)")
    return found


def read_evaluations(run_dirs: Sequence[Path], split_name: str) -> list[EvaluatedRun]:
    """Evaluations of runs on one split, named by their folders, or by whole paths where names are equal.

    Raises StageError where one is missing, or is not of the weights that the run has now.
    """
    names = [path.resolve().name for path in run_dirs]
    if len(set(names)) < len(names):
        names = [str(path) for path in run_dirs]
    return [
        EvaluatedRun(
            name, _current_table(path, split_name), _validation(path), TrainedRun.open(path).trained_on
        )
        for name, path in zip(names, run_dirs, strict=True)
    ]


def is_evaluated(run_dir: Path, split_name: str, *, cache_dir: Path | None = None) -> bool:
    """True if the run has an evaluation of its present weights and split, and of the present labels."""
    try:
        table = _current_table(run_dir, split_name)
    except StageError:
        return False
    if not table.record["joints"]:
        return True
    cache = TrainedRun.open(run_dir).cache(cache_dir)
    return bool(table.record["labels"] == labels_digest(cache, set(table.video_digests)))


def _current_table(run_dir: Path, split_name: str) -> ClipTable:
    run, table = TrainedRun.open(run_dir), ClipTable.read(table_path(run_dir, split_name))
    found = (table.record["checkpoint_sha256"], table.record["split_sha256"])
    if found != (run.record["checkpoint"]["sha256"], run.record["split_sha256"]):
        raise StageError(
            f"{str(table_path(run_dir, split_name))!r} is of an earlier training: run thinkjepa-eval --run "
            f"{run_dir} again"
        )
    return table


def _validation(run_dir: Path) -> dict[str, float]:
    metrics = read_json(run_dir / "metrics.json")
    found = {name: metrics[name] for name in VALIDATION_METRICS if metrics.get(name) is not None}
    if wrong := [name for name, value in found.items() if not isinstance(value, int | float)]:
        raise StageError(
            f"{str(run_dir / 'metrics.json')!r} was changed by hand ({wrong[0]} is no number): train again"
        )
    return found
