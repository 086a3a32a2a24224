"""The networks of the direct estimator: a convex potential and a statistic of patterns."""

import math

import torch
from torch import Tensor, nn
from torch.nn.functional import softplus


class ConvexPotential(nn.Module):
    """Smooth convex φ: R^d → R, a two-layer input-convex network of softplus units.

    With s the input rescaled to [−1, 1]^d and σ_κ(a) = log(1 + e^{κa})/κ,

        z₁ = σ_κ(N₁s + b₁),   z₂ = σ_κ(U z₁ + N₂s + b₂),   φ = scale · (v·[z₁, z₂] + c·s),

    convex because U, v ≥ 0. The sharpness κ of each unit is learned as a logarithm: a jump of the
    magnetisation is a thousand times sharper than the smooth part of log Z.

    lower, upper: (d,) corners of the rescaled region. scale: size of φ, e.g. the number of sites.
    Source: Amos, Xu, Kolter, Input Convex Neural Networks (2017); sharp units are ours.
    """

    SHARPEST = 30.0  # of the initial units; training may go beyond

    def __init__(self, lower, upper, scale: float, width: int = 48, seed: int = 0):
        super().__init__()
        lower, upper = [float(a) for a in lower], [float(a) for a in upper]
        self.config = dict(lower=lower, upper=upper, scale=float(scale), width=width, seed=seed)
        low, high = (torch.tensor(a, dtype=torch.float64) for a in (lower, upper))
        self.register_buffer("centre", (low + high) / 2)
        self.register_buffer("radius", (high - low) / 2)
        generator, d = torch.Generator().manual_seed(seed), len(lower)
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

    def rescale(self, theta: Tensor) -> Tensor:
        """θ to s in [−1, 1]^d, in the precision of the weights."""
        return ((theta - self.centre) / self.radius).to(self.slope.dtype)

    def forward(self, theta: Tensor) -> Tensor:
        """φ(θ) for θ of shape (n, d), shape (n,)."""
        theta = torch.as_tensor(theta)
        return self.config["scale"] * self.per_site(self.rescale(theta))


class FreePotential(ConvexPotential):
    """Smooth φ: R^d → R with no constraint, a two-layer perceptron of SiLU units.

    The interface of `ConvexPotential`; whether its Hessian is positive is left to the data, as in
    the paper, whose ReLU units have no Hessian at all.
    """

    def __init__(self, lower, upper, scale: float, width: int = 48, seed: int = 0):
        super().__init__(lower, upper, scale, width, seed)
        d = len(self.config["lower"])
        for name in ("normal", "offset", "log_sharpness", "mixing", "weight", "slope"):
            delattr(self, name)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.layers = nn.Sequential(
                nn.Linear(d, width), nn.SiLU(), nn.Linear(width, width), nn.SiLU()
            )
            self.read = nn.Linear(width, 1)

    def per_site(self, s: Tensor) -> Tensor:
        """φ / scale at rescaled inputs s of shape (n, d), shape (n,)."""
        return self.read(self.layers(s))[:, 0]

    def rescale(self, theta: Tensor) -> Tensor:
        """θ to s in [−1, 1]^d, in the precision of the weights."""
        return ((theta - self.centre) / self.radius).to(self.read.weight.dtype)


def window_counts(samples: Tensor) -> Tensor:
    """Relative frequency of each local pattern of a two-state system, (n, 512) or (n, 8).

    Patterns are 3 x 3 windows of a periodic lattice (n, L, L) or 3-site windows of an open chain
    (n, N); the upper state is the positive one. A convolution on binary sites followed by pointwise
    layers and a mean is a function of these counts, so they are counted once and the network never
    sees the lattice again.
    """
    lattice = samples.ndim == 3
    bits = 9 if lattice else 3
    counts = []
    for block in samples.split(1024):
        up = (block > 0).to(torch.int16)
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
    energy. `collective=True` passes the mean through a further network, for systems whose
    statistic is not a sum of local terms (a driven chain far from equilibrium). The gain is learned
    as a logarithm, so that the size of f is found in a few steps.
    """

    def __init__(self, lattice_dim: int, d: int, collective: bool = False, seed: int = 0):
        super().__init__()
        self.config = dict(lattice_dim=lattice_dim, d=d, collective=collective, seed=seed)
        bits = 3**lattice_dim
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.u = _mlp(bits, 8 if collective else d)
            self.head = _mlp(8, d) if collective else None
        self.gain = nn.Parameter(torch.zeros(d))
        states = (torch.arange(2**bits)[:, None] >> torch.arange(bits)) & 1
        self.register_buffer("windows", states * 2.0 - 1)

    def forward(self, counts: Tensor) -> Tensor:
        """Counts (n, 2^bits) to f/sites (n, d)."""
        mean = counts @ self.u(self.windows)
        f = mean if self.head is None else self.head(mean)
        return self.gain.exp() * f


def _mlp(inputs: int, outputs: int, hidden: int = 32) -> nn.Sequential:
    return nn.Sequential(
        nn.Linear(inputs, hidden),
        nn.SiLU(),
        nn.Linear(hidden, hidden),
        nn.SiLU(),
        nn.Linear(hidden, outputs),
    )
