"""When a diffusion model decides: clones of one noisy image, and how far two classes are apart.

Biroli, Bonnaire, de Bortoli and Mézard (Nature Communications 15:9957, 2024): two stochastic runs
from one x_t agree on a class by chance before the speciation time, and always after it.
"""

import numpy as np
import torch
from torch import Tensor

from lib.diffusion.models import Generator, unit_normal
from lib.diffusion.sampling import ddim
from lib.intervals import Values, as_array


def clones(
    generator: Generator, images: Tensor, t: int, *, steps: int, seed: int = 0, **options: object
) -> tuple[Tensor, Tensor]:
    """Two ancestral runs (eta = 1) from one noised copy of each clean latent (n, c, h, w).

    x_t = √α x₀ + √(1 − α) z with z of (seed, row); the runs differ in their noise alone. t: taken
    at the nearest grid point. options as in `ddim`.
    """
    noise = torch.stack([unit_normal(generator.latent_shape, seed, i) for i in range(len(images))])
    alpha, images = generator.alpha(t), images.to(generator.device, generator.dtype)
    x = alpha**0.5 * images + (1 - alpha) ** 0.5 * noise.to(images)
    run = {"steps": steps, "start": t, "eta": 1.0, **options}
    first, second = (ddim(generator, x, seed=2 * seed + k + 1, **run) for k in (0, 1))
    return first, second


def clone_agreement(separation: Values, share: float = 0.5) -> np.ndarray:
    """φ(D): probability that two draws of the class given x_t agree, of the shape of D.

    φ = E[p² + (1 − p)²] with logit p = logit(share) ± D² / 2 + D g, g standard normal: two Gaussian
    classes D deviations apart, the first with probability `share`. φ(2) = .775 for equal classes,
    φ(0) = share² + (1 − share)². Raises ValueError for a share outside (0, 1) and negative D.
    """
    d = as_array(separation)[..., None]
    if not 0 < share < 1 or (d < 0).any():
        raise ValueError(f"share = {share}, D from {d.min()}: give a share in (0, 1), and D >= 0")
    nodes, weights = np.polynomial.hermite_e.hermegauss(80)
    own = 0.0
    for sign, part in ((1, share), (-1, 1 - share)):
        logit = np.log(share / (1 - share)) + sign * d**2 / 2 + d * nodes
        p = 1 / (1 + np.exp(-logit.clip(-700, 700)))
        own = own + part * ((p**2 + (1 - p) ** 2) @ weights) / weights.sum()
    return own


def separation(images: Values, labels: Values, alphas: Values, *, seed: int = 0) -> np.ndarray:
    """D(t), (T,): how many deviations two classes are apart in x_t, at cumulative products alphas.

    D² = α δᵀ (α Σ + (1 − α) I)⁻¹ δ with δ the difference of the class means and Σ the covariance
    within classes. The discriminant is found on one half of the images (n, ...) and measured on the
    other, and the two ways round are averaged: a lower bound, since it is fitted to n / 2 images.
    labels: (n,) booleans. Raises ValueError for a half with fewer than two images of a class.
    """
    x = torch.as_tensor(images).flatten(1).double()
    has, alphas = torch.as_tensor(as_array(labels) > 0, device=x.device), as_array(alphas)
    order = torch.from_numpy(np.random.default_rng(seed).permutation(len(x)))
    halves = [_classes(x[part], has[part]) for part in order.tensor_split(2)]
    found = [_separated(*a, *b, alphas) for a, b in (halves, halves[::-1])]
    return np.mean(found, 0).clip(min=0)


def _classes(x: Tensor, has: Tensor) -> tuple[Tensor, Tensor]:
    """Difference of the class means (d,) and rows centred within their classes (n, d)."""
    sizes = int(has.sum()), int((~has).sum())
    if min(sizes) < 2:
        raise ValueError(f"a half holds {sizes} images with and without: two of each at least")
    means = x[has].mean(0), x[~has].mean(0)
    return means[0] - means[1], x - torch.where(has[:, None], means[0], means[1])


def _separated(
    delta: Tensor, rows: Tensor, other: Tensor, other_rows: Tensor, alphas: np.ndarray
) -> np.ndarray:
    """√α w·δ' / √(wᵀ (α Σ' + 1 − α) w), w the discriminant of one half, δ', Σ' of the other."""
    basis, s, _ = torch.linalg.svd(rows.T, full_matrices=False)
    variances, inside = s.square() / len(rows), basis.T @ delta
    rest, values = delta - basis @ inside, []
    for a in alphas.tolist():
        w = basis @ (inside / (a * variances + 1 - a)) + rest / (1 - a)
        spread = a * (other_rows @ w).square().mean() + (1 - a) * w.square().sum()
        values.append(float(a**0.5 * (w @ other) / spread.sqrt()))
    return np.array(values)
