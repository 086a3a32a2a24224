"""Posterior maps p(t|x) on a square grid: by a trained network, or from distances of features.

A map is an array (g, g) over equal cells of the box, `map[i, j]` the probability of the cell with
centre lower + ((i, j) + 1/2) / g · (upper − lower), summing to one. The prior is uniform.
"""

import math
from dataclasses import dataclass

import numpy as np
import torch
from scipy.spatial import cKDTree
from torch import Tensor, nn
from torch.nn.functional import one_hot

from lib.geometry.boxes import as_box, cell_centres, cells, in_box, unit_square, warn_uneven
from lib.geometry.checks import Values, as_tensor, require_whole, trainable
from lib.geometry.descent import Descent, progress, subnormals_flushed
from lib.geometry.networks import BundleNetwork, seeded

ROWS = 256  # maps evaluated at once


def _log_maps(network: nn.Module, bundles: Tensor, grid: int) -> Tensor:
    """Log-softmax over the cells, (n, g, g), in single precision."""
    logits = network(bundles)
    if logits.shape != (len(bundles), grid, grid):
        raise ValueError(
            f"network returned logits of shape {tuple(logits.shape)} for {len(bundles)} bundles; "
            f"expected ({len(bundles)}, {grid}, {grid})"
        )
    return logits.float().flatten(1).log_softmax(1).view_as(logits)


@dataclass
class Posterior:
    """A trained posterior: `.maps(samples, t)`.

    history: "step" and "held_out", cross-entropy with the bumps on a held-out tenth (whose bundles
    are three times as wide), in nats against the uniform map.
    """

    network: nn.Module
    box: Tensor
    grid: int
    bundle: int
    neighbours: int
    seed: int
    history: dict

    @torch.no_grad()
    def maps(self, samples: Values, t: Values) -> Tensor:
        """Posterior maps (n, g, g), float32, one per sample, for its bundle.

        The bundle of a row is drawn from its nearest neighbours among the rows given, itself
        included; the draw depends on the seed and its position alone. Arguments and errors as of
        `fit`.
        """
        part = _Part(samples, t, self.box, self.neighbours)
        members = part.draw(self.bundle, np.random.default_rng(self.seed))
        logs = (_log_maps(self.network, part.stack(b), self.grid) for b in members.split(ROWS))
        return torch.cat([log.exp() for log in logs])


