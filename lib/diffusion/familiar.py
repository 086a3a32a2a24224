"""Does a model know these images? Their way to noise and back, against held-out ones.

A model turns any image into latents, and a stranger into latents that are no noise: what comes back
is garish, and edits do nothing to it, in silence.
"""

import json
import os
import warnings
from pathlib import Path
from typing import NamedTuple

import torch
from scipy.stats import chi2
from torch import Tensor

from lib.diffusion.folders import MODELS
from lib.diffusion.models import Generator
from lib.diffusion.sampling import ddim, invert

STEPS = 20
SHIPPED = MODELS / "hspace" / "familiar.json"


class Reference(NamedTuple):
    """Held-out images: mean (k,) and inverse covariance (k, k) of their `statistics`, and limits.

    limit: of the squared Mahalanobis distance; error: of the mean error of the way back.
    """

    mean: Tensor
    precision: Tensor
    limit: float
    error: float


def statistics(latents: Tensor) -> Tensor:
    """Mean, log deviation and correlations of latents (n, c, h, w), (n, 5).

    Noise has mean 0, deviation 1, and no correlation of neighbours beside and below each other, nor
    of channels.
    """
    z = latents.double()
    unit = (z - z.mean((1, 2, 3), keepdim=True)) / z.std((1, 2, 3), keepdim=True)
    pairs = (
        unit[..., 1:] * unit[..., :-1],
        unit[..., 1:, :] * unit[..., :-1, :],
        unit * unit.roll(1, 1),
    )
    own = [z.mean((1, 2, 3)), z.std((1, 2, 3)).log(), *(p.mean((1, 2, 3)) for p in pairs)]
    return torch.stack(own, 1).cpu()


def reference(generator: Generator, images: Tensor) -> Reference:
    """What held-out images (n, c, h, w) in [-1, 1] of the model's family score.

    The limits are half as much again as the largest error of the images, and as their largest
    distance, or what one in 200 exceeds where the statistics are Gaussian.
    """
    latents = invert(generator, images, steps=STEPS)
    rows = statistics(latents)
    precision = torch.linalg.inv(torch.cov(rows.T) + 1e-9 * torch.eye(rows.shape[1]))
    largest = _squared(rows, rows.mean(0), precision).max()
    limit = 1.5 * max(float(chi2.isf(0.005, rows.shape[1])), float(largest))
    error = 1.5 * float(_errors(generator, images, latents).max())
    return Reference(rows.mean(0), precision, limit, error)


def strangeness(generator: Generator, images: Tensor, latents: Tensor, known: Reference) -> Tensor:
    """The larger of distance and error of images (n, c, h, w), as shares of their limits, (n,).

    latents: those of `sampling.invert(generator, images, steps=STEPS)`.
    """
    apart = _squared(statistics(latents), known.mean, known.precision) / known.limit
    return torch.maximum(apart, _errors(generator, images, latents) / known.error)


def _squared(rows: Tensor, mean: Tensor, precision: Tensor) -> Tensor:
    return (((rows - mean) @ precision) * (rows - mean)).sum(1)


def _errors(generator: Generator, images: Tensor, latents: Tensor) -> Tensor:
    back = ddim(generator, latents, steps=STEPS).clamp(-1, 1).cpu()
    return (back - images.cpu()).double().abs().mean((1, 2, 3))


def warn(
    generator: Generator, images: Tensor, latents: Tensor, known: Reference | None = None
) -> Tensor:
    """Which of the images the model knows, (n,) bool; warns of the others by their numbers.

    known: by default the reference that lies beside the model's edits. Raises ValueError where
    there is none for this model.
    """
    known = shipped(generator) if known is None else known
    fine = strangeness(generator, images, latents, known) <= 1
    if not bool(fine.all()):
        rows = ", ".join(str(int(i)) for i in (~fine).nonzero()[:, 0])
        warnings.warn(
            f"images {rows} (from 0) lie outside what {generator.source or 'the model'} knows: "
            "what comes back differs, or their latents are no noise; edits of them mean little",
            stacklevel=2,
        )
    return fine


def save(generator: Generator, known: Reference, path: Path) -> Path:
    """Write a reference as JSON, with the hash of its model."""
    kept = known._replace(mean=known.mean.tolist(), precision=known.precision.tolist())
    partial = path.with_name(f"{path.name}.{os.getpid()}.part")
    partial.write_text(json.dumps({"owner": generator.weight_hash, **kept._asdict()}, indent=1))
    os.replace(partial, path)
    return path


def shipped(generator: Generator) -> Reference:
    """The reference that lies beside the edits of the embedded model; ValueError for another."""
    kept = json.loads(SHIPPED.read_text())
    if kept.pop("owner") != generator.weight_hash:
        raise ValueError(
            f"no held-out images of {generator.source or 'this model'} are on record: give "
            "known=familiar.reference(generator, images), from a few hundred of its family"
        )
    of = lambda name: torch.tensor(kept.pop(name), dtype=torch.float64)  # noqa: E731
    return Reference(of("mean"), of("precision"), **kept)
