"""log Z from features of samples: principal components, the paper's two steps, one step."""

import torch
from torch import Tensor, nn

from lib.geometry.boxes import cells
from lib.geometry.checks import Values, as_tensor
from lib.geometry.posterior import from_features
from lib.geometry.potential import fit_direct
from lib.geometry.swaps import fit_swaps
from lib.geometry.two_step import centroids, fit_posteriors

WIDTH = 48  # of the potential's network


def components(samples: Values, k: int = 64, *, seed: int = 0) -> tuple[Tensor, float]:
    """Principal components (n, k) of samples (n, ...) in units of their spread, and the spread.

    The spread is the root of the mean squared distance from the mean.
    """
    x = as_tensor(samples, "samples").flatten(1).cpu()
    x = x - x.mean(0)
    torch.manual_seed(seed)  # the decomposition is randomised
    _, s, v = torch.svd_lowrank(x, q=min(k, *x.shape), niter=4)
    spread = float((s.square().sum() / len(x)).sqrt())
    return x @ v / spread, spread


def from_posteriors(
    features: Values, t: Values, *, box: Values, grid: int, steps: int
) -> tuple[nn.Module, float]:
    """log Z by the paper's two steps: maps of features in units of their noise, then the potential.

    Maps are taken at their centroids. Also the median width of the maps per axis, the resolution of
    the estimate. Raises as `from_features` and `fit_posteriors`.
    """
    maps = from_features(features, t, box=box, grid=grid)
    middle, places = centroids(maps, box), cells(grid).to(maps.device)
    second = maps.double().flatten(1) @ places.square()
    width = float((second - middle.square()).clamp(min=0).mean(1).sqrt().median())
    return fit_posteriors(maps, middle, box=box, steps=steps, width=WIDTH).potential, width


def from_noisy(
    features: Values, t: Values, sigma: float, *, box: Values, grid: int, steps: int, seed: int = 0
) -> nn.Module:
    """log Z in one step, `fit_direct`: maximum likelihood from four noisy copies of each feature.

    sigma: deviation of the noise. (Copies of one row land on both sides of the held-out split, so
    early stopping sees less than it seems to.)
    """
    clean = as_tensor(features, "features").repeat(4, 1)
    noise = torch.randn(clean.shape, generator=torch.Generator().manual_seed(seed))
    torch.manual_seed(seed)
    network = nn.Sequential(nn.Linear(clean.shape[1], 64), nn.SiLU(), nn.Linear(64, 2))
    noisy = (clean + sigma * noise.to(clean)) / clean.std()
    t = as_tensor(t, "t").repeat(4, 1)
    own = {"network": network, "seed": seed, "steps": steps}
    return fit_direct(noisy, t, box=box, grid=grid, **own).potential


def from_swaps(features: Values, t: Values) -> nn.Module:
    """log Z of the statistic that is linear in the features and in their squares, by `fit_swaps`.

    The eight leading components and their products: a Gaussian of moving mean needs the squares.
    """
    z = as_tensor(features, "features").double()[:, :8]
    rows, columns = torch.triu_indices(z.shape[1], z.shape[1])
    return fit_swaps(torch.cat([z, z[:, rows] * z[:, columns]], 1), t).potential
