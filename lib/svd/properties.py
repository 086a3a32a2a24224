"""Three claims about the SVD of latents as statistics, each with what chance or shared noise gives.

P1 small neighbourhood: subspaces of nearby steps are close. P2 encoded attributes: one atom moves
one attribute. P3 mobility in order: coarse attributes lead at noisier steps than fine ones
(Wang et al. 2025, arXiv 2502.02225, whose statistics are not published; these are ours).
"""

import functools
import warnings
from collections.abc import Callable, Mapping, Sequence

import numpy as np
import torch
from numpy.typing import ArrayLike
from scipy import stats
from torch import Tensor

from lib.diffusion.models import Generator, unit_normal
from lib.diffusion.sampling import CLEAN, ddim, invert, time_grid
from lib.intervals import as_numpy, bootstrap
from lib.svd.atoms import (
    DegenerateWarning,
    aligned_atom,
    as_latents,
    decompose,
    grassmann_distance,
    random_distance,
    random_subspaces,
)


def trajectory(generator: Generator, noise: Tensor, *, steps: int, **options: object) -> Tensor:
    """Latents at all `times` of a sampling run, then the clean ones, (steps + 1, n, c, h, w).

    options: as in `ddim`.
    """
    run = functools.partial(ddim, generator, noise, steps=steps, decode=False)
    return _seen(generator, run, times(generator, steps), -1, len(noise), options)


def inverse_trajectory(
    generator: Generator, images: Tensor, *, steps: int, **options: object
) -> Tensor:
    """The same order of latents for given images, by inversion, (steps + 1, n, ...)."""
    run = functools.partial(invert, generator, images, steps=steps)
    return _seen(generator, run, [*times(generator, steps), CLEAN], 0, len(images), options)


def _seen(
    generator: Generator, run: Callable, order: list[int], last: int, n: int, options: dict
) -> Tensor:
    """What a run passes through, by the place of its time in `order`; what it returns at `last`."""
    rows = len(order) + (CLEAN not in order)
    seen = torch.empty(
        (rows, n, *generator.latent_shape), dtype=generator.dtype, device=generator.device
    )

    def keep(x: Tensor, t: int, eps: Tensor, rows: slice) -> None:
        seen[order.index(t)][rows] = x

    seen[last] = run(callback=keep, **options)
    return seen


def times(generator: Generator, steps: int) -> list[int]:
    """The training times of a trajectory, falling."""
    return time_grid(steps, len(generator.alphas))[::-1]


def straight_path(clean: Tensor, noise: Tensor, alphas: Sequence[float]) -> Tensor:
    """√α clean + √(1 - α) noise at each α, (len(alphas), n, ...): P1 without a model."""
    rows = [a**0.5 * clean + (1 - a) ** 0.5 * noise for a in alphas]
    return torch.stack(rows)


def fresh_path(clean: Tensor, alphas: Sequence[float], *, seed: int) -> Tensor:
    """The same with new noise at each α: nothing is shared but the clean latent."""
    draw = lambda i, j: unit_normal(clean.shape[1:], seed, i, j)  # noqa: E731
    noise = [torch.stack([draw(i, j) for j in range(len(clean))]) for i in range(len(alphas))]
    pairs = zip(alphas, noise, strict=True)
    return torch.stack([a**0.5 * clean + (1 - a) ** 0.5 * n.to(clean) for a, n in pairs])


def subspace_distance(a: Tensor, b: Tensor, *, k: int) -> Tensor:
    """Grassmann distance of the top-k atoms, mean of the U and V sides and of the channels.

    a, b: latents (..., c, h, w); returns (...), in radians; compare with `atoms.random_distance`.
    """
    with warnings.catch_warnings():  # ties far below the k-th value do not touch the subspaces
        warnings.simplefilter("ignore", DegenerateWarning)
        (U, _, Vh), (U2, _, Vh2) = decompose(a), decompose(b)
    left = grassmann_distance(U[..., :k], U2[..., :k])
    right = grassmann_distance(Vh[..., :k, :].mT, Vh2[..., :k, :].mT)
    return ((left + right) / 2).mean(-1)


def neighbourhood(
    path: Tensor, alphas: Sequence[float], *, k: int, seed: int
) -> dict[str, np.ndarray]:
    """ρ1 = d(W_t, W_t') / d_rand of neighbouring times by the route between them, (steps, n) each.

    path: a trajectory (steps + 1, n, c, h, w), alphas: of its first `steps` rows. Routes: "model";
    "straight path" between the same ends and "fresh noise" on the same image, which no model has
    seen; "other seed", the distance to another trajectory at the same time.
    """
    levels, unit = [*alphas, 1.0], random_distance(path.shape[-1], k)[0]
    routes = {
        "model": path,
        "straight path": straight_path(path[-1], path[0], levels),
        "fresh noise": fresh_path(path[-1], levels, seed=seed),
    }
    rho = {name: subspace_distance(x[:-1], x[1:], k=k) for name, x in routes.items()}
    rho["other seed"] = subspace_distance(path, path.roll(1, 1), k=k)[:-1]
    return {name: d.cpu().numpy() / unit for name, d in rho.items()}


