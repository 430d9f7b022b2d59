"""Linear read-out of the hand sample's cue from what each kind of guidance reads.

A card tells the place and the color of what is going to happen, and is then gone. The read-out is a ridge
regression to classes, its strength chosen within the training folds. Episodes are divided into folds, so that
every figure is of clips that the read-out has not seen. Two clips of each episode are read: one split while
the card is in view, one after it has left the observed window. The thinker is the sample's untrained one.

    pooled    means over the prompt and over what was generated, as the paper's film reads
    streams   the means that film and adaln read by default
    slots     slots, as cross and spatial read them
    cross     slots and text, as cross reads by default
    patches   slots as spatial brings them to the encoder's patches
    tokens    all tokens
    observed  the encoder's latents of the observed window
"""

from __future__ import annotations

import argparse
import json
import math
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import torch
from measure import report, rounded, work_folder
from torch import Tensor

from thinkjepa.cache import ClipRow, FeatureCache
from thinkjepa.stages.train.data.features import Features, choose_features
from thinkjepa.stages.train.data.statistics import thinker_statistics
from thinkjepa.stages.train.model.token_guidance import nearness
from thinkjepa.stages.train.settings import TrainSettings

NEEDED_BYTES = 500_000_000
IN_VIEW_S, STRIDE_S = 0.8, 1.7
"""Splits at 0.8 s, with the card in view, and at 2.5 s, 1.4 s after the last card is gone."""

FOLDS = 8
STRENGTHS = torch.logspace(-4, 4, 17, dtype=torch.float64)
TARGETS = ("place", "color")

SETTINGS = TrainSettings(task="latent", device="cpu")
READINGS: Mapping[str, TrainSettings] = {
    "pooled": replace(SETTINGS, use_streams="prompt,generated"),
    "streams": SETTINGS,
    "slots": replace(SETTINGS, guidance="cross", cross_tokens="slots"),
    "cross": replace(SETTINGS, guidance="cross", cross_tokens="slots,text,generated"),
    "patches": replace(SETTINGS, guidance="spatial"),
    "tokens": replace(SETTINGS, guidance="cross", cross_tokens="all"),
}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--folder", type=Path, help="where the sample's features go, and are removed again")
    parser.add_argument("--episodes", type=Path, help="folder of thinkjepa-sample expand, with --cache-dir")
    parser.add_argument("--cache-dir", type=Path, help="features of these episodes, with all tokens")
    parser.add_argument("--seed", type=int, default=0, help="of the folds")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    if options.cache_dir:
        figures = measured(options.cache_dir, options.episodes, seed=options.seed)
    else:
        with work_folder(options.folder, needed_bytes=NEEDED_BYTES) as folder:
            extract(folder)
            figures = measured(folder / "cache", folder / "hands", seed=options.seed)
    report(figures, as_json=options.json)


def extract(folder: Path) -> None:
    """The sample's episodes, models and features, in `folder`."""
    bin_dir = Path(sys.executable).parent
    clips = "--observed-frames 4 --future-frames 2 --dense-fps 10 --max-new-tokens 4 --device cpu"
    splits = f"--min-history-s {IN_VIEW_S} --stride-s {STRIDE_S} --keep pooled,slots,text,tokens"
    models = "--thinker models/thinker --encoder models/encoder"
    for command in (
        "thinkjepa-sample expand hands",
        "thinkjepa-sample models models",
        f"thinkjepa-cache extract --videos hands --cache-dir cache {models} {clips} {splits}",
    ):
        name, *arguments = command.split()
        subprocess.run([bin_dir / name, *arguments], cwd=folder, check=True, capture_output=True)


def measured(cache_dir: Path, episodes: Path, *, seed: int) -> dict[str, object]:
    """Share of clips that are read right, with its standard error, for each reading, target and moment."""
    cache, facts = FeatureCache.open(cache_dir), read_facts(episodes)
    read = {name: choose_features(cache, settings) for name, settings in READINGS.items()}
    clips = list(read["pooled"].clips)
    figures: dict[str, object] = {}
    for moment, chosen in (("", gone(clips, facts)), ("_in_view", in_view(clips, facts))):
        ids = [clip.clip_id for clip in chosen]
        inputs = {name: what_is_read(name, features, ids) for name, features in read.items()}
        inputs["observed"] = read["pooled"].batch(ids, torch.device("cpu")).observed.flatten(1)
        for target in TARGETS:
            classes = [str(facts[clip.video][target]) for clip in chosen]
            figures[f"majority_{target}{moment}"] = max(map(classes.count, classes)) / len(classes)
            for name, states in inputs.items():
                right = read_out(states, classes, seed=seed)
                figures[f"{name}_{target}{moment}"] = right
                figures[f"{name}_{target}{moment}_se"] = math.sqrt(right * (1 - right) / len(classes))
        figures[f"clips{moment}"] = len(chosen)
    return rounded(figures)


