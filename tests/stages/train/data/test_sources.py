"""Controls of guidance: the states that a run is given in training, evaluation, rollout and prediction."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from thinkjepa.cache import (
    ArraySpec,
    ClipFeatures,
    FeatureCache,
    FeatureSet,
    WriteSession,
    describe_set,
)
from thinkjepa.pipeline.report.training import describe_start
from thinkjepa.stages.data.partition import SPLIT_NAMES, SplitRule
from thinkjepa.stages.errors import StageError
from thinkjepa.stages.evaluate.compared.comparison import compare
from thinkjepa.stages.evaluate.evaluation import evaluate, predictions, rows_of
from thinkjepa.stages.evaluate.rollout import evaluate_rollout
from thinkjepa.stages.evaluate.runs import TrainedRun, read_evaluations
from thinkjepa.stages.train.data.feature_sets import find_history
from thinkjepa.stages.train.data.sources import GuidanceSource, oracle_source
from thinkjepa.stages.train.events import RunStarts, TrainEvent
from thinkjepa.stages.train.run import train
from thinkjepa.stages.train.settings import TrainSettings

BuildCache = Callable[..., Path]
SIZES = (("one", 5), ("two", 3))
"""Columns and their numbers of classes."""
TINY = TrainSettings(
    epochs=2,
    batch_size=8,
    depth=1,
    width=24,
    heads=2,
    fusion_width=16,
    head_width=16,
    learning_rate=3e-3,
    gate_learning_rate=0.1,
    device="cpu",
    tracker="none",
)


def run(cache: Path, out: Path, events: list[TrainEvent] | None = None, **changes: Any) -> dict[str, Any]:
    return train(
        cache,
        out,
        replace(TINY, **changes),
        split=SplitRule(group_by="video", test_fraction=0.3, validation_fraction=0.3),
        report=(events if events is not None else []).append,
    )


def write_table(cache: Path, path: Path, *, known: int | None = None) -> Path:
    """The split frame of each clip, as a table by clip_id; of the first `known` videos only."""
    clips = list(FeatureCache.open(cache).clips.all())[: None if known is None else 2 * known]
    columns = {
        "clip_id": [clip.clip_id for clip in clips],
        "moment": [f"split {clip.split_frame}" for clip in clips],
        "third": [str(number % 3) if number > 5 else "" for number in range(len(clips))],
    }
    if path.suffix == ".csv":
        lines = [",".join(columns), *map(",".join, zip(*columns.values(), strict=True))]
        path.write_text("\n".join(lines) + "\n")
    else:
        pq.write_table(pa.table(columns), path)
    return path


def forecasts(run_dir: Path, cache: Path, *, windows: int = 1) -> dict[str, torch.Tensor]:
    """Latents that the run's model forecasts of its test clips."""
    trained = TrainedRun.open(run_dir)
    features = trained.features(cache, windows=windows)
    clips = rows_of(trained.clip_ids("test"), features)
    found = {}
    for part, _, predicted in predictions(
        trained, trained.model(), features, clips, device=torch.device("cpu")
    ):
        latents = predicted["model"].latents
        assert latents is not None
        found |= {clip.clip_id: values for clip, values in zip(part, latents, strict=True)}
    return found


def add_history(
    cache: Path, *, altered: int | None = None, sampling: str = "sparse", most: int | None = None
) -> FeatureSet:
    """Give the first `most` clips a history: means of observed latents, that of number `altered` moved."""
    opened = FeatureCache.open(cache)
    encoder = opened.choose_set("encoder")
    history = describe_set(
        "history",
        origin={**encoder.origin, "sampling": {"fingerprint": sampling}},
        source=encoder.source,
        arrays=(ArraySpec("pooled", ("layer", "stream", "dim"), (1, 2, 8), (1, 2, 8), "float32"),),
        shard_bytes=64,
        typical_clip_bytes=1,
    )
    made = []
    for number, clip in enumerate(list(opened.clips.all())[:most]):
        latents = opened.read(encoder.name, "observed", [clip.clip_id])[0].float()
        pooled = torch.stack([latents.mean(dim=(0, 1)) + (number == altered), torch.zeros(8)])
        made.append(ClipFeatures(clip.clip_id, {"pooled": pooled[None]}))
    with WriteSession(cache) as session, session.writer(session.resolve(history)) as writer:
        assert not writer.append(made)
    return history


