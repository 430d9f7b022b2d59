"""Rotary positions on the latent grid (time, height, width), as V-JEPA 2's predictor has them.

Agrees with `rotate_queries_or_keys` and `apply_rotary_embeddings` of transformers' VJEPA2. Each axis rotates
an equal part of a head's dims; what is left over is not rotated. Angles are *tiled* over an axis' dims
(f0 f1 .. f0 f1 ..) while the pairs that rotate are neighbours (x0 x1): that is how the published weights
were trained, so it is kept.

Shape letters: B batch, H heads, N tokens, K dims of a head, R rotated dims of a head.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

AXES = 3
BASE = 10_000.0


@dataclass(frozen=True, slots=True)
class Rotation:
    """Cosine and sine of every token's angles, `(token, rotated dims)`, float32."""

    cos: Tensor
    sin: Tensor


def axis_dims(head_dim: int) -> int:
    """Dims of a head that one axis rotates: the largest even number that fits three times (32 -> 10)."""
    return 2 * ((head_dim // AXES) // 2)


def grid_positions(
    *, first_step: int, num_steps: int, height: int, width: int, device: torch.device
) -> Tensor:
    """Positions `(step * height * width, 3)` of a run of latent steps, row-major, float32.

    Columns are the latent step (from `first_step` on), the row and the column of the patch.
    """
    steps = torch.arange(first_step, first_step + num_steps, device=device)
    rows = torch.arange(height, device=device)
    columns = torch.arange(width, device=device)
    return torch.cartesian_prod(steps, rows, columns).float()


def rotation_at(positions: Tensor, *, head_dim: int) -> Rotation:
    """The rotation of tokens at `positions` `(token, 3)`; position (0, 0, 0) is left as it is."""
    half = axis_dims(head_dim) // 2
    exponents = torch.arange(half, dtype=torch.float32, device=positions.device) / half
    frequencies = 1.0 / BASE**exponents
    angles = positions.unsqueeze(-1) * frequencies  # (N, 3, half)
    tiled = angles.repeat(1, 1, 2).flatten(1)
    return Rotation(cos=tiled.cos(), sin=tiled.sin())


def rotate(x: Tensor, rotation: Rotation) -> Tensor:
    """Rotate queries or keys `(batch, heads, token, head dim)` to their tokens' positions."""
    num_rotated = rotation.cos.shape[-1]
    x_BHNR = x[..., :num_rotated]
    even, odd = x_BHNR[..., 0::2], x_BHNR[..., 1::2]
    quarter_turn = torch.stack((-odd, even), dim=-1).flatten(-2)
    rotated = (x_BHNR * rotation.cos + quarter_turn * rotation.sin).to(x.dtype)
    return torch.cat((rotated, x[..., num_rotated:]), dim=-1)
