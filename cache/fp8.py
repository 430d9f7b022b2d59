"""Half the disk: values as float8 (e4m3) with a float32 scale for each token, and the error that adds.

A token is the vector along an array's last axis. Its largest magnitude becomes 448, the largest of e4m3, so
that values within 2^-15 of it keep three bits of mantissa: they are off by at most 1/16 of themselves.
"""

from __future__ import annotations

from dataclasses import replace

import torch

from thinkjepa.cache.records import ERROR, SCALE, ArraySpec

LARGEST = torch.finfo(torch.float8_e4m3fn).max
SMALLEST_SCALE = torch.finfo(torch.float32).tiny


def companions(spec: ArraySpec) -> tuple[ArraySpec, ArraySpec]:
    """The arrays stored beside an fp8 array: each token's scale, and its relative L2 error."""
    axes = zip(spec.dims[:-1], spec.shape[:-1], spec.chunks[:-1], strict=True)
    chunks = tuple(chunk if dim == "token" else size for dim, size, chunk in axes)
    scale = replace(
        spec,
        name=spec.name + SCALE,
        dims=spec.dims[:-1],
        shape=spec.shape[:-1],
        chunks=chunks,
        dtype="float32",
        encoding="plain",
    )
    return scale, replace(scale, name=spec.name + ERROR)


def quantised(values: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Bits of the float8 values (uint8, the shape of `values`), and the scales (float32, last axis gone)."""
    exact = values.float()
    scale = (exact.abs().amax(dim=-1) / LARGEST).clamp_min(SMALLEST_SCALE)
    codes = (exact / scale[..., None]).clamp(-LARGEST, LARGEST).to(torch.float8_e4m3fn)
    return codes.view(torch.uint8), scale


def restored(codes: torch.Tensor, scale: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """The values that are read: float8 times scale in float32, then rounded to `dtype`."""
    return (codes.view(torch.float8_e4m3fn).float() * scale[..., None]).to(dtype)


def token_errors(exact: torch.Tensor, approximate: torch.Tensor) -> torch.Tensor:
    """Relative L2 error of every token (float32, last axis gone); 0 for a token of zeros."""
    difference = (exact.double() - approximate.double()).norm(dim=-1)
    size = exact.double().norm(dim=-1)
    return torch.where(size > 0, difference / size.clamp_min(1e-300), difference).float()
