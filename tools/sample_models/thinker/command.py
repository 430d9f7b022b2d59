"""`tools/train_thinker`: train the sample's Qwen3-VL on drawn episodes, or measure what it says and holds."""

from __future__ import annotations

from pathlib import Path
from time import monotonic
from typing import Annotated, Any

import typer
from hands.generate import check_renderable

from sample_models.flags import EXIT_FAILED, Check, LearningRate, Threads, Workers
from sample_models.thinker.sights import FRAME_PX, Drawing, Sights, draw_sights
from thinkjepa.cache import ThinkJepaError
from thinkjepa.pipeline.cli.console import JsonOption, errors, new_single_app, print_result, run_app
from thinkjepa.pipeline.cli.help import examples
from thinkjepa.pipeline.cli.progress import TerminalProgress
from thinkjepa.pipeline.cli.sample import Force, Out, Seed
from thinkjepa.pipeline.sample.folder import claim_folder, write_manifest

app = new_single_app()

TRAINED_ON, CHECKED_ON = 101, 102
"""Seeds of episodes. The evidence has others, so that no episode of it is in this training."""

HEAD_WIDTH = 64
"""Widths are multiples of it: two heads of 32 that share a key."""

LEAST_EPISODES = 40


Data = Annotated[
    Path, typer.Option(help="Folder of drawn frames and videos, kept. Lacking frames are drawn.")
]
Episodes = Annotated[
    int, typer.Option(min=1, help="Episodes to train on, 0.7 MB and about 0.3 s of drawing each.")
]
Steps = Annotated[int, typer.Option(min=1, help="Training steps, about 0.6 s each on one core.")]
BatchSize = Annotated[int, typer.Option(min=1, help="Examples of a step.")]
OnePair = Annotated[
    float, typer.Option(min=0, max=1, help="Share of steps, the first ones, with two frames an example.")
]
ThroughText = Annotated[
    float,
    typer.Option(min=0, max=1, help="Share of answers that see the frames through the prompt's text alone."),
]
Width = Annotated[int, typer.Option(min=64, help="Dims of the decoder's states: a multiple of 64.")]
VisionWidth = Annotated[int, typer.Option(min=32, help="Dims of the vision's states: a multiple of 32.")]
Start = Annotated[
    Path | None, typer.Option(help="Folder of a thinker of these widths, whose weights are the first ones.")
]
CheckEpisodes = Annotated[
    int, typer.Option(min=LEAST_EPISODES, help="Episodes of --check, each under three conditions.")
]


@app.command(epilog=examples("tools/train_thinker thinker", "tools/train_thinker thinker --check --json"))
def train(
    out: Out,
    data: Data = Path("drawn-for-thinker"),
    episodes: Episodes = 2000,
    steps: Steps = 5600,
    batch_size: BatchSize = 16,
    learning_rate: LearningRate = 1.2e-3,
    one_pair: OnePair = 0.75,
    through_text: ThroughText = 0.3,
    width: Width = 128,
    vision_width: VisionWidth = 96,
    start: Start = None,
    check: Check = False,
    check_episodes: CheckEpisodes = 200,
    threads: Threads = 1,
    workers: Workers = 2,
    seed: Seed = 0,
    force: Force = False,
    json: JsonOption = False,
) -> None:
    """Train a tiny Qwen3-VL to say what a card has told: OUT is a folder for --thinker.

    Needs pip install 'thinkjepa[sample]', and a GL library. An interrupted drawing or training continues.
    --check asks it about videos of other episodes, reads object and place off its states, and writes the
    figures into the model card.
    """
    import torch

    torch.set_num_threads(threads)
    check_renderable(size_px=FRAME_PX)
    if check:
        figures = _checked(out, data / f"check-{check_episodes}", check_episodes, workers=workers)
        print_result(json, figures, (out / "README.md").read_text(encoding="utf-8"))
        raise typer.Exit(0 if figures["good_enough"] else EXIT_FAILED)
    if width % HEAD_WIDTH or vision_width % 32:
        raise ThinkJepaError(
            f"--width {width}, --vision-width {vision_width}: give multiples of {HEAD_WIDTH} and of 32"
        )
    claim_folder(out, kind="models", force=force)
    drawing = Drawing(seed=TRAINED_ON, num_episodes=episodes, pairs="seen")
    drawn = _drawn(data / f"training-{episodes}", drawing, workers=workers)
    settings = {
        "steps": steps,
        "batch_size": batch_size,
        "learning_rate": learning_rate,
        "one_pair": one_pair,
        "through_text": through_text,
        "seed": seed,
    }
    record = _trained(out, data, drawn, settings, width=width, vision_width=vision_width, start=start)
    write_manifest(out, kind="models", files=list(out.iterdir()))
    print_result(
        json,
        {"folder": str(out), **record},
        f"a thinker after {steps:,} steps in {record['minutes']:.0f} min: {out}; "
        f"{record['sentence_accuracy']:.1%} of the tokens of its first sentences are right; "
        f"on other episodes: tools/train_thinker {out} --check",
    )


def _drawn(folder: Path, drawing: Drawing, *, workers: int) -> Sights:
    with TerminalProgress(errors) as progress:
        progress.begin("draw", total=drawing.num_episodes, unit="episodes")
        return draw_sights(folder, drawing, workers=workers, advance=progress.advance)


def _trained(
    out: Path,
    data: Path,
    drawn: Sights,
    settings: dict[str, Any],
    *,
    width: int,
    vision_width: int,
    start: Path | None,
) -> dict[str, Any]:
    """Train, write the model, and return what its training.json says."""
    from sample_models.thinker.batches import Collator, ExampleMaker
    from sample_models.thinker.files import earlier_trainings, start_from, training_record, write_model
    from sample_models.thinker.model import PROMPT, new_model, new_processor
    from sample_models.thinker.training import Training
    from sample_models.thinker.training import train as train_steps

    processor = new_processor()
    model = new_model(processor.tokenizer, width=width, vision_width=vision_width, seed=settings["seed"])
    if start is not None:
        start_from(model, start)
    state_file = data / f"training-{width}-{vision_width}.safetensors"
    done, started_s = [], monotonic()
    with TerminalProgress(errors) as progress:
        progress.begin("train", total=settings["steps"], unit="steps")
        for step in train_steps(
            model, Collator(processor), ExampleMaker(drawn), Training(**settings), state_file=state_file
        ):
            progress.advance(step.number - (done[-1].number if done else 0))
            done.append(step)
            if step.number % max(1, settings["steps"] // 20) == 0:
                progress.note(step.line)
    about = {
        "prompt": PROMPT,
        "example": drawn.sights[0].first_sentence(told=True),
        "episodes": len(drawn.sights),
        "data_seed": TRAINED_ON,
        "earlier": earlier_trainings(start),
    }
    record = training_record(
        done, model, settings={**settings, **about}, minutes=(monotonic() - started_s) / 60
    )
    write_model(model, processor, out, record)
    state_file.unlink(missing_ok=True)
    return record


def _checked(out: Path, work: Path, num_episodes: int, *, workers: int) -> dict[str, Any]:
    """Measure, write the figures into the model's folder, and return them."""
    from sample_models.thinker.check import check_thinker
    from sample_models.thinker.files import write_check

    with TerminalProgress(errors) as progress:
        progress.begin("check", total=num_episodes, unit="episodes")
        figures = check_thinker(
            out,
            work,
            seed=CHECKED_ON,
            num_episodes=num_episodes,
            workers=workers,
            advance=progress.advance,
        )
    write_check(out, figures)
    return figures


if __name__ == "__main__":
    run_app(app)
