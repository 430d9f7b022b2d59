"""The trained encoder's files: what `from_pretrained` reads, in half precision, and a model card."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import VJEPA2Config, VJEPA2Model, VJEPA2VideoProcessor

from sample_models.encoder.episodes import DENSE_FPS, Bytes
from sample_models.encoder.training import Step, Training, initialized
from thinkjepa.pipeline.sample.models import no_progress_bars
from thinkjepa.stages.extract.encoder.base import VideoEncoder, open_encoder
from thinkjepa.stages.extract.models.weights import find_model

TRAINING_FILE, CHECK_FILE = "training.json", "check.json"

SETTINGS = ("steps", "batch_size", "learning_rate", "pixel_weight", "seed")

CARD = """\
---
library_name: transformers
license: apache-2.0
---
# A tiny V-JEPA 2 of a simulated hand

An encoder of short video windows for trying ThinkJEPA out. Its {parameters:,} parameters have seen nothing
but a simulated hand that takes things to pads (`tools/render_hands`). So it says nothing about other videos,
and no result obtained with it says how good real encoders are.

| | |
| --- | --- |
| pictures | {crop_px} x {crop_px} px, {grid} x {grid} patches of {patch_px} px |
| windows | up to {frames_per_clip} frames, {fps} a second; a latent step has {tubelet} |
| latents | {width} dims, {depth} blocks of {heads} heads |
| files | half precision, for `VJEPA2Model` and `VJEPA2VideoProcessor` of transformers, with its predictor |

Frames of {crop_px} x {crop_px} px are taken as they are. Of larger ones the middle is cut out, unscaled. To
scale them, give `thinkjepa-cache extract` the flag `--encoder-fit letterbox`.

## Training

Self-supervised, as V-JEPA (arXiv 2404.08471, 2506.09985): a predictor tells the latents of masked tubes from
those around them. The loss is L1 on layer-normed targets of a moving average of the encoder, which is what is
kept. A second task, of weight {pixel_weight:g}, is none of V-JEPA's. Linear decoders tell pixels, averaged
over squares of 4 px, and how far each square is from its median over the window, from predicted latents and
from those of the context. So small a training keeps colors and the small moving hand better with it. No label
is used: no joint, no color, no place.

- Data: {episodes} episodes of seed {data_seed}, {frames:,} frames, a third each with a card, a late
  card and a neutral one. Pairs of color and place that are held out of all training are not among them.
- Steps: {steps_done:,} of {steps:,} planned ones, of {batch_size} windows of 16 frames, or as many more of
  8 or 4. Seed {seed}, learning rate {learning_rate:g}, {minutes:.0f} minutes on {threads} thread(s).
- Written by `tools/train_encoder` with torch {torch} and transformers {transformers}.
- Mean figures of the last twentieth of the steps: error of latents {latent_error:.3f}, of what is decoded
  {pixel_error:.3f}, deviation of the target's dims {target_std:.2f} (0 would be a collapse).
{check}"""

CHECKED = """
## What can be read off it

`tools/train_encoder OUT --check` draws {num_episodes} episodes of seed {data_seed}, of which the encoder has
met none. The trajectory head of the project is trained on the true future latents of {num_trained} of them,
next to the observed poses as in every run, and measured on {num_tested} others. No forecast can read more.

| joints read off | mean (mm) | last step (mm) |
| --- | ---: | ---: |
{rows}

The card is read off the observed window, in view until its end (`late-cue`), by a ridge regression, on
episodes that it was not fitted on: the color {color:.1%}, the place {place:.1%}. Off the pixels it is
{off_pixels[color]:.1%} and {off_pixels[place]:.1%}.

The effective rank of future latents is {effective_rank:.1f} of {width}, the deviation of their dims
{latent_std:.2f}.