@pytest.mark.parametrize("variant", ["thinkjepa", "vlm"])
def test_a_run_guided_by_the_history_reads_it_and_no_thinker(
    latent_cache: BuildCache, tmp_path: Path, variant: str
) -> None:
    """A change of one clip's history moves the forecast of this clip alone, one of its thinker's none."""
    cache = latent_cache()
    history = add_history(cache)
    events: list[TrainEvent] = []
    settings = {"guidance_source": "history", "variant": variant}
    run(cache, tmp_path / "run", events, **settings)
    trained = TrainedRun.open(tmp_path / "run")
    sets = trained.record["feature_sets"]
    assert (sets["history"]["name"], sets["thinker"]) == (history.name, None)
    assert (trained.shape.thinker.levels, trained.shape.thinker.dim) == (1, 8)
    (start,) = [event for event in events if isinstance(event, RunStarts)]
    assert "guidance source  history: encoder features of the thinker's frames" in describe_start(start)
    test_id = trained.clip_ids("test")[0]
    number = [clip.clip_id for clip in FeatureCache.open(cache).clips.all()].index(test_id)
    others = {name: latent_cache(name=name, altered=number) for name in ("thinker", "history")}
    add_history(others["thinker"])
    add_history(others["history"], altered=number)
    found = forecasts(tmp_path / "run", cache)
    assert differing(found, forecasts(tmp_path / "run", others["thinker"])) == set()
    assert differing(found, forecasts(tmp_path / "run", others["history"])) == {test_id}
    assert "shuffled_guidance" in evaluate(tmp_path / "run")["latent"]


def test_runs_with_and_without_a_history_train_on_the_same_clips(
    latent_cache: BuildCache, tmp_path: Path
) -> None:
    """Those that have the thinker's states too; and a set with other frames is not taken for it."""
    cache = latent_cache()
    add_history(cache)
    other = add_history(cache, sampling="of another thinker", most=0)
    with pytest.raises(StageError, match="thinkjepa-cache extract again with --keep-history"):
        find_history(FeatureCache.open(cache), FeatureCache.open(cache).choose_set("encoder"), other)
    doubled = add_history(cache, sampling="of another thinker")
    opened = FeatureCache.open(cache)
    with pytest.raises(StageError, match=f"{doubled.name}.*: name one with --set"):
        find_history(opened, opened.choose_set("encoder"), None)
    assert find_history(opened, opened.choose_set("encoder"), None, doubled.name) == doubled
    for source in ("own", "history"):
        run(cache, tmp_path / source, guidance_source=source)
    records = [TrainedRun.open(tmp_path / source).record for source in ("own", "history")]
    assert records[0]["clips"] == records[1]["clips"]
    assert "history" not in records[0]["feature_sets"], "a record of other runs is as it was"
    for source in ("own", "history"):
        evaluate(tmp_path / source)
    compared = compare(read_evaluations([tmp_path / "own", tmp_path / "history"], "test"))
    assert len(compared["groups"]) == 2


def test_a_cache_without_a_history_is_refused_in_one_line(latent_cache: BuildCache, tmp_path: Path) -> None:
    cache = latent_cache(with_tokens=True)
    with pytest.raises(StageError, match="run thinkjepa-cache extract again with --keep-history"):
        run(cache, tmp_path / "run", guidance_source="history")
    history = add_history(cache)
    with pytest.raises(StageError, match=f"{history.name} holds no slots.*: train with --guidance film"):
        run(cache, tmp_path / "run", guidance_source="history", guidance="cross")
    run(cache, tmp_path / "jepa", guidance_source="history", variant="jepa")  # reads none


