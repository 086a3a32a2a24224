"""The networks of the estimators: potentials, statistics of patterns, and maps of bundles."""

import contextlib
import math
from collections.abc import Iterator
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn.functional import silu, softplus

from lib.geometry.boxes import cells
from lib.geometry.checks import Values, as_tensor, occupied


@contextlib.contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Weights drawn inside follow the seed; the global generator is left as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        yield


def perceptron(*sizes: int) -> nn.Sequential:
    """Linear layers between these sizes, SiLU units between them."""
    layers = [part for pair in pairwise(sizes) for part in (nn.Linear(*pair), nn.SiLU())]
    return nn.Sequential(*layers[:-1])


class PotentialNetwork(nn.Module):
    """φ(θ) = scale · per_site(s), s = θ rescaled to [−1, 1]^d: what all potentials here share.

    lower, upper: (d,) corners of the rescaled region. scale: size of φ, e.g. the number of sites.
    """

    def __init__(self, lower: Values, upper: Values, scale: float, seed: int, **sizes: int):
        super().__init__()
        lower, upper = [float(a) for a in lower], [float(a) for a in upper]
        self.config = dict(lower=lower, upper=upper, scale=float(scale), seed=seed, **sizes)
        low, high = (torch.tensor(a, dtype=torch.float64) for a in (lower, upper))
        self.register_buffer("centre", (low + high) / 2)
        self.register_buffer("radius", (high - low) / 2)

    def per_site(self, s: Tensor) -> Tensor:
        """φ / scale at rescaled inputs s of shape (n, d), shape (n,)."""
        raise NotImplementedError

    def rescale(self, theta: Tensor) -> Tensor:
        """θ to s in [−1, 1]^d, in the precision of the weights."""
        return ((theta - self.centre) / self.radius).to(next(self.parameters()).dtype)

    def forward(self, theta: Values) -> Tensor:
        """φ(θ) for θ of shape (n, d), shape (n,)."""
        return self.config["scale"] * self.per_site(self.rescale(as_tensor(theta, "theta")))


class ConvexPotential(PotentialNetwork):
    """Smooth convex φ: R^d → R, a two-layer input-convex network of softplus units.

    With s the input rescaled to [−1, 1]^d and σ_κ(a) = log(1 + e^{κa})/κ,

        z₁ = σ_κ(N₁s + b₁),   z₂ = σ_κ(U z₁ + N₂s + b₂),   φ = scale · (v·[z₁, z₂] + c·s),

    convex because U, v ≥ 0. The sharpness κ of each unit is learned as a logarithm: a jump of the
    magnetisation is a thousand times sharper than the smooth part of log Z.
    Source: Amos, Xu, Kolter, Input Convex Neural Networks (2017); sharp units are ours.
    """

    SHARPEST = 30.0  # of the initial units; training may go beyond

    def __init__(self, lower: Values, upper: Values, scale: float, width: int = 48, seed: int = 0):
        super().__init__(lower, upper, scale, seed, width=width)
        generator, d = torch.Generator().manual_seed(seed), len(self.centre)
        normal = torch.randn(2, width, d, generator=generator)
        normal = normal / normal.norm(dim=-1, keepdim=True)
        through = torch.rand(2, width, d, generator=generator) * 2 - 1
        sharpness = torch.rand(2, width, generator=generator) * math.log(self.SHARPEST)
        mixing = torch.randn(width, width, generator=generator) * 0.3
        even = math.log(math.expm1(1 / width))  # softplus(even) = 1 / width
        self.normal = nn.Parameter(normal)
        self.offset = nn.Parameter(-(normal * through).sum(-1))
        self.log_sharpness = nn.Parameter(sharpness)
        self.mixing = nn.Parameter(mixing + even)
        self.weight = nn.Parameter(torch.full((2 * width,), even))
        self.slope = nn.Parameter(torch.zeros(d))

    def per_site(self, s: Tensor) -> Tensor:
        """φ / scale at rescaled inputs s of shape (n, d), shape (n,)."""
        kappa = self.log_sharpness.exp()
        first = softplus(kappa[0] * (s @ self.normal[0].T + self.offset[0])) / kappa[0]
        lifted = first @ softplus(self.mixing).T + s @ self.normal[1].T + self.offset[1]
        second = softplus(kappa[1] * lifted) / kappa[1]
        return torch.cat([first, second], -1) @ softplus(self.weight) + s @ self.slope

    def roughness(self) -> Tensor:
        """Sum over units of their squared peak curvature v²κ² (up to 1/16), per site.

        A jump needs a sharp unit and pays for it; ripples that nothing demands are ironed out.
        """
        peaks = softplus(self.weight) * self.log_sharpness.flatten().exp()
        return peaks.square().sum()


class FreePotential(PotentialNetwork):
    """Smooth φ: R^d → R with no constraint, a two-layer perceptron of SiLU units.

    Whether its Hessian is positive is left to the data, as in the paper, whose ReLU units have no
    Hessian at all.
    """

    def __init__(self, lower: Values, upper: Values, scale: float, width: int = 48, seed: int = 0):
        super().__init__(lower, upper, scale, seed, width=width)
        with seeded(seed):
            self.layers = perceptron(len(self.centre), width, width, 1)

    def per_site(self, s: Tensor) -> Tensor:
        """φ / scale at rescaled inputs s of shape (n, d), shape (n,)."""
        return self.layers(s)[:, 0]


