"""`tools/train_encoder`: train the sample's V-JEPA 2, or measure what can be read off it."""

from __future__ import annotations

from pathlib import Path
from time import monotonic
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer
from hands.generate import check_renderable

from sample_models.encoder.episodes import Drawing, DrawnEpisode, draw_episodes, read_episode
from sample_models.flags import EXIT_FAILED, Check, LearningRate, Threads, Workers
from thinkjepa.cache import ThinkJepaError
from thinkjepa.pipeline.cli.console import JsonOption, errors, new_single_app, print_result, run_app
from thinkjepa.pipeline.cli.help import examples
from thinkjepa.pipeline.cli.progress import TerminalProgress
from thinkjepa.pipeline.cli.sample import Force, Out, Seed
from thinkjepa.pipeline.sample.folder import claim_folder, write_manifest

if TYPE_CHECKING:
    from sample_models.encoder.training import Training

app = new_single_app()

TRAINED_ON = Drawing(seed=111, size_px=96, pairs="seen")

CHECKED_ON = Drawing(seed=112, size_px=96, conditions=("late-cue",), before=4, after=16)
"""A card that is in view until the split, in the observed window alone."""

TESTED, VALIDATED = 0.2, 0.1
"""Shares of the check's episodes that measure the head, and that choose its epoch. The others train it."""

LEAST_EPISODES = 20

NUM_SAVES = 20
"""Times that the model so far is written: a training that is interrupted leaves one."""


Data = Annotated[Path, typer.Option(help="Folder of drawn episodes, kept. Lacking ones are drawn.")]
Episodes = Annotated[
    int, typer.Option(min=1, help="Episodes to train on, 2 MB and about 1 s of drawing each.")
]
Steps = Annotated[int, typer.Option(min=1, help="Training steps, about 0.4 s each on one core.")]
BatchSize = Annotated[int, typer.Option(min=1, help="Windows of 16 frames in a step.")]
PixelWeight = Annotated[
    float, typer.Option(min=0, help="Weight of what is decoded in the loss; 0: V-JEPA's loss alone.")
]
Width = Annotated[int, typer.Option(min=6, help="Dims of a latent: at least 6 for each head.")]
Depth = Annotated[int, typer.Option(min=1, help="Blocks of the encoder.")]
Heads = Annotated[int, typer.Option(min=1, help="Attention heads of a block.")]
CheckEpisodes = Annotated[
    int, typer.Option(min=LEAST_EPISODES, help="Episodes of --check: 7 of 10 train the head.")
]
Epochs = Annotated[int, typer.Option(min=1, help="Passes of the head of --check over its episodes.")]


@app.command(epilog=examples("tools/train_encoder encoder", "tools/train_encoder encoder --check --json"))
def train(
    out: Out,
    data: Data = Path("drawn-for-encoder"),
    episodes: Episodes = 240,
    steps: Steps = 3000,
    batch_size: BatchSize = 16,
    learning_rate: LearningRate = 2e-3,
    pixel_weight: PixelWeight = 1.0,
    width: Width = 48,
    depth: Depth = 4,
    heads: Heads = 2,
    check: Check = False,
    check_episodes: CheckEpisodes = 560,
    epochs: Epochs = 25,
    threads: Threads = 1,
    workers: Workers = 1,
    seed: Seed = 0,
    force: Force = False,
    json: JsonOption = False,
) -> None:
    """Train a tiny V-JEPA 2 on episodes of a simulated hand, without labels: OUT is a folder for --encoder.

    Needs pip install 'thinkjepa[sample]', and a GL library. An interrupted drawing continues, and a training
    begins again. --check reads hands off true future latents and the card off observed ones, of other
    episodes, and writes the figures into the model card.
    """
    import torch

    from sample_models.encoder.training import Training

    torch.set_num_threads(threads)
    check_renderable(size_px=TRAINED_ON.size_px)
    if check:
        drawn = _drawn(data / "check", CHECKED_ON, check_episodes, workers=workers)
        _report(out, _checked(out, drawn, epochs=epochs, seed=seed), json=json)
    if width % heads or width // heads < 6:
        raise ThinkJepaError(
            f"--width {width} with --heads {heads}: give a multiple of the heads, 6 for each"
        )
    claim_folder(out, kind="models", force=force)
    drawn = _drawn(data / "training", TRAINED_ON, episodes, workers=workers)
    training = Training(steps, batch_size, learning_rate, pixel_weight, seed)
    record = _trained(out, drawn, training, width=width, depth=depth, heads=heads)
    write_manifest(out, kind="models", files=list(out.iterdir()))
    print_result(
        json,
        {"folder": str(out), **record},
        f"an encoder after {steps:,} steps in {record['minutes']:.0f} min: {out}; what can be read off it: "
        f"tools/train_encoder {out} --check",
    )


def _report(out: Path, figures: dict[str, Any], *, json: bool) -> NoReturn:
    print_result(json, figures, (out / "README.md").read_text(encoding="utf-8"))
    raise typer.Exit(0 if figures["good_enough"] else EXIT_FAILED)


def _drawn(folder: Path, drawing: Drawing, num_episodes: int, *, workers: int) -> list[DrawnEpisode]:
    with TerminalProgress(errors) as progress:
        progress.begin("draw", total=num_episodes, unit="episodes")
        paths = draw_episodes(
            folder, drawing, num_episodes=num_episodes, workers=workers, advance=progress.advance
        )
    return [read_episode(path) for path in paths]


def _trained(out: Path, drawn: list[DrawnEpisode], training: Training, **shape: int) -> dict[str, Any]:
    """Train, write the model, and return what its training.json says."""
    from sample_models.encoder.files import training_record, write_model
    from sample_models.encoder.training import Learner, new_model
    from sample_models.encoder.training import train as train_steps

    learner = Learner(new_model(**shape, seed=training.seed), seed=training.seed)
    pictures = [episode.pictures for episode in drawn]
    done, started_s = [], monotonic()
    record: dict[str, Any] = {}
    with TerminalProgress(errors) as progress:
        progress.begin("train", total=training.steps, unit="steps")
        for step in train_steps(learner, pictures, training):
            done.append(step)
            progress.advance(1)
            if step.number % max(1, training.steps // NUM_SAVES) and step.number != training.steps:
                continue
            progress.note(step.line)
            record = training_record(
                done, pictures, training, data_seed=TRAINED_ON.seed, seconds=monotonic() - started_s
            )
            write_model(learner.averaged(), out, record)
    return record


def _checked(out: Path, drawn: list[DrawnEpisode], *, epochs: int, seed: int) -> dict[str, Any]:
    """Measure, write the figures into the model's folder, and return them."""
    from sample_models.encoder.check import Parts, check_encoder
    from sample_models.encoder.files import open_model, open_untrained, weights_of, write_check

    parts = Parts(*(round(share * len(drawn)) for share in (VALIDATED, TESTED)))
    with TerminalProgress(errors) as progress:
        progress.begin("read out", total=3 * epochs, unit="epochs")
        figures = check_encoder(
            drawn,
            encoders={"trained": open_model(out), "untrained": open_untrained(out, seed=seed)},
            parts=parts,
            epochs=epochs,
            seed=seed,
            advance=lambda: progress.advance(1),
        )
    figures |= {"num_episodes": len(drawn), "data_seed": CHECKED_ON.seed, "weights": weights_of(out)}
    write_check(out, figures)
    return figures


if __name__ == "__main__":
    run_app(app)