def read_facts(episodes: Path) -> dict[str, dict[str, object]]:
    """Facts of each video. The color is that of the thing that is going to be taken."""
    found = json.loads((episodes / "episodes.json").read_text())
    return {video: {**item, "color": item["object"].split()[0]} for video, item in found.items()}


def in_view(clips: Sequence[ClipRow], facts: Mapping[str, Mapping[str, object]]) -> list[ClipRow]:
    """The first clip of each episode whose last observed frame has the card."""
    return _first_of_each(
        [clip for clip in clips if _first(clip, facts) <= clip.split_frame - 1 < _end(clip, facts)]
    )


def gone(clips: Sequence[ClipRow], facts: Mapping[str, Mapping[str, object]]) -> list[ClipRow]:
    """The first clip of each episode in whose observed window the card has never been."""
    return _first_of_each([clip for clip in clips if clip.observed_frames[0] >= _end(clip, facts)])


def _first(clip: ClipRow, facts: Mapping[str, Mapping[str, object]]) -> int:
    return int(facts[clip.video]["card_frames"][0])  # type: ignore[index]


def _end(clip: ClipRow, facts: Mapping[str, Mapping[str, object]]) -> int:
    return int(facts[clip.video]["card_frames"][1])  # type: ignore[index]


def _first_of_each(clips: Sequence[ClipRow]) -> list[ClipRow]:
    by_video: dict[str, ClipRow] = {}
    for clip in sorted(clips, key=lambda clip: (clip.video, clip.split_frame)):
        by_video.setdefault(clip.video, clip)
    return list(by_video.values())


def what_is_read(name: str, features: Features, ids: Sequence[str]) -> Tensor:
    """All numbers that a kind of guidance reads of each clip, `(clip, number)`, scaled as the model does."""
    pooled, one_by_one = thinker_statistics(features, ids)
    if one_by_one is None:
        return (features.pooled(ids) / pooled.scale).flatten(1)
    tokens = features.tokens(ids)
    scale = one_by_one.scale[:, None]
    if one_by_one.scale.ndim == 3:
        of_slots, of_text = one_by_one.scale.unsqueeze(2)
        scale = torch.where(tokens.is_slot()[:, None, :, None], of_slots, of_text)
    states = tokens.states.float() / scale
    if name != "patches":
        return states[:, :, : min(tokens.counts)].flatten(1)
    return torch.einsum("bps,blsd->blpd", nearness(tokens, features.grid), states).flatten(1)


def read_out(states: Tensor, classes: Sequence[str], *, seed: int) -> float:
    """Share of clips whose class is found by a read-out that was fitted on other folds."""
    names = sorted(set(classes))
    wanted = torch.tensor([names.index(name) for name in classes])
    order = torch.randperm(len(wanted), generator=torch.Generator().manual_seed(seed))
    fold = torch.empty(len(wanted), dtype=torch.int64)
    fold[order] = torch.arange(len(wanted)) % FOLDS
    states = states.double()
    right = 0
    for number in range(FOLDS):
        train, test = fold != number, fold == number
        centered = states - states[train].mean(dim=0)
        kernel = centered @ centered[train].T
        kernel = kernel / kernel[train].diagonal().mean()
        targets = torch.nn.functional.one_hot(wanted[train], len(names)).double()
        found = predicted(kernel[train], targets, kernel[test])
        right += int((found.argmax(dim=1) == wanted[test]).sum())
    return right / len(wanted)


def predicted(kernel: Tensor, targets: Tensor, others: Tensor) -> Tensor:
    """Ridge regression in its dual form, of the strength with the least leave-one-out error."""
    mean = targets.mean(dim=0)
    values, vectors = torch.linalg.eigh(kernel)
    turned = vectors.T @ (targets - mean)
    best, weights = math.inf, torch.zeros_like(targets)
    for strength in STRENGTHS:
        inverse = 1 / (values.clamp(min=0) + strength)
        dual = vectors @ (inverse[:, None] * turned)
        left_out = dual / (vectors.square() @ inverse)[:, None]
        if (error := float(left_out.square().sum())) < best:
            best, weights = error, dual
    return others @ weights + mean


if __name__ == "__main__":
    main()
