"""Are generated faces as good as the data: complete, not washed out, not copied?

Scores come from judge a and from pixels; nothing here is trained on generated images or controls.
Images are float32 in [−1, 1], shape (n, 3, h, w).
"""

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from lib.faces import judge

SATURATED = 0.75
COMPONENTS = 400


def blurred(images: Tensor, sigma: float) -> Tensor:
    """Images convolved with a Gaussian of standard deviation `sigma` pixels, edges repeated."""
    reach = math.ceil(3 * sigma)
    kernel = torch.exp(-0.5 * (torch.arange(-reach, reach + 1) / sigma) ** 2)
    kernel = (kernel / kernel.sum()).to(images)
    channels = images.shape[1]
    padded = F.pad(images, (reach,) * 4, mode="replicate")
    across = F.conv2d(padded, kernel.expand(channels, 1, 1, -1), groups=channels)
    return F.conv2d(across, kernel[:, None].expand(channels, 1, -1, 1), groups=channels)


def noisy(images: Tensor, sigma: float, *, seed: int = 0) -> Tensor:
    """Images plus white noise of standard deviation `sigma`, clamped to [−1, 1]."""
    noise = torch.randn(images.shape, generator=torch.Generator().manual_seed(seed))
    return (images + sigma * noise.to(images)).clamp(-1, 1)


def spliced(images: Tensor) -> Tensor:
    """The left half of every image beside the right half of the next one."""
    half = images.shape[-1] // 2
    return torch.cat([images[..., :half], images.roll(-1, 0)[..., half:]], -1)


def saturated(images: Tensor) -> Tensor:
    """True where the absolute mean of an image exceeds 0.75: all but white or black, (n,) bool."""
    return images.mean((1, 2, 3)).abs() > SATURATED


def chroma(images: Tensor, where: Tensor | None = None) -> Tensor:
    """Mean distance of the colours from grey, (n,): √(rg² + yb²), rg = R − G, yb = (R + G)/2 − B.

    The opponent colours of Hasler and Süsstrunk (2003). White teeth and black outlines have none,
    however hard they are clamped. where: bool (n, h, w), the pixels that count; all by default.
    """
    r, g, b = images.double().unbind(1)
    size = ((r - g).square() + ((r + g) / 2 - b).square()).sqrt()
    weight = torch.ones_like(size) if where is None else where.to(size)
    return (size * weight).sum((1, 2)) / weight.sum((1, 2)).clamp(min=1)


@torch.no_grad()
def completeness(
    faces: Tensor, *, components: int = COMPONENTS, family: Any = judge
) -> Callable[[Tensor], Tensor]:
    """A score fitted to rendered `faces`: images (n, c, h, w) -> log-density (n,) + const.

    Statistics y of an image (means over a 2 × 2 grid and root mean squares of every channel in the
    first three stages of judge a, and the logarithmic size of the first and second differences of
    its pixels), standardised, given the attributes o that the judge reads off the same image:

        y | o ~ N(W o, Σ),   Σ = the leading principal components of the residuals plus σ² I,

    probabilistic principal components (Tipping and Bishop 1999) of what the attributes leave open.
    family: the module of the judges, that of the faces or of the garments.
    Raises ValueError for fewer than twice as many faces as components, or images the judge refuses.
    """
    if len(faces) < 2 * components:
        raise ValueError(
            f"{len(faces)} faces for {components} components; give at least {2 * components}"
        )
    y, o = _statistics(faces, family)
    mean, scale = y.mean(0), y.std(0) + 1e-4
    weights = torch.linalg.lstsq(o, (y - mean) / scale, driver="gelsd").solution
    residual = (y - mean) / scale - o @ weights
    _, values, basis = torch.linalg.svd(residual, full_matrices=False)
    variance = values.square() / len(residual)
    basis, leading, rest = basis[:components], variance[:components], variance[components:].mean()

    @torch.no_grad()
    def score(images: Tensor) -> Tensor:
        y, o = _statistics(images, family)
        residual = (y - mean) / scale - o @ weights
        inside = residual @ basis.T
        outside = residual.square().sum(1) - inside.square().sum(1)
        return -0.5 * ((inside.square() / leading).sum(1) + outside / rest)

    return score


def _statistics(images: Tensor, family: Any) -> tuple[Tensor, Tensor]:
    """Statistics y (n, k) and one-hot read attributes with a constant (n, m)."""
    parts = [_part(part, family) for part in images.split(256)]
    return tuple(torch.cat(column) for column in zip(*parts, strict=True))


def _part(images: Tensor, family: Any) -> tuple[Tensor, Tensor]:
    maps = family.load("a", device=images.device).layers(images)[:3]
    means = [F.adaptive_avg_pool2d(f, 2).flatten(1) for f in maps]
    sizes = [f.square().mean((2, 3)).sqrt() for f in maps]
    slopes = [images.diff(n=n, dim=dim).flatten(2) for n in (1, 2) for dim in (-1, -2)]
    edges = [s.square().mean(2).clamp(min=1e-8).log() for s in slopes]
    read = family.logits(images).values()
    classes = [F.one_hot(z.argmax(1), z.shape[1]) for z in read]
    constant = torch.ones(len(images), 1, device=images.device)
    return torch.cat([*means, *sizes, *edges], 1).double(), torch.cat(
        [constant, *classes], 1
    ).double()


def nearest_distance(images: Tensor, reference: Tensor) -> Tensor:
    """Root-mean-square pixel distance to the nearest of `reference` (m, 3, h, w), (n,).
    Raises ValueError when the images of the two sets differ in shape.
    """
    if images.shape[1:] != reference.shape[1:]:
        raise ValueError(
            f"images are {tuple(images.shape[1:])}, reference {tuple(reference.shape[1:])}; "
            "resize one of them"
        )
    x = images.flatten(1)
    best = torch.full((len(x),), math.inf, device=x.device)
    for part in reference.flatten(1).split(4096):
        best = torch.minimum(best, torch.cdist(x, part.to(x)).amin(1))
    return best / x.shape[1] ** 0.5