def random_move(latents: Tensor, eta: float, *, seed: int, alike: bool = False) -> Tensor:
    """x + η ‖x‖_F a bᵀ per channel with random unit a, b: the null of an energy-matched move.

    alike: one a and b for all channels of a latent, which the largest atoms nearly are.
    """
    x = as_latents(latents)
    n, c, h, w = x.shape
    draw = torch.stack([unit_normal((1 if alike else c, h + w), seed, i) for i in range(n)]).to(x)
    a, b = (part / part.norm(dim=-1, keepdim=True) for part in (draw[..., :h], draw[..., h:]))
    size = eta * torch.linalg.matrix_norm(x, keepdim=True)
    return x + size * a[..., None] * b[..., None, :]


def scrambled(pattern: Tensor, *, seed: int = 0) -> Tensor:
    """The pattern (n, c, h, w) with rows and columns permuted: equal singular values, no place."""
    rng = np.random.default_rng(seed)
    rows, columns = (torch.from_numpy(rng.permutation(size)) for size in pattern.shape[-2:])
    return pattern[..., rows, :][..., columns]


def pattern_ranks(latents: Tensor, pattern: Tensor) -> Tensor:
    """Rank, 1 the largest, of the atom nearest to a pattern, mean over channels, (...).

    latents: (..., c, h, w); pattern: (n, c, h, w), the paired difference image.
    """
    with warnings.catch_warnings():  # two tied atoms have neighbouring ranks
        warnings.simplefilter("ignore", DegenerateWarning)
        index, _ = aligned_atom(latents, pattern.expand_as(latents))
    return (index + 1).double().mean(-1)


def followed(
    path: Tensor,
    pairs: Mapping[str, Sequence[Tensor]],
    showing: Mapping[str, Tensor],
    alphas: Sequence[float],
    *,
    seed: int,
) -> dict[str, dict[str, Tensor]]:
    """{kind: {attribute: ranks (steps - 1, n)}} of the atom nearest to each attribute's pattern.

    pairs: {attribute: images without and with it}, whose difference is the pattern. Kinds: "drawn",
    the columns of the sampled trajectory path (steps + 1, m, ...) that are `showing` it (m,) bool,
    or the first if none is, against the mean pattern; "noised" and "without", the images with and
    without it in fresh noise at `alphas` (steps,). All but the last time, where tails are tied.
    """
    ranks = {"drawn": {}, "noised": {}, "without": {}}
    for name, (without, present) in pairs.items():
        own, pattern = showing[name], present - without
        own = path[:-2, own] if own.any() else path[:-2, :1]
        ranks["drawn"][name] = pattern_ranks(own, pattern.mean(0, keepdim=True))
        for kind, images in (("noised", present), ("without", without)):
            ranks[kind][name] = pattern_ranks(fresh_path(images, alphas[:-1], seed=seed), pattern)
    return ranks


def first_rank_time(ranks: Tensor, grid: Sequence[int], *, rank: float = 3) -> Tensor:
    """Largest training time at which the rank is at most `rank`, for each column of ranks (t, n).

    grid: the training times of the rows; -1 where it never is.
    """
    found = torch.as_tensor(grid, device=ranks.device)[:, None].expand(ranks.shape)
    return torch.where(ranks <= rank, found, -1).amax(0)


def crossing(ranks: ArrayLike, grid: Sequence[int], *, rank: float = 3) -> int:
    """`first_rank_time` of the median over the columns of ranks (t, n): half of them are there."""
    middle = torch.from_numpy(np.median(as_numpy(ranks), axis=1))
    return int(first_rank_time(middle[:, None], grid, rank=rank))


def crossed(ranks: Tensor, grid: Sequence[int]) -> tuple[float, float]:
    """`crossing` of ranks (t, n) and its error over faces and by the grid, in units of T = 1000."""
    at = lambda rows: crossing(rows.T, grid) / 1000  # noqa: E731
    found = bootstrap(as_numpy(ranks).T, statistic=at, draws=200)
    spacing = (grid[0] - grid[1]) / 1000
    return found.value, (found.error**2 + spacing**2 / 12) ** 0.5


def rank_order(ranks: Tensor, grid: Sequence[int]) -> np.ndarray:
    """Kendall's τ of rank and time for each column of ranks (t, n): positive, the atom rises."""
    return np.array([np.nan_to_num(stats.kendalltau(row, grid)[0]) for row in as_numpy(ranks).T])


def planted_overlaps(
    size: int, ratios: Sequence[float], draws: int, *, seed: int = 0
) -> np.ndarray:
    """Squared overlaps (ratios, draws) of a planted vector with the top one found in noise.

    θ = ratio · √size in size × size noise; `atoms.bbp_overlap` is what they tend to.
    """
    u, v = (random_subspaces(size, 1, draws, seed=seed, first=f) for f in (0, draws))
    noise = torch.stack([unit_normal((size, size), seed + 1, i) for i in range(draws)]).double()
    top = [decompose(r * size**0.5 * u @ v.mT + noise)[0][..., :1] for r in ratios]
    return torch.stack([(t.mT @ u).square().flatten() for t in top]).numpy()


def signal(pattern: Tensor) -> Tensor:
    """θ, the largest singular value of a pattern (n, c, h, w), mean over channels, (n,)."""
    return torch.linalg.svdvals(pattern.double())[..., 0].mean(-1)
