"""Self-supervised training of a tiny V-JEPA 2: it sees pictures, and no label.

    loss = |predicted - layer_norm(target)| + weight * ((of predicted - seen)^2 + (of context - seen)^2)

A predictor tells the latents of masked tubes from those around them. The targets come from a moving average
of the encoder that sees the whole window (arXiv 2404.08471, 2506.09985). A second task is none of V-JEPA's:
linear decoders tell what is seen from latents, those of masked tubes and those of the context. That is the
pixels, averaged over small squares, and how far each square is from its median over the window. So small a
training keeps colors and small moving fingers better with it.

Shape letters: B windows, F frames, N tokens in the order step, row, column, D width.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import VJEPA2Config, VJEPA2Model
from transformers.models.vjepa2.modeling_vjepa2 import VJEPA2Encoder

from sample_models.encoder.episodes import Bytes
from sample_models.encoder.tubes import LONG_RANGE, SHORT_RANGE, Division, divide

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
"""Of red, green and blue, 0 to 1, as V-JEPA 2's processor scales them."""

WINDOWS = (16, 8, 4)
"""Frames of a window: from as long as future ones to as short as observed ones. One of these is drawn for
each step, with as many more windows as they are shorter."""

MOST_PREDICTED = 16
"""Patches of a picture, each a tube, that are predicted at once."""

COARSE = 4
"""Side of the squares of pixels that are decoded as one, in a patch."""

CHANGE_SCALE = 2.0
"""Makes changes vary nearly as much as pixels do. A linear read-out of latents then has 99 % of the variance
of pixels and 42 % of that of changes. Tried: 4, half of the pixels' scale, and 64 dims, for 1,170 steps only:
98 % and 50 %. The hand was read off no better at 1,300 steps."""


@dataclass(frozen=True, slots=True)
class Training:
    """Settings of the training."""

    steps: int
    batch_size: int
    """Windows of a step."""
    learning_rate: float
    pixel_weight: float
    """Weight of the decoded pixels' squared error. 0 leaves V-JEPA alone."""
    seed: int
    warmup: float = 0.05
    """Share of steps over which the learning rate rises."""
    weight_decay: float = 0.04
    momentum: tuple[float, float] = (0.99, 0.998)
    """Of the moving average, at the first and at the last step."""


@dataclass(frozen=True, slots=True)
class Step:
    """Figures of a training step."""

    number: int
    latent_error: float
    pixel_error: float
    target_std: float
    """Mean deviation of the target's latent dims over tokens, before they are normed: 0 is a collapse."""

    @property
    def line(self) -> str:
        """A line for a log."""
        return (
            f"step {self.number:,}: error of latents {self.latent_error:.3f}, "
            f"of what is decoded {self.pixel_error:.3f}, "
            f"deviation of the target's dims {self.target_std:.2f}"
        )


