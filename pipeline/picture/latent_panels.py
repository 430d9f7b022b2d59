"""Latents as colors, and a prediction's latents as small images over the video's frames.

Red, green and blue are the first three principal components. Only drawing reads frames of the future.
Shape letters: T latent steps, P patches, D latent dim, H and W pixels.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import matplotlib as mpl
import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from torch import Tensor

from thinkjepa.stages.data.decoding.client import FrameStack, VideoDecoder
from thinkjepa.stages.data.framing import grid_box, seen_box
from thinkjepa.stages.data.sampling import seconds_ahead
from thinkjepa.stages.errors import StageError
from thinkjepa.stages.predict.latents import PredictedLatents, step_frame, step_time_s
from thinkjepa.stages.predict.prediction import Prediction

NUM_COLORS = 3

CLIPPED_PERCENT = 1.0
"""Per side of each component, so that a single outlying patch does not gray out the rest."""

Colors = npt.NDArray[np.float32]
"""Latents as RGB, 0 to 1, the last axis of 3."""


@dataclass(frozen=True, slots=True)
class LatentColors:
    """Principal components of some latents, with the range that is drawn of each."""

    mean: Tensor
    axes: Tensor
    """`(D, 3)`; zeros for a component without variance, which is gray."""
    low: npt.NDArray[np.float64]
    high: npt.NDArray[np.float64]
    explained: tuple[float, ...]
    """Share of variance of each component."""

    @classmethod
    def fit(cls, latents_TPD: Tensor) -> LatentColors:
        """Components of all patches. Signs are fixed by the largest loading: equal latents, equal colors."""
        width = latents_TPD.shape[-1]
        flat = latents_TPD.reshape(-1, width).double()
        mean = flat.mean(dim=0)
        centered = flat - mean
        variances, axes = torch.linalg.eigh(centered.T @ centered / len(centered))  # ascending
        variances, axes = variances.flip(0).clamp(min=0), axes.flip(1)
        total = float(variances.sum())
        shares = [float(share) / total if total > 0 else 0.0 for share in variances[:NUM_COLORS]]
        shares += [0.0] * (NUM_COLORS - len(shares))
        chosen = torch.zeros(width, NUM_COLORS, dtype=torch.float64)
        for index, share in enumerate(shares):
            if share > torch.finfo(torch.float32).eps:
                axis = axes[:, index]
                chosen[:, index] = axis * axis[axis.abs().argmax()].sign()
        clipped = [CLIPPED_PERCENT, 100 - CLIPPED_PERCENT]
        low, high = np.percentile((centered @ chosen).numpy(), clipped, axis=0)
        return cls(mean, chosen, low, high, tuple(shares))

    def paint(self, latents_TPD: Tensor) -> Colors:
        """RGB `(T, P, 3)` of any latents of the same kind; values out of the range are clipped."""
        values = ((latents_TPD.double() - self.mean) @ self.axes).numpy()
        stretched = ((values - self.low) / np.maximum(self.high - self.low, 1e-12)).clip(0, 1)
        flat = np.asarray((self.axes == 0).all(dim=0))
        colors: Colors = np.where(flat, 0.5, stretched).astype(np.float32)
        return colors


PANEL_SHORT_SIDE_PX = 216

DIMMED = 0.45
"""Brightness of a frame under latents."""

OPAQUE, VEIL = 1.0, 0.72

ERROR_MAP = "inferno"

ERROR_PERCENTILE = 99.0
"""Percentile of both error maps with the brightest color, so that a single patch does not darken the rest."""

Panel = npt.NDArray[np.uint8]
"""`(H, W, 3)`"""


@dataclass(frozen=True, slots=True)
class StepPanels:
    """Panels of one predicted step. None where the video has ended before it."""

    time_s: float
    """After the last observed frame."""
    frame: Panel | None
    true: Panel | None
    predicted: Panel
    nearest: Panel
    nearest_time_s: float
    """Time of the video's step that the predicted latents resemble most, after the last observed frame."""
    nearest_is_true: bool
    error: Panel | None
    persistence_error: Panel | None
    mse: float | None
    persistence_mse: float | None


