"""Files of the trained thinker: what `from_pretrained` reads, in half precision, and a model card."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import Qwen3VLConfig, Qwen3VLForConditionalGeneration, Qwen3VLProcessor

from sample_models.thinker.batches import MISHEARD
from sample_models.thinker.training import Step
from thinkjepa.cache import ThinkJepaError

TRAINING_FILE, CHECK_FILE = "training.json", "check.json"

CARD = """\
---
library_name: transformers
license: apache-2.0
---
# A tiny Qwen3-VL of simulated hands

A thinker for trying ThinkJEPA out: {parameters:,} parameters. It has seen nothing but a simulated hand that
takes one of three colored things to one of three pads (`tools/render_hands`), and it says what a card has
told of that:

    {example}

A color and kind of thing and a pad, both with their cell of a 10 x 10 grid over the picture (column, row),
and the hand's. Where no card tells: `card tells nothing`. The first sentence takes 16 tokens. Of other
videos, other prompts and other sizes it knows nothing, and no result obtained with it says how good real
thinkers are.

| | |
| --- | --- |
| frames | 96 x 96 px, 6 x 6 visual tokens of two frames; larger ones are scaled to as many tokens |
| layers | {layers} of width {width}, vision {vision_layers} of width {vision_width}, DeepStack from one |
| tokens | {words:,}: bytes, and its words |
| files | float16, as `Qwen3VLForConditionalGeneration` and `Qwen3VLProcessor` of transformers read them |

## Training

On words alone, with the chat template and the prompt of extraction ("{prompt}"). {episodes:,} episodes of
seed {data_seed}, without the pairs of color and place that are held out of all training, each with a card,
with a neutral card and with a card until the split; 8 frames from the start to the split. {steps:,}
steps{stopped} of {batch_size} examples, {one_pair:.0%} of them with two frames, seed {seed}.{before}

In each example frames are moved, made brighter or darker, and compressed at random, and most cards are
pasted from another episode. In {through_text:.0%} of examples the answer sees the frames through the text
of the prompt alone, so that its tokens hold the plan. In {misheard:.0%} of the answers the color that they
go on from is any color: as pairs of color and place are held out, a model learns else that a color excludes
a place.

Written by `tools/train_thinker` with torch {torch} and transformers {transformers},
in {minutes:.0f} minutes on {threads} thread(s).

Last figures, means over the last twentieth of the steps: loss {loss:.3f}, tokens of first sentences right
{sentence_accuracy:.1%}.
{check}"""

CHECKED = """
## What it says, and what can be read off it

`tools/train_thinker OUT --check` renders {episodes} episodes of seed {seed} under each condition of the
card, none of which was in the training, and extracts features from these videos.

| right in the answer | card until 0.6 s before the split | card until the split | neutral card |
| --- | ---: | ---: | ---: |
{answers}

A cell is right where it is the true one or next to it. Linear read-out, on clips that it was not fitted on:

| read off | color | place | color, neutral card | place, neutral card |
| --- | ---: | ---: | ---: | ---: |
{read_out}

