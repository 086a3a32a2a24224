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
    """What held-out images score: mean (k,) and inverse covariance (k, k) of `statistics`, limit.

    limit: the squared Mahalanobis distance above which an image is no longer known.
    """

    mean: Tensor
    precision: Tensor
    limit: float


def statistics(images: Tensor, latents: Tensor, back: Tensor) -> Tensor:
    """Log error of the way back, and of the latents mean, log deviation, correlations; (n, 6).

    images, back: (n, c, h, w); latents: (n, *latent_shape). Noise has mean 0, deviation 1, and no
    correlation of neighbours below or beside each other, nor of channels.
    """
    z = latents.double()
    unit = (z - z.mean((1, 2, 3), keepdim=True)) / z.std((1, 2, 3), keepdim=True)
    error = (back.clamp(-1, 1) - images).double().abs().mean((1, 2, 3))
    return torch.stack(
        [
            error.clamp(min=1e-6).log(),
            z.mean((1, 2, 3)),
            z.std((1, 2, 3)).log(),
            (unit[..., 1:] * unit[..., :-1]).mean((1, 2, 3)),
            (unit[..., 1:, :] * unit[..., :-1, :]).mean((1, 2, 3)),
            (unit * unit.roll(1, 1)).mean((1, 2, 3)),
        ],
        1,
    )


def reference(generator: Generator, images: Tensor, *, share: float = 0.005) -> Reference:
    """What held-out images (n, c, h, w) in [-1, 1] of the model's family score.

    The limit is where a Gaussian with their moments would flag `share` of them, or the largest of
    their own distances where that is more. Takes STEPS steps each way, refined twice.
    """
    latents = invert(generator, images, steps=STEPS)
    back = ddim(generator, latents, steps=STEPS)
    rows = statistics(images.cpu(), latents.cpu(), back.cpu())
    mean, ridge = rows.mean(0), 1e-9 * torch.eye(rows.shape[1], dtype=rows.dtype)
    precision = torch.linalg.inv(torch.cov(rows.T) + ridge)
    quantile = float(chi2.isf(share, rows.shape[1]))
    largest = float(_distances(rows, Reference(mean, precision, quantile)).max())
    return Reference(mean, precision, max(quantile, largest))


def distances(generator: Generator, images: Tensor, latents: Tensor, known: Reference) -> Tensor:
    """Squared Mahalanobis distance of images (n, c, h, w) from the held-out ones, (n,).

    latents: those of `sampling.invert(generator, images, steps=STEPS)`.
    """
    back = ddim(generator, latents, steps=STEPS)
    return _distances(statistics(images.cpu(), latents.cpu(), back.cpu()), known)


def _distances(rows: Tensor, known: Reference) -> Tensor:
    apart = rows - known.mean
    return ((apart @ known.precision) * apart).sum(1)


def warn(
    generator: Generator, images: Tensor, latents: Tensor, known: Reference | None = None
) -> Tensor:
    """Which of the images the model knows, (n,) bool; warns of the others by their numbers.

    known: by default the reference that lies beside the model's edits. Raises ValueError where
    there is none for this model.
    """
    known = shipped(generator) if known is None else known
    fine = distances(generator, images, latents, known) <= known.limit
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
    kept = {"owner": generator.weight_hash, "mean": known.mean.tolist()}
    kept |= {"precision": known.precision.tolist(), "limit": known.limit}
    partial = path.with_name(f"{path.name}.{os.getpid()}.part")
    partial.write_text(json.dumps(kept, indent=1) + "\n")
    os.replace(partial, path)
    return path


def shipped(generator: Generator) -> Reference:
    """The reference that lies beside the edits of the embedded model; ValueError for another."""
    kept = json.loads(SHIPPED.read_text())
    if kept["owner"] != generator.weight_hash:
        raise ValueError(
            f"no held-out images of {generator.source or 'this model'} are on record: give "
            "known=familiar.reference(generator, images), from a few hundred of its family"
        )
    mean, precision = (torch.tensor(kept[k], dtype=torch.float64) for k in ("mean", "precision"))
    return Reference(mean, precision, kept["limit"])