def fit(
    samples: Values,
    t: Values,
    *,
    box: Values,
    grid: int,
    bundle: int = 4,
    neighbours: int = 8,
    bump: float | None,
    network: nn.Module | None = None,
    seed: int = 0,
    steps: int = 1000,
    batch: int = 64,
    rate: float = 3e-3,
) -> Posterior:
    """Train a network to map a bundle of samples to the posterior of its parameter.

    A bundle is `bundle` samples drawn without replacement from the `neighbours` nearest in the unit
    square, the sample itself included. The loss is the cross-entropy with the mean of the bumps of
    its members, exp(−|u − u_k|² / 2 bump²) normalised on the grid, u in the unit square. At its
    minimum the map is the posterior blurred by the bump, so no curvature above about bump⁻² can be
    recovered.

    samples: (n, h, w), (n, c, h, w), or (n, N) chains, folded row by row into a square.
    t: (n, 2), drawn uniformly from the box (2, 2). grid: cells per axis.
    bump: width in units of the box; the paper has 1/50 (Ising) and 1/150 (TASEP), None is one cell.
    network: (n, bundle · c, h, w) -> logits (n, grid, grid), e.g. a wider `BundleNetwork`; a copy
    is trained, in mixed precision and compiled where there is a GPU.
    Raises ValueError on samples outside the box, lengths that differ, chains that fill no square,
    a bundle larger than its neighbourhood, or fewer samples than two neighbourhoods.
    Source: Lobashev et al. 2025, section 3; sizes from the released code.
    """
    samples, t, box = as_tensor(samples, "samples"), as_tensor(t, "t"), as_box(box)
    warn_uneven(*in_box(t, box))
    _check_sizes(len(samples), bundle, neighbours, bump)
    require_whole(1, steps=steps)
    require_whole(2, grid=grid, batch=batch)
    require_whole(0, seed=seed)
    shuffle = torch.from_numpy(np.random.default_rng(seed).permutation(len(samples)))
    held = max(len(samples) // 10, neighbours)
    halves = shuffle[held:], shuffle[:held]  # neighbours within each
    parts = [_Part(samples, t, box, neighbours, rows) for rows in halves]
    if network is None:
        network = BundleNetwork(parts[0].planes.shape[1], grid, seed=seed)
    history = {"step": [], "held_out": []}
    few = parts[1].draw(bundle, np.random.default_rng(seed))[:4]
    network = trainable(network, parts[1].stack(few), (grid, grid))
    posterior = Posterior(network, box, grid, bundle, neighbours, seed, history)
    with subnormals_flushed():
        _train(posterior, *parts, Descent(network.parameters(), rate, steps), batch, bump)
    network.eval()
    return posterior


class _Part:
    """Samples as planes (n, c, h, w), places u in the unit square, and who is near whom."""

    def __init__(
        self,
        samples: Values,
        t: Values,
        box: Tensor,
        neighbours: int,
        rows: Tensor | slice = slice(None),
    ):
        samples, u = as_tensor(samples, "samples"), unit_square(t, box)
        if len(samples) != len(u):
            raise ValueError(f"{len(samples)} samples but {len(u)} rows of t; give one for each")
        self.planes, self.u = _planes(samples[rows]), u[rows].cpu()
        if not self.planes.isfinite().all():
            raise ValueError("samples has entries that are not finite; remove or mend them")
        if neighbours > len(self.u):
            raise ValueError(
                f"neighbours={neighbours} but only {len(self.u)} samples to draw them from; "
                "give more samples or fewer neighbours"
            )
        near = cKDTree(self.u.numpy()).query(self.u.numpy(), neighbours)[1]
        self.near = torch.from_numpy(near.reshape(-1, neighbours))

    def draw(self, bundle: int, generator: np.random.Generator, size: int | None = None) -> Tensor:
        """Members, without replacement, of the bundles of all or of `size` random rows."""
        near = self.near
        if size is not None:
            near = near[torch.from_numpy(generator.integers(len(near), size=size))]
        order = torch.from_numpy(generator.random(near.shape)).argsort(1)[:, :bundle]
        return near.gather(1, order)

    def stack(self, members: Tensor) -> Tensor:
        """Bundles (b, bundle · c, h, w) as channels."""
        return self.planes[members.to(self.planes.device)].flatten(1, 2).float()

    def targets(self, members: Tensor, grid: int, bump: float | None) -> Tensor:
        """Mean of the bumps of the members, (b, g, g)."""
        return _bumps(self.u[members], grid, bump).mean(1).float().to(self.planes.device)


def _train(
    posterior: Posterior,
    training: _Part,
    held_out: _Part,
    descent: Descent,
    batch: int,
    bump: float | None,
) -> None:
    """Descend the cross-entropy; each step draws from its own generator."""
    network, seed = posterior.network, posterior.seed
    on_gpu = training.planes.is_cuda
    forward = torch.compile(network) if on_gpu else network
    watched = held_out.draw(posterior.bundle, np.random.default_rng(seed))[:1024]

    def loss(part: _Part, members: Tensor) -> Tensor:
        with torch.autocast(part.planes.device.type, torch.bfloat16, enabled=on_gpu):
            log_maps = _log_maps(forward, part.stack(members), posterior.grid)
        targets = part.targets(members, posterior.grid, bump)
        return -(targets * log_maps).sum((1, 2)).mean()

    def drawn_loss(step: int) -> Tensor:
        generator = np.random.default_rng([seed, step - 1])
        with seeded(seed + step):  # what a network draws itself, as in dropout
            return loss(training, training.draw(posterior.bundle, generator, batch))

    def watch(step: int) -> None:
        network.eval()
        with torch.no_grad():
            nats = loss(held_out, watched).item() - 2 * math.log(posterior.grid)
        posterior.history["step"].append(step)
        posterior.history["held_out"].append(nats)
        network.train()

    network.train()
    with progress("posterior", descent.steps) as bar:
        descent.run(drawn_loss, watch, bar=bar)


def from_features(
    features: Values,
    t: Values,
    *,
    box: Values,
    grid: int,
    density: bool = True,
    count: float = 1.0,
) -> Tensor:
    """Posterior maps from distances of features, assuming them Gaussian, E(x) ~ N(μ(t), I).

    p(t|x_1..x_N) ∝ prior(t) exp(−N/2 |E − μ(t)|²), E the mean feature of the N samples; the
    Fisher metric is then JᵀJ, J = ∂μ/∂t. μ at the centre of a cell is a local linear regression of
    the features with the weights of the bilinear splat, so neither the number of samples near a
    cell nor a slope of that number moves it.

    features: (n, F) in units of their standard deviation at fixed t; for a deterministic generator
    the unit is a choice. t: (n, 2). box: (2, 2). grid: cells per axis.
    density: divide the sampling density out, a uniform prior; False keeps it as the prior.
    count: N; below one it is a temperature, for features sharper than the grid can show.
    Returns (n, g, g). Raises ValueError on features of zero length or not finite, lengths that
    differ, samples outside the box, count <= 0, and over half of the cells empty.
    Source: Lobashev et al. 2025, Eq. 18-19; the regression is ours.
    """
    require_whole(2, grid=grid)
    if not count > 0:
        raise ValueError(f"count={count}; give a positive number")
    features, u = _features(features), unit_square(t, box)
    if len(features) != len(u):
        raise ValueError(f"{len(features)} features but {len(u)} rows of t; give one for each")
    mean, weight = _feature_surface(features, u.to(features), grid)
    prior = 0 if density else weight.log()
    distances = (torch.cdist(block, mean).square() for block in features.split(ROWS))
    maps = torch.cat([(prior - count / 2 * square).softmax(1) for square in distances])
    return maps.view(-1, grid, grid)


def _features(features: Values) -> Tensor:
    """Checked features, as floats."""
    features = as_tensor(features, "features")
    features = features.to(torch.promote_types(features.dtype, torch.float32))
    length = features.norm(dim=1) if features.ndim == 2 else torch.zeros(1)
    if not (length > 0).all() or not length.isfinite().all():
        bad = int((~((length > 0) & length.isfinite())).nonzero()[0])
        raise ValueError(
            f"features has shape {tuple(features.shape)} and norm {length[bad].item()} in row "
            f"{bad}; give (n, F), each row finite and not zero (a zero row is a failed embedding)"
        )
    return features


def _feature_surface(features: Tensor, u: Tensor, grid: int) -> tuple[Tensor, Tensor]:
    """Features at the centres of the cells, (g², F), and the weight of samples there, (g²,)."""
    place = u * grid - 0.5
    corner = place.floor().clamp(0, grid - 2)
    within = (place - corner).clamp(0, 1)
    moments = features.new_zeros(grid**2, 3, 3)
    products = features.new_zeros(grid**2, 3, features.shape[1])
    for step in torch.cartesian_prod(torch.arange(2), torch.arange(2)).to(u):
        row, column = (corner + step).long().T
        cell = grid * row + column
        weight = torch.where(step > 0, within, 1 - within).prod(1)[:, None]
        design = torch.cat([torch.ones_like(weight), place - corner - step], 1)
        weighted = weight * design
        moments.index_add_(0, cell, weighted[:, :, None] * design[:, None])
        products.index_add_(0, cell, weighted[:, :, None] * features[:, None])
    weight = moments[:, 0, 0].clone()
    empty = weight < 1e-6
    if empty.double().mean() > 0.5:
        raise ValueError(
            f"{int(empty.sum())} of {grid**2} cells have no sample near them ({len(u)} samples); "
            "use a coarser grid, more samples or a smaller box"
        )
    if empty.any():  # they take the feature of the nearest sample
        centres = cells(grid).cpu()[empty.cpu()]
        nearest = torch.from_numpy(cKDTree(u.cpu().numpy()).query(centres)[1]).to(u.device)
        moments[empty] = torch.diag(u.new_tensor([1.0, 0.0, 0.0]))
        products[empty] = 0
        products[empty, 0] = features[nearest]
    # Slopes that the few samples of a cell leave open are zero.
    moments += torch.diag(u.new_tensor([0.0, 1e-3, 1e-3])) * moments[:, :1, :1]
    return torch.linalg.solve(moments, products)[:, 0], weight


def _bumps(u: Tensor, grid: int, bump: float | None) -> Tensor:
    """Normalised Gaussians about u (..., 2) on the grid, (..., g, g); one cell without a bump."""
    if bump is None:
        axes = one_hot((u * grid).long().clamp(max=grid - 1), grid).double()
    else:
        distance = (u[..., None] - cell_centres(grid)) / bump
        axes = (-distance.square() / 2).softmax(-1)
    return axes[..., 0, :, None] * axes[..., 1, None, :]


def _planes(samples: Tensor) -> Tensor:
    """Samples as (n, c, h, w); chains are folded row by row into a square."""
    if samples.ndim == 2:
        side = math.isqrt(samples.shape[1])
        if side**2 != samples.shape[1]:
            raise ValueError(
                f"chains of {samples.shape[1]} sites cannot be folded into a square; use "
                f"{side**2} or {(side + 1) ** 2} sites"
            )
        samples = samples.unflatten(1, (side, side))
    if samples.ndim not in (3, 4):
        raise ValueError(
            f"samples has shape {tuple(samples.shape)}; give (n, N), (n, h, w) or (n, c, h, w)"
        )
    return samples if samples.ndim == 4 else samples[:, None]


def _check_sizes(n: int, bundle: int, neighbours: int, bump: float | None) -> None:
    """Refuse bundles that n samples cannot fill, and widths that are none."""
    require_whole(1, bundle=bundle, neighbours=neighbours)
    if bundle > neighbours:
        raise ValueError(
            f"bundle={bundle}, neighbours={neighbours}: a bundle is drawn without replacement, so "
            "it has at most as many members as the neighbourhood"
        )
    if n < 2 * neighbours:
        raise ValueError(
            f"{n} samples are too few for neighbours={neighbours} in both the training and the "
            "held-out part; give at least twice as many"
        )
    if bump is not None and not 0 < bump < math.inf:
        raise ValueError(f"bump={bump}; give a positive width in units of the box, or None")
