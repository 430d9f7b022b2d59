"""One training step of the predictor against the published shape of the same step.

The published predictor repeats each latent step twice in time and masks its attention with a dense boolean
matrix. `same_tokens` has the dense mask alone, on our own tokens. All subjects share weights' shapes, loss
and optimiser; a step is forward, backward and AdamW on one clip.
"""

from __future__ import annotations

import argparse
import gc
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import psutil
import torch
import torch._dynamo  # by itself it comes with the first optimiser, as 155 MB of a step
import torch.nn.functional as F
from measure import interleaved, machine, median_ratio, report, rounded
from torch import Tensor

from thinkjepa.stages.train.fit.losses import latent_mse
from thinkjepa.stages.train.model.attention import GridAttention, Rotation, Span, rotate
from thinkjepa.stages.train.model.config import LatentGrid, TrunkShape
from thinkjepa.stages.train.model.trunk import MLP, initialize
from thinkjepa.stages.train.model.variants import Predictor
from thinkjepa.stages.train.randomness import named_generator

REPEATS = {"ours": 1, "same_tokens": 1, "published": 2}
"""Subjects: how often each latent step stands in time."""

DIM, SIDE = 1024, 16
"""ViT-L's latents of 256 px by patches of 16 px."""


class DenseMaskAttention(GridAttention):
    """Frame-causal attention through a boolean mask of all pairs of tokens."""

    mask: Tensor

    def forward(self, x: Tensor, rotation: Rotation, spans: tuple[Span, ...]) -> Tensor:
        query = rotate(self._split_heads(self.query(x)), rotation)
        key = rotate(self._split_heads(self.key(x)), rotation)
        mixed = F.scaled_dot_product_attention(
            query, key, self._split_heads(self.value(x)), attn_mask=self.mask
        )
        output: Tensor = self.proj(mixed.transpose(1, 2).flatten(2))
        return output


class KeepingMLP(MLP):
    """Keeps what the backward needs of the GELU, as autograd does by itself."""

    def forward(self, x: Tensor) -> Tensor:
        return self._out_of(self.fc1(x))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--steps", type=int, default=8, help="latent steps of each window")
    parser.add_argument("--depth", type=int, default=4)
    parser.add_argument("--width", type=int, default=384)
    parser.add_argument("--heads", type=int, default=12)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--peak-of", choices=REPEATS, help=argparse.SUPPRESS)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    if options.peak_of:
        print(json.dumps(peak_bytes(step_of(options.peak_of, options), options.device)))  # noqa: T201
        return
    report(measured(options), as_json=options.json)


def measured(options: argparse.Namespace) -> dict[str, object]:
    """Ratios of time (median over rounds) and of peak memory (each subject in a process of its own)."""
    subjects = {name: step_of(name, options) for name in REPEATS}
    for step in subjects.values():
        step()
    seconds = interleaved(subjects, rounds=options.rounds)
    subjects.clear()
    gc.collect()
    peaks = {name: peak_in_child(name) for name in REPEATS}
    return rounded(
        {
            "speedup": median_ratio(seconds["published"], seconds["ours"]),
            "speedup_same_tokens": median_ratio(seconds["same_tokens"], seconds["ours"]),
            "memory_ratio": peaks["ours"] / peaks["published"],
            "memory_ratio_same_tokens": peaks["ours"] / peaks["same_tokens"],
            **{f"{name}_s": min(times) for name, times in seconds.items()},
            **{f"{name}_peak_mb": peak / 1e6 for name, peak in peaks.items()},
            "tokens": 2 * options.steps * SIDE * SIDE,
            "threads": options.threads,
            "device": torch.cuda.get_device_name() if options.device == "cuda" else "cpu",
            **machine(Path.cwd()),
        }
    )


def step_of(name: str, options: argparse.Namespace) -> Callable[[], None]:
    """A function that takes one training step on one clip."""
    steps = options.steps * REPEATS[name]
    grid = LatentGrid(observed_steps=steps, future_steps=steps, height=SIDE, width=SIDE, dim=DIM)
    predictor = Predictor(grid, TrunkShape(options.depth, options.width, options.heads))
    initialize(predictor, named_generator(0, "benchmark"))
    if name != "ours":
        _mask_densely(predictor)
        for block in predictor.trunk.layer:
            block.mlp.__class__ = KeepingMLP
    predictor.to(options.device)
    optimizer = torch.optim.AdamW(predictor.parameters())
    generator = torch.Generator().manual_seed(0)
    clip = torch.randn(2, 1, options.steps, SIDE * SIDE, DIM, generator=generator)
    observed, future = clip.repeat_interleave(REPEATS[name], dim=2).to(options.device)

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        latent_mse(predictor(observed), future).mean().backward()
        optimizer.step()
        if options.device == "cuda":
            torch.cuda.synchronize()

    return step


def _mask_densely(predictor: Predictor) -> None:
    grid = predictor.grid
    step_of_token = torch.arange(grid.observed_steps + grid.future_steps).repeat_interleave(
        grid.tokens_per_step
    )
    mask = step_of_token[:, None] >= step_of_token[None, :]
    for block in predictor.trunk.layer:
        block.attention.__class__ = DenseMaskAttention
        block.attention.register_buffer("mask", mask, persistent=False)


def peak_in_child(name: str) -> float:
    """Peak bytes of a step, above what the process took before the model was made."""
    arguments = [argument for argument in sys.argv[1:] if argument != "--json"]
    command = [sys.executable, __file__, *arguments, "--peak-of", name]
    return float(json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout))


def peak_bytes(step: Callable[[], None], device: str) -> int:
    """Peak bytes of two steps (the second has the optimiser's state), weights included."""
    for _ in range(2):
        step()
    if device == "cuda":
        return torch.cuda.max_memory_allocated()
    status = Path("/proc/self/status").read_text().splitlines()
    peak_kb = next(int(line.split()[1]) for line in status if line.startswith("VmHWM:"))
    return peak_kb * 1024 - IMPORTED_BYTES


IMPORTED_BYTES = psutil.Process().memory_info().rss
"""Resident once everything is imported, before there is a model."""

if __name__ == "__main__":
    main()