{verdict}
"""

GOOD_ENOUGH = """\
Joints read off the true future are less than a third as far off as the last pose held, over all steps and at
the last one. The card is read off more than 9 of 10 times. That is what it was trained for."""

NOT_GOOD_ENOUGH = """\
**This is not good enough.** Joints were to be a third as far off as the last pose held, over all steps and at
the last one, and the card to be read off 9 of 10 times."""


def write_model(model: VJEPA2Model, out: Path, training: dict[str, Any]) -> None:
    """Write weights in half precision, the processor, and what is known of the training."""
    with no_progress_bars():
        model.eval().half().save_pretrained(out)
    side = model.config.crop_size
    # Frames of this very size are not scaled: transformers would enlarge them and cut the margin off.
    VJEPA2VideoProcessor(crop_size=side, do_resize=False).save_pretrained(out)
    (out / TRAINING_FILE).write_text(json.dumps(training, indent=1) + "\n", encoding="utf-8")
    (out / CHECK_FILE).unlink(missing_ok=True)  # it is that of other weights
    write_card(out)


def write_check(out: Path, figures: dict[str, Any]) -> None:
    """Write the figures of a check, and the model card with them."""
    (out / CHECK_FILE).write_text(json.dumps(figures, indent=1) + "\n", encoding="utf-8")
    write_card(out)


def write_card(out: Path) -> None:
    """Write README.md from the model's configuration, its training and, where there is one, its check."""
    config = VJEPA2Config.from_pretrained(out)
    training = json.loads((out / TRAINING_FILE).read_text(encoding="utf-8"))
    text = CARD.format(
        parameters=sum(value.numel() for value in initialized(config, seed=0).encoder.parameters()),
        crop_px=config.crop_size,
        patch_px=config.patch_size,
        grid=config.crop_size // config.patch_size,
        frames_per_clip=config.frames_per_clip,
        tubelet=config.tubelet_size,
        width=config.hidden_size,
        depth=config.num_hidden_layers,
        heads=config.num_attention_heads,
        check=_checked(out, config.hidden_size),
        **training,
    )
    (out / "README.md").write_text(text, encoding="utf-8")


def _checked(out: Path, width: int) -> str:
    path = out / CHECK_FILE
    if not path.exists():
        return ""
    check = json.loads(path.read_text(encoding="utf-8"))
    rows = "\n".join(
        f"| {name} | {1000 * row['mean_m']:.1f} | {1000 * row['last_step_m']:.1f} |"
        for name, row in check["joints"].items()
    )
    verdict = GOOD_ENOUGH if check["good_enough"] else NOT_GOOD_ENOUGH
    return CHECKED.format(rows=rows, width=width, verdict=verdict, **check)


def training_record(
    steps: Sequence[Step],
    pictures: Sequence[Bytes],
    training: Training,
    *,
    data_seed: int,
    seconds: float,
) -> dict[str, Any]:
    """Settings, data, versions and last figures of a training."""
    last = steps[-max(1, len(steps) // 20) :]
    means = {
        name: round(sum(getattr(step, name) for step in last) / len(last), 4)
        for name in ("latent_error", "pixel_error", "target_std")
    }
    return {
        **{name: getattr(training, name) for name in SETTINGS},
        "steps_done": len(steps),
        "episodes": len(pictures),
        "frames": sum(map(len, pictures)),
        "data_seed": data_seed,
        "fps": DENSE_FPS,
        "minutes": round(seconds / 60, 1),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        **means,
    }


def open_model(folder: Path) -> VideoEncoder:
    """The encoder of a folder as stage one opens it. Raises StageError where it is none."""
    found = find_model(str(folder), revision="main", role="encoder")
    encoder = open_encoder(found, dtype="float32", device=torch.device("cpu"))
    with no_progress_bars():
        encoder.load()
    return encoder


def weights_of(folder: Path) -> str:
    """The digest of a folder's weights, as stage one records it."""
    return str(open_model(folder).origin["weights"])


def open_untrained(folder: Path, *, seed: int) -> VideoEncoder:
    """An encoder of the same shape with the weights that it had before its training."""
    config = VJEPA2Config.from_pretrained(folder, dtype="float32")
    with tempfile.TemporaryDirectory() as other, no_progress_bars():
        initialized(config, seed=seed).save_pretrained(other)
        VJEPA2VideoProcessor.from_pretrained(folder).save_pretrained(other)
        return open_model(Path(other))
