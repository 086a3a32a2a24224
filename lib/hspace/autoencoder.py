"""The Diffusion Autoencoder (Preechakul et al. 2022): a semantic code z beside the noise x_T.

The method before Asyrp: an encoder gives each image a code, the U-Net's prediction takes it in,
inversion with it gives the noise, and a linear classifier on the codes edits. The U-Net stays as it
is, as in Zhang, Zhao and Lin (2022), who train such a code in a fraction of the time.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional

from lib.diffusion import folders
from lib.diffusion.models import Generator
from lib.diffusion.sampling import ddim, in_batches, invert, rows_per_call

NAME, WIDTH = "avatars-dae", 64


class Autoencoder(nn.Module):
    """An encoder of images to codes z (n, 64), and what z adds to the prediction of a pixel U-Net.

    P' = P + m (y − P) + r, that is ε' = ε − sqrt(α / (1 − α)) (P' − P): y is the picture that z
    alone gives, its part in the leading principal components of the faces, and (m, r) come from a
    small network that sees z, y, P and the noise level. z is that part in units of its deviation,
    and what the encoder has learned to add. m = r = 0 at first: the U-Net alone, bit for bit.
    """

    def __init__(self, generator: Generator) -> None:
        super().__init__()
        self._base = (generator,)  # in a tuple: no weights of ours
        channels, size, _ = generator.latent_shape
        pixels, coarse = channels * size**2, size // 8
        self.register_buffer("mean", torch.zeros(pixels))
        self.register_buffer("axes", torch.zeros(pixels, WIDTH))
        self.encoder = nn.Sequential(
            *_block(channels, 24, stride=2), *_block(24, 48, stride=2), *_block(48, 96, stride=2),
            nn.Flatten(), _zero(nn.Linear(96 * coarse**2, WIDTH)),
        )  # fmt: skip
        self.decoder = nn.Sequential(
            nn.Linear(WIDTH, 96 * coarse**2), nn.SiLU(), nn.Unflatten(1, (96, coarse, coarse)),
            *_block(96, 96, up=2), *_block(96, 48, up=2), *_block(48, 24, up=2),
        )  # fmt: skip
        self.join = nn.Sequential(
            nn.Conv2d(24 + 2 * channels + 2, 32, 3, padding=1), nn.SiLU(),
            nn.Conv2d(32, 32, 3, padding=1), nn.SiLU(),
            _zero(nn.Conv2d(32, 1 + channels, 3, padding=1)),
        )  # fmt: skip
        self.to(generator.device, generator.dtype)

    @property
    def base(self) -> Generator:
        """The model whose U-Net takes the code."""
        return self._base[0]

    @torch.no_grad()
    def fit_axes(self, images: Tensor) -> None:
        """Take the mean and the 64 leading components of these images, (n, c, h, w), n > 64."""
        x = images.flatten(1)
        self.mean.copy_(x.mean(0))
        _, values, vectors = torch.pca_lowrank(x - self.mean, WIDTH, center=False, niter=4)
        self.axes.copy_(vectors * len(x) ** 0.5 / values)

    def encode(self, images: Tensor) -> Tensor:
        """Codes (n, 64) of images (n, c, h, w)."""
        return (images.flatten(1) - self.mean) @ self.axes + self.encoder(images)

    def forward(self, noisy: Tensor, t: Tensor, images: Tensor) -> Tensor:
        """ε'(x_t, t, z) with the code of the clean images themselves, for training."""
        with self.conditioned(self.encode(images)):
            return self.base.unet(noisy, t, return_dict=False)[0]

    @contextmanager
    def conditioned(self, code: Tensor) -> Iterator[Generator]:
        """In the block, the U-Net of the generator takes n rows, and these codes (n, 64)."""
        generator = self.base
        picture = self.mean + code @ (self.axes / self.axes.square().sum(0).clamp(min=1e-12)).T
        picture = picture.view(-1, *generator.latent_shape)
        told = torch.cat([self.decoder(code), picture], dim=1)

        def move(module: nn.Module, args: tuple, output: tuple) -> tuple:
            x, t = args[:2]
            alpha = generator.alphas.to(x.device)[t].view(-1, 1, 1, 1)  # float64: 1 − α cancels
            signal, noise = (part.sqrt().to(x.dtype) for part in (alpha, 1 - alpha))
            level, plain = 2 * (signal / noise).log(), (x - noise * output[0]) / signal
            levels = torch.cat([level / 4, (level / 4).sigmoid()], dim=1)
            levels = levels.expand(-1, -1, *x.shape[2:])
            seen = torch.cat([told, plain.clamp(-1.5, 1.5), levels], dim=1)
            blend, rest = self.join(seen).split([1, x.shape[1]], dim=1)
            change = blend * (picture - plain) + rest
            return (output[0] - signal / noise * change, *output[1:])

        handle = generator.unet.register_forward_hook(move)
        try:
            yield generator
        finally:
            handle.remove()

    @property
    def weight_hash(self) -> str:
        """SHA-256 (16 hex digits) of the weights and of the model that they belong to."""
        return folders.weight_hash(self.state_dict().items(), self.base.weight_hash)


class Coded(NamedTuple):
    """What an image becomes: its code z (n, 64) and, with that code, its noise x_T."""

    code: Tensor
    latents: Tensor


@torch.no_grad()
def codes(model: Autoencoder, images: Tensor) -> Tensor:
    """Codes (n, 64) of any number of images; raises ValueError as `Generator.encode` does."""
    return torch.cat([model.encode(part) for part in model.base.check_images(images).split(256)])


def invert_images(model: Autoencoder, images: Tensor, *, steps: int, refine: int = 2) -> Coded:
    """Codes of images (n, c, h, w) in [−1, 1], and by inversion with them the noise.

    Raises ValueError as `sampling.invert` does.
    """
    code, own = codes(model, images), {"steps": steps, "refine": refine}
    return Coded(code, _in_rows(model, code, images, lambda g, x: invert(g, x, **own)))


def decode(model: Autoencoder, code: Tensor, latents: Tensor, *, steps: int) -> Tensor:
    """Images (n, c, h, w) of codes (n, 64) and noise of their shape, not clipped.

    Raises ValueError as `sampling.ddim` does, and for another number of codes.
    """
    return _in_rows(model, code, latents, lambda g, x: ddim(g, x, steps=steps))


def edit(
    model: Autoencoder, coded: Coded, change: Tensor, *, steps: int, strength: float = 1.0
) -> Tensor:
    """Images of the codes z + strength · change and the same noise.

    change: (64,), as `direction` finds it. Strength 0 gives the images back, but for the error of
    the inversion.
    """
    return decode(model, coded.code + strength * change, coded.latents, steps=steps)


def direction(codes: Tensor, has: Tensor, *, decay: float = 1e-3) -> Tensor:
    """σ w / |w| (64,): w of a linear classifier on the standardised codes (n, 64).

    has: (n,) bool. Logistic regression with decay |w|² / 2 added; the paper leaves it out and stops
    early. Raises ValueError where all images have the attribute, or none.
    """
    if not 0 < int(has.sum()) < len(has) or has.shape != codes.shape[:1]:
        raise ValueError(
            f"{int(has.sum())} of {len(codes)} codes have the attribute ({tuple(has.shape)} "
            "labels); give one label for each, and examples of both kinds"
        )
    spread, truth = codes.std(0), has.to(codes)
    z = torch.nn.functional.pad((codes - codes.mean(0)) / spread, (0, 1), value=1.0)
    w = z.new_zeros(z.shape[1], requires_grad=True)
    solver = torch.optim.LBFGS([w], max_iter=200, line_search_fn="strong_wolfe")

    def loss() -> Tensor:
        solver.zero_grad()
        value = functional.binary_cross_entropy_with_logits(z @ w, truth)
        value = value + decay / 2 * w[:-1].square().sum()
        value.backward()
        return value

    solver.step(loss)
    w = w.detach()[:-1]
    return spread * w / w.norm()


def _in_rows(
    model: Autoencoder, code: Tensor, x: Tensor, run: Callable[[Generator, Tensor], Tensor]
) -> Tensor:
    """run(generator, rows of x) with the codes of these rows."""
    if code.shape != (len(x), WIDTH):
        raise ValueError(f"codes {tuple(code.shape)} for {len(x)} rows; give ({len(x)}, {WIDTH})")

    def part(rows: slice) -> Tensor:
        with torch.no_grad(), model.conditioned(code[rows]) as generator:
            return run(generator, x[rows])

    return in_batches(part, len(x), rows_per_call(model.base, None))


def save(model: Autoencoder, folder: Path) -> None:
    """Write model.safetensors in half precision, with the hash of its U-Net's model."""
    state = {
        name: value.detach().cpu().half().contiguous() for name, value in model.state_dict().items()
    }
    owner = {"owner": model.base.weight_hash}
    save_file(state, Path(folder) / "model.safetensors", owner)


def load(generator: Generator, folder: Path = folders.MODELS / NAME) -> Autoencoder:
    """The shipped autoencoder, frozen; raises ValueError for another generator, a damaged file."""
    path, model = Path(folder) / "model.safetensors", Autoencoder(generator)
    state, notes = folders.read_tensors(path)
    owner = notes.get("owner")
    if owner != generator.weight_hash:
        raise ValueError(
            f"{path} was trained on the model with weights {owner}, and this is "
            f"{generator.weight_hash}; load avatars-ddpm, or train it on this model"
        )
    model.load_state_dict(state)
    return model.eval().requires_grad_(False)


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