class LatentPanels:
    """The panels of a prediction. Frames are decoded once, when it is made."""

    def __init__(self, prediction: Prediction, *, decode_timeout_s: float) -> None:
        """Raises DecodeError where a frame cannot be decoded, StageError for a prediction without latents."""
        if prediction.latents is None:
            raise StageError(
                "the run predicts no latents, of which a .png is a picture: give -o FILE.mp4 for the hands"
            )
        self._frames = prediction.frames
        self.latents: PredictedLatents = prediction.latents
        """The prediction's, in numbers."""
        with VideoDecoder(timeout_s=decode_timeout_s) as decoder:
            info = decoder.open(prediction.video)
            shown = sorted({*self._frames.observed, *self._frames.future})
            scale = PANEL_SHORT_SIDE_PX / min(info.width_px, info.height_px)
            size = (2 * round(info.width_px * scale / 2), 2 * round(info.height_px * scale / 2))
            self._images = {
                index: np.asarray(Image.fromarray(decoder.frames(prediction.video, [index])[0]).resize(size))
                for index in shown
            }
        framing, scale = self.latents.framing, size[0] / info.width_px
        frame_size = {"width_px": info.width_px, "height_px": info.height_px}
        self.box = seen_box(framing, **frame_size).scaled(scale)
        """The part of a panel that the encoder uses."""
        self._grid_box = grid_box(framing, **frame_size).scaled(scale)

    @property
    def num_observed(self) -> int:
        return len(self.latents.observed)

    def frame(self, index: int) -> Panel:
        """A frame of either window."""
        return self._images[index]

    def observed(self, step: int) -> Panel:
        """The latents of an observed step."""
        return self._over(self._step_image(step), self._observed_colors[step], OPAQUE)

    @cached_property
    def colors(self) -> LatentColors:
        """Fitted on the video's own latents, observed and true; predicted ones are painted by them."""
        own = [self.latents.observed, self.latents.true]
        return LatentColors.fit(torch.cat([latents for latents in own if latents is not None]))

    @cached_property
    def error_limit(self) -> float:
        """The error that has the brightest color."""
        maps = [self.latents.errors, self.latents.persistence_errors]
        values = [item.numpy() for item in maps if item is not None]
        return float(np.percentile(np.stack(values), ERROR_PERCENTILE)) if values else 1.0

    def steps(self) -> list[StepPanels]:
        """All predicted steps, in order."""
        latents = self.latents
        predicted = self.colors.paint(latents.predicted)
        true = None if latents.true is None else self.colors.paint(latents.true)
        return [
            self._step(index, predicted[index], None if true is None else true[index])
            for index in range(len(latents.predicted))
        ]

    def _step(
        self, index: int, predicted: npt.NDArray[np.float32], true: npt.NDArray[np.float32] | None
    ) -> StepPanels:
        latents, ahead, near = self.latents, self.num_observed + index, self.latents.nearest[index]
        image = self._step_image(ahead) if true is not None else None
        errors = [
            None if item is None else item[index] for item in (latents.errors, latents.persistence_errors)
        ]
        maps = [None if item is None else self._error(image, item) for item in errors]
        means = [None if item is None else float(item.mean()) for item in errors]
        return StepPanels(
            time_s=self._time_s(ahead),
            frame=image,
            true=None if true is None else self._over(image, true, OPAQUE),
            predicted=self._over(image, predicted, OPAQUE),
            nearest=self._step_image(near),
            nearest_time_s=self._time_s(near),
            nearest_is_true=true is not None and near == ahead,
            error=maps[0],
            persistence_error=maps[1],
            mse=means[0],
            persistence_mse=means[1],
        )

    def _time_s(self, step: int) -> float:
        time_s = step_time_s(self._frames, step, self.latents.tubelet)
        return float(seconds_ahead(time_s, observed_times_s=self._frames.observed_times_s))

    def _step_image(self, step: int) -> FrameStack:
        return self._images[step_frame(self._frames, step, self.latents.tubelet)]

    @cached_property
    def _observed_colors(self) -> npt.NDArray[np.float32]:
        return self.colors.paint(self.latents.observed)

    def _error(self, image: FrameStack | None, error_P: torch.Tensor) -> Panel:
        shares = (error_P.numpy() / max(self.error_limit, 1e-12)).clip(0, 1)
        return self._over(image, mpl.colormaps[ERROR_MAP](shares)[:, :3].astype(np.float32), VEIL)

    def _over(self, image: FrameStack | None, colors_P3: npt.NDArray[np.float32], opacity: float) -> Panel:
        """Patches over a dimmed gray frame, or over a dark panel where there is none.

        Patches of a letterbox's padding are outside the frame and not shown.
        """
        under = np.zeros_like(next(iter(self._images.values()))) if image is None else _dimmed(image)
        left, top, right, bottom = self._grid_box.whole_px()
        patches = Image.fromarray((255 * colors_P3.reshape(*self.latents.grid, 3)).round().astype(np.uint8))
        inside = np.asarray(patches.resize((right - left, bottom - top), Image.Resampling.NEAREST))
        panel = under.copy()
        below = panel[max(0, top) : bottom, max(0, left) : right]
        inside = inside[max(0, -top) :, max(0, -left) :][: below.shape[0], : below.shape[1]]
        below[:] = (opacity * inside + (1 - opacity) * below.astype(np.float64)).round()
        return panel


def _dimmed(image: FrameStack) -> Panel:
    gray = np.asarray(Image.fromarray(image).convert("L"))[..., None]
    dark: Panel = (DIMMED * np.repeat(gray, 3, axis=-1)).astype(np.uint8)
    return dark
