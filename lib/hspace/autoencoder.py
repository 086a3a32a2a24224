"""The Diffusion Autoencoder (Preechakul et al. 2022): a semantic code z beside the noise x_T.

The method before Asyrp: an encoder gives each image a code, the U-Net's prediction takes it in,
inversion with it gives the noise, and a linear classifier on the codes edits. The U-Net stays as it
is, as in Zhang, Zhao and Lin (2022), who train such a code in a fraction of the time.
"""

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn
from torch.nn import functional

from lib.diffusion import folders
from lib.diffusion.models import Generator
from lib.diffusion.sampling import ddim, in_batches, invert, predicted, rows_per_call

NAME, WIDTH, PIXELS = "avatars-dae", 64, 3 * 32 * 32


class Autoencoder(nn.Module):
    """An encoder of 32 px images to codes z (n, 64), and what z adds to the U-Net's prediction.

    P' = P + m (y − P) + r, that is ε' = ε − sqrt(α / (1 − α)) (P' − P): y is the picture that z
    alone gives, its part in the leading principal components of the faces, and (m, r) come from a
    small network that sees z, y, P and the noise level. z is that part in units of its deviation,
    and what the encoder has learned to add. m = r = 0 at first: the U-Net alone, bit for bit.
    """

    def __init__(self, generator: Generator) -> None:
        super().__init__()
        self._base = (generator,)  # in a tuple: no weights of ours
        self.register_buffer("mean", torch.zeros(PIXELS))
        self.register_buffer("axes", torch.zeros(PIXELS, WIDTH))
        self.encoder = nn.Sequential(
            *_block(3, 24, stride=2), *_block(24, 48, stride=2), *_block(48, 96, stride=2),
            nn.Flatten(), _zero(nn.Linear(96 * 4 * 4, WIDTH)),
        )  # fmt: skip
        self.decoder = nn.Sequential(
            nn.Linear(WIDTH, 96 * 4 * 4), nn.SiLU(), nn.Unflatten(1, (96, 4, 4)),
            *_block(96, 96, up=2), *_block(96, 48, up=2), *_block(48, 24, up=2),
        )  # fmt: skip
        self.join = nn.Sequential(
            nn.Conv2d(24 + 3 + 3 + 2, 32, 3, padding=1), nn.SiLU(),
            nn.Conv2d(32, 32, 3, padding=1), nn.SiLU(), _zero(nn.Conv2d(32, 4, 3, padding=1)),
        )  # fmt: skip

    @torch.no_grad()
    def fit_axes(self, images: Tensor) -> None:
        """Take the mean and the 64 leading components of these images, (n, 3, 32, 32), n > 64."""
        x = images.flatten(1)
        self.mean.copy_(x.mean(0))
        _, values, vectors = torch.pca_lowrank(x - self.mean, WIDTH, center=False, niter=4)
        self.axes.copy_(vectors * len(x) ** 0.5 / values)

    def encode(self, images: Tensor) -> Tensor:
        """Codes (n, 64) of images (n, 3, 32, 32)."""
        return (images.flatten(1) - self.mean) @ self.axes + self.encoder(images)

    def forward(self, noisy: Tensor, t: Tensor, images: Tensor) -> Tensor:
        """ε'(x_t, t, z) with the code of the clean images themselves, for training."""
        with self.conditioned(self.encode(images)):
            return self._base[0].unet(noisy, t, return_dict=False)[0]

    @contextmanager
    def conditioned(self, code: Tensor) -> Iterator[Generator]:
        """In the block, the U-Net of the generator takes n rows, and these codes (n, 64)."""
        generator = self._base[0]
        picture = self.mean + code @ (self.axes / self.axes.square().sum(0)).T
        picture = picture.view(-1, 3, 32, 32)
        told = torch.cat([self.decoder(code), picture], dim=1)

        def move(module: nn.Module, args: tuple, output: tuple) -> tuple:
            x, t = args[:2]
            alpha = generator.alphas.to(x.device, x.dtype)[t].view(-1, 1, 1, 1)
            snr = alpha / (1 - alpha)
            plain = (x - (1 - alpha).sqrt() * output[0]) / alpha.sqrt()
            levels = torch.cat([snr.log() / 4, snr.log().div(4).sigmoid()], dim=1)
            levels = levels.expand(-1, -1, 32, 32)
            seen = torch.cat([told, plain.clamp(-1.5, 1.5), levels], dim=1)
            blend, rest = self.join(seen).split([1, 3], dim=1)
            return (output[0] - snr.sqrt() * (blend * (picture - plain) + rest), *output[1:])

        handle = generator.unet.register_forward_hook(move)
        try:
            yield generator
        finally:
            handle.remove()


def _block(channels: int, out: int, *, stride: int = 1, up: int = 1) -> list[nn.Module]:
    """Convolutions from `channels` to `out` channels, on half or on twice the height and width."""
    first = [nn.Upsample(scale_factor=up)] if up > 1 else []
    last = [nn.Conv2d(out, out, 3, stride, padding=1), nn.GroupNorm(6, out), nn.SiLU()]
    one = [nn.Conv2d(channels, out, 3, padding=1), nn.GroupNorm(6, out), nn.SiLU()]
    return [*first, *one, *(last if stride > 1 else [])]


def _zero(layer: nn.Linear | nn.Conv2d) -> nn.Linear | nn.Conv2d:
    """The layer with weights and bias at zero."""
    nn.init.zeros_(layer.weight)
    nn.init.zeros_(layer.bias)
    return layer