def differing(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> set[str]:
    return {clip_id for clip_id in one if not torch.equal(one[clip_id], other[clip_id])}


@pytest.mark.parametrize("guidance", ["film", "cross"])
def test_shuffled_states_are_never_a_clips_own(
    latent_cache: BuildCache, tmp_path: Path, guidance: str
) -> None:
    """A change of one clip's states changes only the forecast of the one clip that is given them."""
    cache = latent_cache(with_tokens=True)
    run(cache, tmp_path / "run", guidance=guidance, guidance_source="shuffled", seed=3)
    source = TrainedRun.open(tmp_path / "run").guidance_source
    ids = {side: TrainedRun.open(tmp_path / "run").clip_ids(side) for side in SPLIT_NAMES}
    for own in ids.values():  # nothing crosses from split to split
        partners = [source.partners[clip_id] for clip_id in own]
        assert sorted(partners) == sorted(own)
        assert not any(one[:16] == other[:16] for one, other in zip(own, partners, strict=True))
    test_id = ids["test"][0]
    number = [clip.clip_id for clip in FeatureCache.open(cache).clips.all()].index(test_id)
    altered = latent_cache(name="altered", with_tokens=True, altered=number)
    given = next(clip_id for clip_id, partner in source.partners.items() if partner == test_id)
    found = forecasts(tmp_path / "run", cache)
    assert differing(found, forecasts(tmp_path / "run", altered)) == {given} != {test_id}
    other = run(cache, tmp_path / "own", guidance=guidance)
    assert other["validation_loss"] != json.loads((tmp_path / "run" / "metrics.json").read_text())


@pytest.mark.parametrize("guidance", ["film", "cross"])
def test_a_run_without_states_is_given_none(latent_cache: BuildCache, tmp_path: Path, guidance: str) -> None:
    cache = latent_cache(with_tokens=True)
    metrics = run(cache, tmp_path / "run", guidance=guidance, guidance_source="none")
    trained = TrainedRun.open(tmp_path / "run")
    ids = trained.clip_ids("test")
    features = trained.features(cache)
    assert not features.pooled(ids).any()
    if guidance == "cross":
        assert features.tokens(ids).counts == (1,) * len(ids)
        assert not features.tokens(ids).states.any()
    assert trained.model().forecaster.state_dict().keys() == own_names(cache, tmp_path, guidance)
    altered = latent_cache(name="altered", with_tokens=True, altered=3)
    run(altered, tmp_path / "altered-run", guidance=guidance, guidance_source="none")
    again = json.loads((tmp_path / "altered-run" / "metrics.json").read_text())
    assert again == json.loads((tmp_path / "run" / "metrics.json").read_text())
    assert metrics["validation_loss"] == again["validation_loss"]
    assert "shuffled_guidance" not in evaluate(tmp_path / "run")["latent"]


def own_names(cache: Path, tmp_path: Path, guidance: str) -> Any:
    run(cache, tmp_path / "own", guidance=guidance)
    return TrainedRun.open(tmp_path / "own").model().forecaster.state_dict().keys()


@pytest.mark.parametrize(("guidance", "ending"), [("film", "csv"), ("cross", "parquet")])
def test_an_oracle_sees_its_column(
    latent_cache: BuildCache, tmp_path: Path, guidance: str, ending: str
) -> None:
    """The future's direction follows from the split frame, which only the table says."""
    cache = latent_cache(with_tokens=True, num_videos=24)
    table = write_table(cache, tmp_path / f"table.{ending}")
    losses = {}
    for source in ("oracle:moment", "none"):
        losses[source] = run(
            cache,
            tmp_path / source[:4],
            guidance=guidance,
            guidance_source=source,
            oracle_table=str(table),
            epochs=40,
        )["validation_loss"]
    assert losses["oracle:moment"] < 0.5 * losses["none"]
    table.unlink()  # the run has what it needs of it
    errors = [evaluate(tmp_path / name)["latent"]["model"]["l2"] for name in ("orac", "none")]
    assert errors[0] < 0.5 * errors[1]
    trained = TrainedRun.open(tmp_path / "orac")
    pooled = trained.features(cache).pooled(trained.clip_ids("test"))
    wanted = [[0.0, 1.0] if clip_id.endswith("@8") else [1.0, 0.0] for clip_id in trained.clip_ids("test")]
    assert pooled[..., :2].unique(dim=1).unique(dim=2).squeeze().tolist() == wanted
    assert not pooled[..., 2:].any()


def test_unknown_classes_are_zeros_and_counted(latent_cache: BuildCache, tmp_path: Path) -> None:
    cache = latent_cache()
    table = write_table(cache, tmp_path / "table.csv", known=8)
    events: list[TrainEvent] = []
    run(cache, tmp_path / "run", events, guidance_source="oracle:moment", oracle_table=str(table))
    trained = TrainedRun.open(tmp_path / "run")
    source = trained.guidance_source
    ids = {side: trained.clip_ids(side) for side in SPLIT_NAMES}
    unknown = [clip_id for own in ids.values() for clip_id in own if not source.knows(clip_id)]
    assert len(unknown) == 16
    assert not trained.features(cache).pooled(unknown).any()
    (start,) = [event for event in events if isinstance(event, RunStarts)]
    counted = sum(clip_id in unknown for clip_id in ids["train"])
    assert f"oracle: 2 classes of moment; unknown of {counted} train" in describe_start(start)


@pytest.mark.parametrize("guidance", ["film", "cross"])
def test_an_oracle_has_the_classes_of_several_columns_side_by_side(
    latent_cache: BuildCache, tmp_path: Path, guidance: str
) -> None:
    """An unknown class of one column is zeros in its dims only; without any the clip has no token."""
    cache = latent_cache(with_tokens=True)
    table = write_table(cache, tmp_path / "table.csv", known=12)
    events: list[TrainEvent] = []
    settings = {"guidance": guidance, "oracle_table": str(table)}
    run(cache, tmp_path / "run", events, guidance_source="oracle:third, moment", **settings)
    trained = TrainedRun.open(tmp_path / "run")
    clips = list(FeatureCache.open(cache).clips.all())
    ids = [clip.clip_id for clip in clips]
    features = trained.features(cache)
    expected = torch.zeros(len(clips), features.pooled(ids).shape[-1])
    for number, clip in enumerate(clips[:24]):
        if number > 5:
            expected[number, number % 3] = 1
        expected[number, 3 + (clip.split_frame == 8)] = 1
    assert torch.equal(features.pooled(ids), expected[:, None, None].expand_as(features.pooled(ids)))
    if guidance == "cross":
        assert features.tokens(ids).counts == (1,) * 24 + (0,) * (len(clips) - 24)
    (start,) = [event for event in events if isinstance(event, RunStarts)]
    lacking = sum(clip_id in (*ids[:6], *ids[24:]) for clip_id in trained.clip_ids("train"))
    assert f"oracle: 3 classes of third; unknown of {lacking} train" in describe_start(start)
    assert ", and 2 classes of moment; unknown of" in describe_start(start)


def test_an_oracle_of_an_earlier_version_is_read(latent_cache: BuildCache, tmp_path: Path) -> None:
    """It had one column, which oracle.json held by itself."""
    cache = latent_cache()
    table = write_table(cache, tmp_path / "table.csv")
    run(cache, tmp_path / "run", guidance_source="oracle:moment", oracle_table=str(table))
    expected = forecasts(tmp_path / "run", cache)
    path = tmp_path / "run" / "oracle.json"
    (own,) = json.loads(path.read_text())["columns"]
    path.write_text(json.dumps(own))
    assert differing(forecasts(tmp_path / "run", cache), expected) == set()
    path.write_text(json.dumps({**own, "class_of": {}}))
    assert differing(forecasts(tmp_path / "run", cache), expected) == set(expected)


def test_more_classes_than_a_state_has_dims_are_refused() -> None:
    values = {name: {f"clip {index}": f"{index % count}" for index in range(9)} for name, count in SIZES}
    ids = list(values["one"])
    with pytest.raises(StageError, match=r"oracle:one,two: .* 8 classes \(5 of one \+ 3 of two\), more than"):
        oracle_source(values, train_ids=ids, dim=7)
    assert oracle_source(values, train_ids=ids, dim=8).made(ids[:1], dim=8).tolist() == [
        [1] + [0] * 4 + [1, 0, 0]
    ]
    with pytest.raises(StageError, match="oracle:one: no training clip has a value"):
        oracle_source(values, train_ids=["another"], dim=8)


@pytest.mark.parametrize("source", ["shuffled", "none", "history", "oracle:moment", "oracle:moment,third"])
def test_nothing_of_the_future_enters_a_forecast(
    latent_cache: BuildCache, tmp_path: Path, source: str
) -> None:
    """Not in evaluation, nor in a rollout: the difference is exactly zero."""
    cache, later = latent_cache(windows=2), latent_cache(name="later", windows=2, later=5.0)
    for path in (cache, later):
        add_history(path)
    table = write_table(cache, tmp_path / "table.csv")
    run(cache, tmp_path / "run", guidance_source=source, oracle_table=str(table))
    for windows in (1, 2):
        one, other = (forecasts(tmp_path / "run", path, windows=windows) for path in (cache, later))
        assert differing(one, other) == set()
    rolled = evaluate_rollout(tmp_path / "run", horizons=[2, 4], cache_dir=cache)
    whole = evaluate(tmp_path / "run", cache_dir=cache)
    assert rolled["horizons"][0]["latent"]["model"]["l2"]["mean"] == pytest.approx(
        whole["latent"]["model"]["l2"], rel=1e-9
    )


def test_a_new_video_is_given_the_states_of_a_training_clip() -> None:
    source = GuidanceSource("shuffled", partners={"a@1": "b@1", "b@1": "a@1"}, strangers=("a@1", "b@1"))
    assert source.read_from(["a@1", "new@7"])[0] == "b@1"
    assert {*source.read_from([f"new@{number}" for number in range(20)])} == {"a@1", "b@1"}
    assert source.read_from(["new@7"]) == source.read_from(["new@7"])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"guidance_source": "mine"}, "give own, shuffled, none, history, or oracle:COLUMN"),
        ({"guidance_source": "oracle:moment", "oracle_table": ""}, "name it with --oracle-table"),
        ({"guidance_source": "oracle:colour"}, "has columns clip_id, moment, third; it needs"),
        ({"guidance_source": "oracle:moment,colour"}, "and 'colour', which --guidance-source names"),
        ({"guidance_source": "oracle:moment,,third"}, r"or oracle:COLUMN\[,COLUMN"),
        ({"guidance_source": "oracle:moment,moment"}, r"or oracle:COLUMN\[,COLUMN"),
        ({"guidance_source": "oracle:moment", "oracle_table": "no/such.csv"}, "cannot be read as csv"),
    ],
)
def test_an_impossible_source_is_refused(
    latent_cache: BuildCache, tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    cache = latent_cache()
    table = write_table(cache, tmp_path / "table.csv")
    with pytest.raises(StageError, match=message):
        run(cache, tmp_path / "run", **{"oracle_table": str(table), **changes})


def test_a_table_with_two_values_for_a_clip_is_refused(latent_cache: BuildCache, tmp_path: Path) -> None:
    cache = latent_cache()
    table = write_table(cache, tmp_path / "table.csv")
    name = table.read_text().splitlines()[1].split(",")[0]
    table.write_text(table.read_text() + f"{name},otherwise,\n")
    with pytest.raises(StageError, match=f"two values of 'moment' for clip_id '{name}'"):
        run(cache, tmp_path / "run", guidance_source="oracle:moment", oracle_table=str(table))
