"""Training of the sample's thinker to say what it sees, by the loss of the words alone.

In a share of examples the answer's tokens see nothing of the frames but what the tokens after them hold:
the text of the prompt. So these few tokens come to hold what is going to be said, in states that are linear
to read (the masks of gist tokens, arXiv 2304.08467).

Shape letters: B examples, S tokens, A tokens of the answers.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import Qwen3VLForConditionalGeneration

from sample_models.thinker.batches import Batch, Collator, ExampleMaker
from thinkjepa.cache import fingerprint
from thinkjepa.stages.train.fit.state import FitState, PartialEpoch, ResumeFile

SENTENCE_WEIGHT = 3.0
"""Weight of the first sentence's tokens; those of the lists after it have 1."""


@dataclass(frozen=True, slots=True)
class Training:
    """Settings of the training."""

    steps: int
    batch_size: int
    learning_rate: float
    seed: int
    one_pair: float = 0.75
    """Share of steps, the first ones, with two frames an example: four times as fast, and all there is to
    see."""
    through_text: float = 0.4
    """Share of examples whose answer sees the frames through the text alone."""
    warmup: float = 0.05
    """Share of steps over which the learning rate rises."""
    weight_decay: float = 0.05


@dataclass(frozen=True, slots=True)
class Step:
    """Figures of a training step."""

    number: int
    loss: float
    sentence_accuracy: float
    """Share of the first sentences' tokens that are the most likely ones."""
    first_accuracy: float
    """The same of the answers' first tokens: the color, or that nothing is told."""

    @property
    def line(self) -> str:
        """The figures, for people."""
        return (
            f"step {self.number:,}: loss {self.loss:.3f}, right: {self.sentence_accuracy:.0%} of the first "
            f"sentence's tokens, {self.first_accuracy:.0%} of first tokens"
        )


def train(
    model: Qwen3VLForConditionalGeneration,
    collator: Collator,
    maker: ExampleMaker,
    training: Training,
    *,
    state_file: Path | None = None,
    save_every: int = 200,
) -> Iterator[Step]:
    """Train the model in place, and give each step's figures.

    Examples depend on the seed and the step alone. With a `state_file` an interrupted training continues,
    to the same weights on the same machine with as many threads.
    """
    optimizer = torch.optim.AdamW(
        [
            {"params": [value for value in model.parameters() if value.ndim >= 2]},
            {"params": [value for value in model.parameters() if value.ndim < 2], "weight_decay": 0.0},
        ],
        lr=training.learning_rate,
        weight_decay=training.weight_decay,
        betas=(0.9, 0.98),
    )
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer,
        max_lr=training.learning_rate,
        total_steps=training.steps + 1,
        pct_start=training.warmup,
        cycle_momentum=False,
    )
    resume = ResumeFile(state_file, fingerprint(asdict(training))) if state_file else None
    begin = resume.load(model, optimizer).partial.steps_done if resume else 0
    if begin:
        schedule.load_state_dict({**schedule.state_dict(), "last_epoch": begin - 1, "_step_count": begin})
        schedule.step()
    model.train()
    for number in range(begin, training.steps):
        rng = np.random.default_rng([training.seed, number])
        one_pair = number < training.one_pair * training.steps
        examples = [maker.draw(rng, one_pair=one_pair) for _ in range(training.batch_size)]
        batch = collator.batch(examples, rng)
        through_text = torch.from_numpy(rng.random(training.batch_size) < training.through_text)
        loss, sentence, first = loss_of(model, batch, through_text)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        if resume is not None and (number + 1) % save_every == 0:
            resume.save(FitState(partial=PartialEpoch(steps_done=number + 1)), model, optimizer)
        yield Step(number + 1, loss.item(), sentence.item(), first.item())
    model.eval()


def loss_of(
    model: Qwen3VLForConditionalGeneration, batch: Batch, through_text: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Loss of the answers, and shares of first sentences' tokens and of first tokens that are right.

    Examples of `through_text` `(B,)` are taught their first sentence alone.
    """
    begin, is_visual = batch.prompt_length, batch.token_types == 2
    positions, _ = model.model.get_rope_index(
        batch.input_ids[:1], mm_token_type_ids=batch.token_types[:1], video_grid_thw=batch.grid[:1]
    )
    states = model.model(
        input_ids=batch.heard_ids,
        attention_mask=attention_mask(is_visual, begin, through_text),
        position_ids=positions.expand(-1, len(batch.input_ids), -1),
        pixel_values_videos=batch.pixels,
        video_grid_thw=batch.grid,
        use_cache=False,
    ).last_hidden_state
    logits_BAV = model.lm_head(states[:, begin - 1 : -1])
    wanted_BA = batch.input_ids[:, begin:]
    index_A = torch.arange(wanted_BA.shape[1])
    in_sentence_BA = index_A < batch.sentence_length[:, None]
    taught_BA = (index_A < batch.answer_length[:, None]) & (in_sentence_BA | ~through_text[:, None])
    weight_BA = taught_BA * torch.where(in_sentence_BA, SENTENCE_WEIGHT, 1.0)
    errors_BA = F.cross_entropy(logits_BAV.flatten(0, 1), wanted_BA.flatten(), reduction="none")
    loss = (errors_BA.view_as(weight_BA) * weight_BA).sum() / weight_BA.sum()
    is_right_BA = logits_BAV.argmax(dim=-1) == wanted_BA
    return loss, is_right_BA[in_sentence_BA].float().mean(), is_right_BA[:, 0].float().mean()


def attention_mask(is_visual_BS: Tensor, prompt_length: int, through_text: Tensor) -> Tensor:
    """Tokens that each token sees, `(B, 1, S, S)`: those before it. Answers `through_text` see no frames."""
    batch, length = is_visual_BS.shape
    mask = torch.ones(length, length, dtype=torch.bool).tril().repeat(batch, 1, 1)
    visual = is_visual_BS[0].nonzero().flatten()
    # Marks and times between the frames have seen them, too.
    rows = through_text.nonzero().flatten()
    mask[rows, prompt_length:, int(visual[0]) : int(visual[-1]) + 1] = False
    return mask[:, None]