def check_windows(samples: Tensor) -> None:
    """Refuse what has no local windows: neither chains nor lattices, or too short ones."""
    if samples.ndim not in (2, 3) or min(samples.shape[1:]) < 3:
        raise ValueError(
            f"samples have shape {tuple(samples.shape)}: windows are read from chains (n, N) or "
            "lattices (n, L, L) of at least 3 sites a side; give network= for anything else"
        )


def window_counts(samples: Tensor) -> Tensor:
    """Relative frequency of each local pattern of a two-state system, (n, 512) or (n, 8).

    Patterns are 3 x 3 windows of a periodic lattice (n, L, L) or 3-site windows of an open chain
    (n, N), states as of `occupied`. A convolution on binary sites followed by pointwise layers and
    a mean is a function of these counts: they are counted once, and no network sees the lattice
    again.
    """
    check_windows(samples)
    lattice = samples.ndim == 3
    bits = 9 if lattice else 3
    counts = []
    for block in occupied(samples).split(1024):
        up = block.to(torch.int16)
        if lattice:
            shifted = [up.roll((-i, -j), (1, 2)) for i in range(3) for j in range(3)]
        else:
            shifted = [up[:, i : up.shape[1] - 2 + i] for i in range(3)]
        code = sum(state << k for k, state in enumerate(shifted)).flatten(1).long()
        code = code + torch.arange(len(code), device=code.device)[:, None] * 2**bits
        count = code.flatten().bincount(minlength=len(block) * 2**bits)
        counts.append(count.view(len(block), -1).float() / code.shape[1])
    return torch.cat(counts)


class LocalStatistic(nn.Module):
    """f(x)/sites from window counts: the mean over sites of a learned function of the window.

    u: a small network on the bits of a window; f = Σ_windows count · u(window), additive like an
    energy. `collective=True` passes the mean through a further network, for systems whose statistic
    is not a sum of local terms. The gain is learned as a logarithm, so that the size of f is found
    in a few steps.
    """

    def __init__(self, lattice_dim: int, d: int, collective: bool = False, seed: int = 0):
        super().__init__()
        self.config = dict(lattice_dim=lattice_dim, d=d, collective=collective, seed=seed)
        bits = 3**lattice_dim
        with seeded(seed):
            self.u = perceptron(bits, 32, 32, 8 if collective else d)
            self.head = perceptron(8, 32, 32, d) if collective else None
        self.gain = nn.Parameter(torch.zeros(d))
        states = (torch.arange(2**bits)[:, None] >> torch.arange(bits)) & 1
        self.register_buffer("windows", states * 2.0 - 1)

    def forward(self, counts: Tensor) -> Tensor:
        """Counts (n, 2^bits) to f/sites (n, d)."""
        mean = counts @ self.u(self.windows)
        f = mean if self.head is None else self.head(mean)
        return self.gain.exp() * f


class BundleNetwork(nn.Module):
    """Bundles (n, K · channels, h, w) to logits Σ_k a_k(f̄) b_k(t) over the cells, (n, g, g).

    f̄ is the mean, over sites and members, of the sample and of each convolution of it; b is read
    from the coordinates of the cells. Of an exponential family this sum is log p(t|x), with a
    linear in f̄ and (θ, K log Z) among the b, up to what belongs to x alone.

    Three parts of the usual U-Net cost accuracy here. Members as channels make it learn one
    statistic K times over. Batch statistics of samples from all over the box stir each of them, and
    a sample normalised by itself has lost its magnetisation. An expanding half speaks of sites, and
    a map is indexed by parameters. K log Z spans hundreds of nats and is wanted to a tenth of one,
    which takes the depth of b.

    channels: of one sample. width: of the first convolution; later ones are twice as wide.
    periodic: the lattice is a torus, whose bonds across the edge count as well.
    Source: Lobashev et al. 2025, section 3, has a U²-Net of 44 M parameters in this place.
    """

    def __init__(
        self,
        channels: int,
        grid: int,
        *,
        width: int = 16,
        depth: int = 2,
        periodic: bool = False,
        seed: int = 0,
    ):
        super().__init__()
        self.config = dict(channels=channels, grid=grid, width=width, depth=depth)
        self.config |= dict(periodic=periodic, seed=seed)
        sizes = [channels, width, *[2 * width] * (depth - 1)]
        edge = "circular" if periodic else "zeros"
        with seeded(seed):
            self.convolutions = nn.ModuleList(
                nn.Conv2d(i, o, 3, padding=1, padding_mode=edge) for i, o in pairwise(sizes)
            )
            self.a = perceptron(sum(sizes), 96, 96)
            self.b = perceptron(2, 96, 96, 96, 96)
        self.register_buffer("cells", 2 * cells(grid).float() - 1)

    def forward(self, bundles: Tensor) -> Tensor:
        """Logits of the maps."""
        members = bundles.unflatten(1, (-1, self.config["channels"]))
        x = members.flatten(0, 1)
        means = [x.mean((2, 3))]
        for convolution in self.convolutions:
            x = silu(convolution(x))
            means.append(x.mean((2, 3)))
        f = torch.cat(means, 1).unflatten(0, members.shape[:2]).mean(1)
        grid = self.config["grid"]
        return (self.a(f) @ self.b(self.cells).T).view(-1, grid, grid)
