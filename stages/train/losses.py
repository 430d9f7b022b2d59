"""The training loss: mean squared error between predicted and encoded future latents (the paper's)."""

from torch import Tensor


def latent_error(predicted: Tensor, future: Tensor) -> Tensor:
    """Mean squared error of each clip, `(batch,)`, float32."""
    return (predicted.float() - future).square().flatten(1).mean(dim=1)


def persistence(observed: Tensor, *, future_steps: int) -> Tensor:
    """The last observed latent step, repeated over the future: what a forecast has to beat."""
    return observed[:, -1:].expand(-1, future_steps, -1, -1)