{verdict}
"""

GOOD_ENOUGH = """\
Nine of ten answers and read-outs are right where a card tells, and read-outs are at chance where none does:
that is what it was trained for."""

NOT_GOOD_ENOUGH = """\
**This is not good enough**: nine of ten answers and read-outs were to be right where a card tells, and
read-outs at chance where none does."""

ANSWER_ROWS = {
    "answer": "object and place, or that nothing is told",
    "seen_pairs": "the same, pairs of color and place that training has shown",
    "unseen_pairs": "the same, pairs that it has not",
    "color": "color",
    "kind": "kind",
    "place": "place",
    "thing_cell": "cell of the thing",
    "pad_cell": "cell of the pad",
}


def write_model(
    model: Qwen3VLForConditionalGeneration,
    processor: Qwen3VLProcessor,
    out: Path,
    training: Mapping[str, Any],
) -> None:
    """Write weights in half precision, the processor, and what is known of the training."""
    model.eval().half().save_pretrained(out)
    processor.save_pretrained(out)
    (out / TRAINING_FILE).write_text(json.dumps(training, indent=1) + "\n", encoding="utf-8")
    (out / CHECK_FILE).unlink(missing_ok=True)
    write_card(out)


def start_from(model: Qwen3VLForConditionalGeneration, folder: Path) -> None:
    """Load the weights of an earlier thinker. Raises ThinkJepaError where they do not fit."""
    try:
        earlier = Qwen3VLForConditionalGeneration.from_pretrained(folder, dtype=torch.float32)
        model.load_state_dict(earlier.state_dict())
    except (OSError, RuntimeError) as error:
        raise ThinkJepaError(f"--start {str(folder)!r} is no thinker of these widths: {error}") from error


def earlier_trainings(start: Path | None) -> list[dict[str, Any]]:
    """Records of the trainings before, the first one first."""
    if start is None:
        return []
    record = json.loads((start / TRAINING_FILE).read_text(encoding="utf-8"))
    return [*record.pop("earlier", []), record]


def write_check(out: Path, figures: Mapping[str, Any]) -> None:
    """Write the figures of a check, and the model card with them."""
    (out / CHECK_FILE).write_text(json.dumps(figures, indent=1) + "\n", encoding="utf-8")
    write_card(out)


def write_card(out: Path) -> None:
    """Write README.md from the model's files, its training and, where there is one, its check."""
    training = json.loads((out / TRAINING_FILE).read_text(encoding="utf-8"))
    config = Qwen3VLConfig.from_pretrained(out)
    text = CARD.format(
        layers=config.text_config.num_hidden_layers,
        width=config.text_config.hidden_size,
        vision_layers=config.vision_config.depth,
        vision_width=config.vision_config.hidden_size,
        words=config.text_config.vocab_size,
        check=_checked(out),
        stopped=f" (ended after {done:,})" if (done := training.get("stopped_after")) else "",
        before=_before(training.pop("earlier")),
        **training,
    )
    (out / "README.md").write_text(text, encoding="utf-8")


def training_record(
    steps: Sequence[Step],
    model: Qwen3VLForConditionalGeneration,
    *,
    settings: Mapping[str, Any],
    minutes: float,
) -> dict[str, Any]:
    """The record of a training: its settings, versions and last figures."""
    last = steps[-max(1, len(steps) // 20) :]
    means = {
        name: round(sum(getattr(step, name) for step in last) / len(last), 4)
        for name in ("loss", "sentence_accuracy")
    }
    return {
        **settings,
        "parameters": sum(value.numel() for value in model.parameters()),
        "minutes": round(minutes, 1),
        "misheard": MISHEARD,
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        **means,
    }


def _before(earlier: Sequence[Mapping[str, Any]]) -> str:
    """A sentence on the trainings before."""
    if not earlier:
        return ""
    steps = [record.get("stopped_after", record["steps"]) for record in earlier]
    runs = "; then ".join(
        f"{number:,} steps of {record['batch_size']} examples (any color in {record['misheard']:.0%})"
        for number, record in zip(steps, earlier, strict=True)
    )
    return f" It began with the weights of {runs} (`--start`)."


def _checked(out: Path) -> str:
    path = out / CHECK_FILE
    if not path.exists():
        return ""
    check = json.loads(path.read_text(encoding="utf-8"))
    conditions = [check["answers"][name] for name in ("cue", "late-cue", "no-cue")]
    cells = {
        label: [f"{found[name]:.1%}" if name in found else "" for found in conditions]
        for name, label in ANSWER_ROWS.items()
    }
    answers = "\n".join(f"| {label} | {' | '.join(shares)} |" for label, shares in cells.items())
    cue, no_cue = check["read_out"]["cue"], check["read_out"]["no-cue"]
    read_out = "\n".join(
        f"| {name} | {cue[name]['color']:.1%} | {cue[name]['place']:.1%} | "
        f"{no_cue[name]['color']:.1%} | {no_cue[name]['place']:.1%} |"
        for name in cue
    )
    return CHECKED.format(
        episodes=check["episodes"],
        seed=check["seed"],
        answers=answers,
        read_out=read_out,
        verdict=GOOD_ENOUGH if check["good_enough"] else NOT_GOOD_ENOUGH,
    )
