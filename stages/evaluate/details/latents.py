"""Checks of predicted latents as a set: whether they vary as the true ones do, and tell clips apart.

A forecast can have a small error and be worth nothing: the same latents for every clip. Its variance ratio is
then 0, and the true future of a clip is no nearer to it than those of other clips.

Shape letters: B batch, T latent steps, P patches, D latent dim, N clips of the gallery, R draws, H horizons.
"""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from thinkjepa.cache import ClipRow
from thinkjepa.stages.evaluate.baselines import Predicted
from thinkjepa.stages.train.data.features import Features

GALLERY_CLIPS = 512
"""Futures to tell a clip's own one from: 2 MB of averages over patches a step of 1,024 dims."""

GALLERY_BATCH = 16

TOKENS_OF_A_CLIP = 64
"""Patches, evenly spaced over a clip's steps, whose covariance is summed."""

SMALLEST_VARIANCE = 1e-12
"""Along a direction, as a share of the mean square: what is below is rounding."""


class Gallery:
    """True futures of the evaluated clips, or of an even sample of them, as averages over patches."""

    def __init__(self, described: Tensor, clips: Sequence[ClipRow]) -> None:
        """`described` is `(clip, step, dim)`."""
        self._described = described
        self._clip_ids = [clip.clip_id for clip in clips]
        self._videos = [clip.video_digest for clip in clips]

    @classmethod
    def of(cls, features: Features, clips: Sequence[ClipRow], *, device: torch.device) -> "Gallery":
        """Read the futures of `clips`."""
        every = -(-len(clips) // GALLERY_CLIPS)
        chosen = list(clips[::every])
        parts = []
        for start in range(0, len(chosen), GALLERY_BATCH):
            clip_ids = [clip.clip_id for clip in chosen[start : start + GALLERY_BATCH]]
            _, future = features.batch(clip_ids, device).latents
            parts.append(future.mean(dim=2))
        return cls(torch.cat(parts), chosen)

    def ranks(
        self, predicted: Tensor, future: Tensor, clips: Sequence[ClipRow], *, horizons: Sequence[int] = ()
    ) -> Tensor:
        """Rank of each clip's own future by its distance from the prediction, `(batch, horizon)`, 1 at best.

        `predicted` and `future` are `(batch, step, patch, dim)`, horizons are numbers of their first steps,
        all of them where none is given. Distances are mean squares. The own future is ranked among the
        gallery's futures of other videos, or of other clips where there is one video. A future that is as
        near counts as nearer, so that a constant forecast gains nothing. NaN without another future, float64.
        """
        steps = list(horizons) or [predicted.shape[1]]
        ranks = torch.full((len(clips), len(steps)), torch.nan, dtype=torch.float64)
        for index, clip in enumerate(clips):
            if not (others_N := self._others(clip)):
                continue
            predicted_TD, own_TD = predicted[index].mean(dim=1), future[index].mean(dim=1)
            distance_NT = (self._described[others_N] - predicted_TD).square().mean(dim=2)
            own_T = (own_TD - predicted_TD).square().mean(dim=1)
            for column, until in enumerate(steps):
                nearer_N = distance_NT[:, :until].mean(dim=1) <= own_T[:until].mean()
                ranks[index, column] = 1.0 + float(nearer_N.sum())
        return ranks

    def figures(self, clips: Sequence[ClipRow]) -> dict[str, float]:
        """The number of futures that an own one is told from, mean over `clips`: the chance to be first."""
        return {"candidates": sum(len(self._others(clip)) for clip in clips) / len(clips)}

    def _others(self, clip: ClipRow) -> list[int]:
        """Indices of the futures that a clip's own one is told from."""
        of_other_videos = [index for index, video in enumerate(self._videos) if video != clip.video_digest]
        if of_other_videos:
            return of_other_videos
        return [index for index, clip_id in enumerate(self._clip_ids) if clip_id != clip.clip_id]

    def columns(
        self,
        predicted: Mapping[str, Predicted],
        future: Tensor,
        clips: Sequence[ClipRow],
        *,
        horizons: Sequence[int] = (),
    ) -> list[dict[str, Tensor]]:
        """Scores `(batch,)` of each method that predicts latents, by their names in the clip table.

        One record per horizon, as `ranks` takes them. Scores of a method that draws are means over its draws.
        """
        columns: list[dict[str, Tensor]] = [{} for _ in horizons or (0,)]
        for method, found in predicted.items():
            latents = [draw.latents for draw in found.draws if draw.latents is not None]
            if not latents:
                continue
            ranks_RBH = torch.stack([self.ranks(item, future, clips, horizons=horizons) for item in latents])
            first_RBH = torch.where(ranks_RBH.isnan(), torch.nan, (ranks_RBH == 1).double())
            for index, record in enumerate(columns):
                record[f"{method}_retrieved"] = first_RBH[..., index].mean(dim=0)
                record[f"{method}_retrieval_rank"] = ranks_RBH[..., index].mean(dim=0)
        return columns


class LatentSpread:
    """Variance over clips, and effective rank, of each method's latents and of the true ones."""

    def __init__(self) -> None:
        self._sums: dict[str, _Sums] = {}
        self._origin: Tensor | None = None

    def add(self, predicted: Mapping[str, Predicted], future: Tensor) -> None:
        """Add the clips of a batch, of every draw; latents are `(batch, step, patch, dim)`."""
        if self._origin is None:
            self._origin = future[0].double().mean(dim=(0, 1))  # nearer than 0: less is lost in squares
        for name, item in {**predicted, "future": Predicted(future, None)}.items():
            for draw in item.draws:
                if draw.latents is not None:
                    moved = draw.latents.double() - self._origin
                    self._sums[name] = self._sums.get(name, _Sums()).plus(moved)

    def figures(self) -> dict[str, dict[str, float]]:
        """Variance ratio and effective rank by method, the effective rank alone of `future`.

        The variance ratio is the predictions' variance over clips, mean over steps, patches and dims, divided
        by the true latents'. Left out where the true latents do not vary over clips.
        """
        if "future" not in self._sums:
            return {}
        of_future = self._sums["future"].variance_over_clips()
        figures = {name: {"effective_rank": sums.effective_rank()} for name, sums in self._sums.items()}
        for name in figures.keys() - {"future"}:
            if of_future > 0:
                figures[name]["variance_ratio"] = self._sums[name].variance_over_clips() / of_future
        return figures


class _Sums:
    """Sums of latents and of their squares and products, float64."""

    def __init__(self) -> None:
        self.num_clips = self.num_tokens = 0
        self.total: Tensor | float = 0.0
        self.squares: Tensor | float = 0.0
        self.token_total: Tensor | float = 0.0
        self.products: Tensor | float = 0.0

    def plus(self, latents_BTPD: Tensor) -> "_Sums":
        self.num_clips += len(latents_BTPD)
        self.total = self.total + latents_BTPD.sum(dim=0)
        self.squares = self.squares + latents_BTPD.square().sum(dim=0)
        tokens_BSD = latents_BTPD.flatten(1, 2)
        num_tokens = tokens_BSD.shape[1]
        chosen = torch.linspace(0, num_tokens - 1, min(TOKENS_OF_A_CLIP, num_tokens)).round().long()
        tokens_SD = tokens_BSD[:, chosen.to(tokens_BSD.device)].flatten(0, 1)
        self.num_tokens += len(tokens_SD)
        self.token_total = self.token_total + tokens_SD.sum(dim=0)
        self.products = self.products + tokens_SD.T @ tokens_SD
        return self

    def variance_over_clips(self) -> float:
        """Mean over steps, patches and dims."""
        mean, squares = torch.as_tensor(self.total) / self.num_clips, torch.as_tensor(self.squares)
        variance = float((squares / self.num_clips - mean.square()).mean())
        smallest = SMALLEST_VARIANCE * float((squares / self.num_clips).mean())
        return variance if variance > smallest else 0.0

    def effective_rank(self) -> float:
        """Exponential of the entropy of the singular values' shares, of the centered patches' latents.

        Roy and Vetterli (EUSIPCO 2007), as RankMe (ICML 2023) applies it. 0 where all are the same.
        """
        mean, products = torch.as_tensor(self.token_total) / self.num_tokens, torch.as_tensor(self.products)
        raw = products / self.num_tokens
        variances = torch.linalg.eigvalsh(raw - mean[:, None] * mean)
        variances = variances[variances > SMALLEST_VARIANCE * float(raw.diagonal().sum())]
        shares = variances.sqrt() / variances.sqrt().sum()
        return float(torch.exp(-(shares * shares.log()).sum())) if len(shares) else 0.0