class Learner(nn.Module):
    """The encoder and predictor of a V-JEPA 2, its moving average, and the decoder of pixels."""

    def __init__(self, model: VJEPA2Model, *, seed: int) -> None:
        super().__init__()
        self.config = model.config
        self.encoder, self.predictor = model.encoder, model.predictor
        self.target = deepcopy(model.encoder).requires_grad_(False)
        config = model.config
        self.tubelet, self.patch = config.tubelet_size, config.patch_size
        self.side = config.crop_size // config.patch_size
        num_squares = config.tubelet_size * (config.patch_size // COARSE) ** 2
        with drawing_from(seed):
            self.of_masked = nn.Linear(config.hidden_size, 4 * num_squares)
            self.of_visible = nn.Linear(config.hidden_size, 4 * num_squares)

    def errors(self, pictures: Tensor, division: Division) -> tuple[Tensor, Tensor, Tensor]:
        """Errors of latents and pixels, and the target's deviation, of pictures `(B, F, S, S, 3)` uint8."""
        patches_BNC = scaled(patched(pictures, tubelet=self.tubelet, patch=self.patch))
        with torch.no_grad():
            target_BND = encode(self.target, patches_BNC)
            wanted_BND = chosen(F.layer_norm(target_BND, target_BND.shape[-1:]), division.target)
        context_BND = encode(self.encoder, patches_BNC, kept=division.context)
        predicted_BND = predict(self.predictor, context_BND, division)
        squares_BNV = self.decoded_targets(patches_BNC)
        masked_BNV = self.of_masked(predicted_BND) - chosen(squares_BNV, division.target)
        visible_BNV = self.of_visible(context_BND) - chosen(squares_BNV, division.context)
        return (
            F.l1_loss(predicted_BND, wanted_BND),
            masked_BNV.square().mean() + visible_BNV.square().mean(),
            target_BND.flatten(0, 1).std(dim=0).mean(),
        )

    def decoded_targets(self, patches_BNC: Tensor) -> Tensor:
        """Pixels and changes of each patch, both of squares, `(B, N, value)`."""
        pixels_BNV = coarsened(patches_BNC, tubelet=self.tubelet, patch=self.patch)
        changes_BNV = changes(pixels_BNV, num_patches=self.side**2, tubelet=self.tubelet)
        return torch.cat((pixels_BNV, CHANGE_SCALE * changes_BNV), dim=-1)

    def averaged(self) -> VJEPA2Model:
        """A model whose encoder is the moving average, with the predictor."""
        model = initialized(deepcopy(self.config), seed=0)
        model.encoder.load_state_dict(self.target.state_dict())
        model.predictor.load_state_dict(self.predictor.state_dict())
        return model

    @torch.no_grad()
    def follow(self, momentum: float) -> None:
        """Move the average towards the encoder."""
        for average, own in zip(self.target.parameters(), self.encoder.parameters(), strict=True):
            average.lerp_(own, 1 - momentum)


def patched(pictures: Tensor, *, tubelet: int, patch: int) -> Tensor:
    """Pixels `(B, N, 3, value)` of tokens of `(B, F, S, S, 3)`, in the order of the embedding's weight."""
    num_windows, num_frames, height, width, _ = pictures.shape
    parts = pictures.view(
        num_windows, num_frames // tubelet, tubelet, height // patch, patch, width // patch, patch, 3
    )
    return parts.permute(0, 1, 3, 5, 7, 2, 4, 6).reshape(num_windows, -1, 3, tubelet * patch * patch)


def scaled(patches: Tensor) -> Tensor:
    """Pixels uint8 `(B, N, 3, value)` as float32 `(B, N, 3 * value)` of the processor's mean and std."""
    mean, std = torch.tensor(MEAN)[:, None], torch.tensor(STD)[:, None]
    return patches.float().mul_(1 / (255 * std)).sub_(mean / std).flatten(2)


def coarsened(patches_BNC: Tensor, *, tubelet: int, patch: int) -> Tensor:
    """Means of patches' pixels over squares, `(B, N, value)`."""
    images = patches_BNC.reshape(-1, 3 * tubelet, patch, patch)
    return F.avg_pool2d(images, COARSE).reshape(*patches_BNC.shape[:2], -1)


def changes(coarse_BNV: Tensor, *, num_patches: int, tubelet: int) -> Tensor:
    """Distance of each square from its median over the window, mean over colors, `(B, N, value / 3)`.

    The table is still but for the camera's swaying, so that this tells where the hand is.
    """
    num_windows, num_tokens, _ = coarse_BNV.shape
    squares_BTPCKQ = coarse_BNV.view(num_windows, num_tokens // num_patches, num_patches, 3, tubelet, -1)
    over_time = squares_BTPCKQ.permute(0, 2, 3, 5, 1, 4).flatten(4)
    median_BPCQ = over_time.median(dim=-1).values
    changed_BTPKQ = (squares_BTPCKQ - median_BPCQ[:, None, :, :, None]).abs().mean(dim=3)
    return changed_BTPKQ.reshape(num_windows, num_tokens, -1)


def chosen(tokens_BND: Tensor, index_BN: Tensor) -> Tensor:
    """Tokens at indices."""
    return tokens_BND.gather(1, index_BN[..., None].expand(-1, -1, tokens_BND.shape[-1]))


def encode(encoder: VJEPA2Encoder, patches_BNC: Tensor, *, kept: Tensor | None = None) -> Tensor:
    """Latents of all tokens, or of those `kept`, which then know nothing of the others.

    transformers' own forward takes whole windows only, and normalizes no masked ones.
    """
    embedding = encoder.embeddings.patch_embeddings.proj
    patches = patches_BNC if kept is None else chosen(patches_BNC, kept)
    hidden = F.linear(patches, embedding.weight.flatten(1), embedding.bias)
    for layer in encoder.layer:
        hidden = layer(hidden, kept)[0]
    latents: Tensor = encoder.layernorm(hidden)
    return latents


def predict(predictor: nn.Module, context_BND: Tensor, division: Division) -> Tensor:
    """Latents of the target's tokens, in their order.

    transformers' own forward picks the context out of latents of the whole window. Here it has been
    encoded by itself, so that its blocks are called one by one.
    """
    embeddings = predictor.embeddings
    masked = embeddings.mask_tokens[0].expand(*division.target.shape, -1)
    hidden = torch.cat((embeddings.predictor_embeddings(context_BND), masked), dim=1)
    positions = torch.cat((division.context, division.target), dim=1)
    for layer in predictor.layer:
        hidden = layer(hidden, positions)[0]
    predicted: Tensor = predictor.proj(predictor.layernorm(hidden[:, context_BND.shape[1] :]))
    return predicted


def windows_of(
    rng: np.random.Generator, episodes: Sequence[Bytes], *, num_windows: int, num_frames: int
) -> Tensor:
    """Windows `(B, F, S, S, 3)` uint8 at random times of random episodes."""
    drawn = []
    for _ in range(num_windows):
        pictures = episodes[rng.integers(len(episodes))]
        first = rng.integers(len(pictures) - num_frames + 1)
        drawn.append(pictures[first : first + num_frames])
    return torch.from_numpy(np.stack(drawn))


def train(learner: Learner, episodes: Sequence[Bytes], training: Training) -> Iterator[Step]:
    """Train the learner in place, and yield each step's figures.

    `episodes` are pictures `(F, S, S, 3)`. The same seed gives the same weights, on the same machine with as
    many threads.
    """
    rng = np.random.default_rng(training.seed)
    learner.train()
    learned = [value for value in learner.parameters() if value.requires_grad]
    decayed = [value for value in learned if value.ndim >= 2]
    others = [value for value in learned if value.ndim < 2]
    optimizer = torch.optim.AdamW(
        [{"params": decayed, "weight_decay": training.weight_decay}, {"params": others, "weight_decay": 0.0}],
        lr=training.learning_rate,
        betas=(0.9, 0.95),
    )
    for number in range(training.steps):
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(training, number)
        latent, pixel, std = learner.errors(*_batch(rng, episodes, learner.side, training))
        optimizer.zero_grad()
        (latent + training.pixel_weight * pixel).backward()
        nn.utils.clip_grad_norm_(learned, 1.0)
        optimizer.step()
        first, last = training.momentum
        learner.follow(last - (last - first) * (1 + math.cos(math.pi * number / training.steps)) / 2)
        yield Step(number + 1, latent.item(), pixel.item(), std.item())


def _batch(
    rng: np.random.Generator, episodes: Sequence[Bytes], side: int, training: Training
) -> tuple[Tensor, Division]:
    num_frames = int(rng.choice(WINDOWS))
    num_windows = training.batch_size * max(WINDOWS) // num_frames
    blocks = SHORT_RANGE if rng.random() < 0.5 else LONG_RANGE
    pictures = windows_of(rng, episodes, num_windows=num_windows, num_frames=num_frames)
    division = divide(
        rng,
        blocks,
        num_windows=num_windows,
        num_steps=num_frames // 2,
        side=side,
        most=MOST_PREDICTED,
    )
    return pictures, division


def learning_rate(training: Training, number: int) -> float:
    """The learning rate of a step: a rise, then a cosine to zero."""
    rising = max(1, round(training.warmup * training.steps))
    if number < rising:
        return training.learning_rate * (number + 1) / rising
    share = (number - rising) / max(1, training.steps - rising)
    return training.learning_rate * (1 + math.cos(math.pi * share)) / 2


def new_model(*, width: int, depth: int, heads: int, seed: int) -> VJEPA2Model:
    """A V-JEPA 2 of 8 x 8 patches of 12 pixels, for windows of up to 20 frames."""
    config = VJEPA2Config(
        patch_size=12,
        crop_size=96,
        frames_per_clip=20,
        tubelet_size=2,
        hidden_size=width,
        num_attention_heads=heads,
        num_hidden_layers=depth,
        mlp_ratio=4.0,
        initializer_range=0.02,
        num_pooler_layers=1,
        pred_hidden_size=width,
        pred_num_attention_heads=heads,
        pred_num_hidden_layers=2,
        pred_num_mask_tokens=1,
        pred_mlp_ratio=4.0,
        pred_zero_init_mask_tokens=False,
        dtype="float32",
        attn_implementation="sdpa",
    )
    return initialized(config, seed=seed)


def initialized(config: VJEPA2Config, *, seed: int) -> VJEPA2Model:
    """A model of random weights, which the seed determines."""
    with drawing_from(seed):
        return VJEPA2Model(config)


@contextmanager
def drawing_from(seed: int) -> Iterator[None]:
    """Draw random numbers from a seed, and leave the global random state as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        yield
