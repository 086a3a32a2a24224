"""Attribute Vector Integration (AVI): join the top atoms of two latents with new coefficients.

Per channel, y = Ũ diag(s) Ṽᵀ + x_tail with Ũ = [U_x, U_z], Ṽ = [V_x, V_z] cut at k atoms each. Our
reconstruction: Wang et al. 2025 (arXiv 2502.02225) publish neither code nor the losses' form.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from math import isfinite, sqrt
from numbers import Integral

import torch
from torch import Tensor, nn

from lib.intervals import Values
from lib.svd.atoms import as_latents, compose, decompose

Weights = Sequence[float]
Bases = tuple[Tensor, Tensor]
WEIGHTS = (1.0, 1.0, 0.1, 0.1)  # L1 target, L2 source, L3 target values, L4 source values
WIDTH = 64  # of the hidden layers of the network


@dataclass(frozen=True)
class AtomPair:
    """The k largest atoms of a source x and of a target z, float64, per channel.

    left (..., h, 2k), right (..., w, 2k), values (..., 2k) = (s_x, s_z); x, z and tail (..., h, w),
    where tail is what the edit keeps of x beside its atoms, or zero.
    """

    left: Tensor
    right: Tensor
    values: Tensor
    x: Tensor
    z: Tensor
    tail: Tensor

    @property
    def k(self) -> int:
        """Atoms of each of the two."""
        return self.values.shape[-1] // 2

    @property
    def pixels(self) -> int:
        """h w, the entries of one channel."""
        return self.x.shape[-2] * self.x.shape[-1]

    @property
    def gram(self) -> Tensor:
        """G_ij = (ũ_i·ũ_j)(ṽ_i·ṽ_j), (..., 2k, 2k), with eigenvalues in 0 ... 2.

        ‖Σ s_i ũ_i ṽ_iᵀ‖² = sᵀ G s.
        """
        return (self.left.mT @ self.left) * (self.right.mT @ self.right)

    def project(self, latents: Tensor) -> Tensor:
        """b_i = ũ_iᵀ latents ṽ_i, (..., 2k)."""
        return ((self.left.mT @ latents) * self.right.mT).sum(-1)

    def latents(self, values: Tensor) -> Tensor:
        """y = Ũ diag(values) Ṽᵀ + tail, (..., h, w)."""
        return compose(self.left, values, self.right.mT) + self.tail

    def edit(self, values: Tensor, strength: float = 1.0) -> Tensor:
        """Latents at (1 - strength)(s_x, 0) + strength · values: x at 0, the whole edit at 1.

        Without the tail, strength 0 gives the top k atoms of x.
        """
        if not isfinite(strength):
            raise ValueError(f"strength = {strength}; give a real number, 0 source ... 1 edit")
        source = torch.cat(
            [self.values[..., : self.k], torch.zeros_like(values[..., self.k :])], -1
        )
        return self.latents(source + strength * (values - source))


def atom_pair(
    x: Values, z: Values, *, k: int, keep_tail: bool = True, bases: Bases | None = None
) -> AtomPair:
    """Cut source x and target z, both (..., h, w), to their k largest atoms.

    keep_tail: keep Σ_{i>k} of x in the edit, and fit the atoms to what the tail leaves. bases:
    fixed orthonormal (h, h) and (w, w), columns as vectors, in place of each latent's own singular
    vectors; an atom is then a pair of columns, ordered by the size of its coefficient.
    Raises ValueError for different shapes, values not finite, or k outside 1 ... min(h, w).
    """
    x, z = as_latents(x, "x").double(), as_latents(z, "z").double()
    if x.shape != z.shape:
        raise ValueError(f"x is {tuple(x.shape)}, z {tuple(z.shape)}; give latents of one model")
    if not isinstance(k, Integral) or not 1 <= k <= min(x.shape[-2:]):
        raise ValueError(f"k = {k} atoms of {tuple(x.shape[-2:])}: use 1 ... {min(x.shape[-2:])}")
    (ux, sx, vx), (uz, sz, vz) = (_top_atoms(part, k, bases) for part in (x, z))
    tail = x - compose(ux, sx, vx.mT) if keep_tail else torch.zeros_like(x)
    return AtomPair(
        torch.cat([ux, uz], -1), torch.cat([vx, vz], -1), torch.cat([sx, sz], -1), x, z, tail
    )


def reference_values(
    pair: AtomPair, weights: Weights = WEIGHTS, reference: str = "mixed", omega: float | None = None
) -> Tensor:
    """Coefficients (..., 2k) that L3 and L4 pull to.

    "mixed": ((1 - ω) s_x, ω s_z), those of plain interpolation; ω = λ1 / (λ1 + λ2) unless given,
    and an ablation of λ1 or λ2 must give it. "literal": (s_x, s_z), which pulls y towards x + z.
    Raises ValueError for another reference, or weights that are not four finite numbers >= 0.
    """
    omega = _omega(weights, omega)
    if reference not in ("mixed", "literal"):
        raise ValueError(f"reference = {reference!r}: choose 'mixed' or 'literal'")
    if reference == "literal":
        return pair.values
    share = [1 - omega] * pair.k + [omega] * pair.k
    return pair.values * pair.values.new_tensor(share)


def losses(pair: AtomPair, values: Tensor, target: Tensor | None) -> Tensor:
    """The four losses of coefficients (..., 2k), per channel and not yet weighted, (..., 4).

    L1 = mean (y - z)², L2 = mean (y - x)², L3 = ‖ŝ_z - s_z^ref‖² / ‖s_z‖², L4 the same of x.
    target: `reference_values`; None compares spectra instead, ‖σ(y) - σ(z)‖² and ‖σ(y) - σ(x)‖².
    """
    y = pair.latents(values)
    fit = [(y - goal).square().mean((-2, -1)) for goal in (pair.z, pair.x)]
    if target is None:
        sigma = torch.linalg.svdvals(y)
        offs = [sigma - torch.linalg.svdvals(goal) for goal in (pair.z, pair.x)]
    else:
        offs = [(values - target)[..., half] for half in _halves(pair)]
    pull = [off.square().sum(-1) / size for off, size in zip(offs, _energies(pair), strict=True)]
    return torch.stack([*fit, *pull], -1)


def best_values(
    pair: AtomPair, weights: Weights = WEIGHTS, reference: str = "mixed", omega: float | None = None
) -> Tensor:
    """Coefficients (..., 2k) that minimise Σ_j λ_j L_j, in closed form, of any sign.

    [(λ1 + λ2) G + D] s = λ1 b_z + λ2 b_x + D s_ref, where b = Ũᵀ(· - tail)Ṽ on the diagonal and
    D = λ3 h w / ‖s_z‖², λ4 h w / ‖s_x‖² on the two halves. Of several minimisers, the smallest.
    """
    target = reference_values(pair, weights, reference, omega)
    lz, lx, pull_z, pull_x = weights
    diagonal = torch.empty_like(target)
    for half, pull, size in zip(_halves(pair), (pull_z, pull_x), _energies(pair), strict=True):
        diagonal[..., half] = (pull * pair.pixels / size)[..., None]
    matrix = (lz + lx) * pair.gram + torch.diag_embed(diagonal)
    goal = lz * pair.project(pair.z - pair.tail) + lx * pair.project(pair.x - pair.tail)
    right = goal + diagonal * target
    return (torch.linalg.pinv(matrix, hermitian=True) @ right[..., None])[..., 0]


def integrate(
    x: Values,
    z: Values,
    *,
    k: int,
    weights: Weights = WEIGHTS,
    reference: str = "mixed",
    keep_tail: bool = True,
    strength: float = 1.0,
    omega: float | None = None,
    bases: Bases | None = None,
) -> Tensor:
    """AVI latents (..., h, w) of source x and target z at one noise level, in closed form.

    weights (λ1, λ2, λ3, λ4) of the losses target, source, target values, source values; `losses`
    has their formulas, `best_values` the solution. reference, omega: `reference_values`. keep_tail,
    bases: `atom_pair`. strength: 0 returns x, 1 the edit, more extrapolates. At full k, with λ3 =
    λ4 = 0 or the mixed reference, this is (λ1 z + λ2 x) / (λ1 + λ2). Computed in float64, returned
    in the precision of x. Raises ValueError for what these functions refuse.
    """
    pair = atom_pair(x, z, k=k, keep_tail=keep_tail, bases=bases)
    values = best_values(pair, weights, reference, omega)
    return pair.edit(values, strength).to(as_latents(x).dtype)


class AttributeVectorIntegration(nn.Module):
    """The small network that predicts AVI's coefficients, s = ReLU(s_start + scale · f(s_x, s_z)).

    Per channel an MLP 2k - 64 - 64 - 2k with SiLU, in float64, on values over
    scale = √((1 - α) √(hw)), which is free of the noise level. It starts at the mixed reference
    values, or, with start="random", a random step away from them and without the ReLU, since
    coefficients that it sets to zero get no gradient. Trained on one pair it only parametrises
    `best_values`; trained on many seeds it can be applied to others.

    channels, k: of the latents; alpha: cumulative product at their time; weights, reference, omega:
    as in `integrate`, and reference "spectrum", see `losses`. `history` holds the mean loss before
    each training step.
    """

    def __init__(
        self,
        channels: int,
        k: int,
        *,
        alpha: float = 0.0,
        weights: Weights = WEIGHTS,
        reference: str = "mixed",
        omega: float | None = None,
        start: str = "reference",
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.config = {"channels": channels, "k": k, "alpha": alpha, "weights": weights}
        self.config |= {"reference": reference, "omega": omega, "start": start, "seed": seed}
        _omega(weights, omega)
        if min(channels, k) < 1 or not 0 <= alpha < 1:
            raise ValueError("channels and k must be at least 1, and 0 <= alpha < 1")
        choices = {"reference": ("mixed", "literal", "spectrum"), "start": ("reference", "random")}
        for name, allowed in choices.items():
            if self.config[name] not in allowed:
                raise ValueError(f"{name} = {self.config[name]!r}: choose one of {allowed}")
        self.history = torch.zeros(0, dtype=torch.float64)
        sizes, draw = (2 * k, WIDTH, WIDTH, 2 * k), torch.Generator().manual_seed(seed)
        shapes = [(channels, a, b) for a, b in pairwise(sizes)]
        drawn = [torch.randn(s, generator=draw, dtype=torch.float64) / sqrt(s[1]) for s in shapes]
        self.matrices = nn.ParameterList(drawn)
        self.offsets = nn.ParameterList(torch.zeros(channels, s[2]).double() for s in shapes)
        if start == "reference":
            nn.init.zeros_(self.matrices[-1])

    def fit(
        self, x: Values, z: Values, *, steps: int = 1000, lr: float = 1e-3
    ) -> "AttributeVectorIntegration":
        """Train in place on pairs x, z (n, c, h, w), n = 1 as in the paper, by full-batch Adam.

        Returns itself. Raises ValueError for what `atom_pair` refuses, or other channels.
        """
        if steps < 1 or not lr > 0:
            raise ValueError(f"steps = {steps}, lr = {lr}: both must be positive")
        pair = self.pair(x, z)
        self.to(pair.x.device)
        own, optimiser = self.config, torch.optim.Adam(self.parameters(), lr=lr)
        weights, target, history = pair.x.new_tensor(own["weights"]), None, []
        if own["reference"] != "spectrum":
            target = reference_values(pair, own["weights"], own["reference"], own["omega"])
        for _ in range(steps):
            optimiser.zero_grad()
            loss = (losses(pair, self(pair), target) @ weights).mean(0)
            loss.sum().backward()
            optimiser.step()
            history.append(loss.detach().mean())
        self.history = torch.stack(history).cpu()
        return self

    def forward(self, pair: AtomPair) -> Tensor:
        """Coefficients (n, c, 2k) of pairs of latents (n, c, h, w)."""
        own = self.config
        scale = sqrt((1 - own["alpha"]) * sqrt(pair.pixels))
        hidden = pair.values / scale
        for i, (matrix, offset) in enumerate(zip(self.matrices, self.offsets, strict=True)):
            hidden = nn.functional.silu(hidden) if i else hidden
            hidden = torch.einsum("nci,cio->nco", hidden, matrix) + offset
        start = reference_values(pair, own["weights"], "mixed", own["omega"])
        values = start + scale * hidden
        return values.relu() if own["start"] == "reference" else values

    def pair(self, x: Values, z: Values) -> AtomPair:
        """The atoms of x and z, as this network cuts them; raises ValueError for other channels."""
        own = self.config
        pair = atom_pair(x, z, k=own["k"])
        if pair.x.ndim != 4 or pair.x.shape[1] != own["channels"]:
            raise ValueError(
                f"latents are {tuple(pair.x.shape)}; expected (n, {own['channels']}, h, w), the "
                "channels that the network was made for"
            )
        return pair

    @torch.no_grad()
    def integrate(self, x: Values, z: Values, *, strength: float = 1.0) -> Tensor:
        """AVI latents (n, c, h, w) with the network's coefficients, in the precision of x.

        For a transfer, z of one seed's pair joins x of other seeds.
        """
        pair = self.to(as_latents(x).device).pair(x, z)
        return pair.edit(self(pair), strength).to(as_latents(x).dtype)


def _top_atoms(x: Tensor, k: int, bases: Bases | None) -> tuple[Tensor, Tensor, Tensor]:
    """Left vectors (..., h, k), values (..., k) and right vectors (..., w, k) of the k largest."""
    if bases is None:
        U, S, Vh = decompose(x)
        return U[..., :k], S[..., :k], Vh[..., :k, :].mT
    left, right = (as_latents(side, "bases").to(x) for side in bases)
    if (left.shape, right.shape) != tuple((n, n) for n in x.shape[-2:]):
        raise ValueError(f"bases must be (h, h) and (w, w) for latents {tuple(x.shape)}")
    core = (left.mT @ x @ right).flatten(-2)
    index = core.abs().topk(k, -1).indices
    value, width = core.gather(-1, index), x.shape[-1]
    u, v = left.mT[index // width].mT, right.mT[index % width].mT
    return u * torch.where(value < 0, -1.0, 1.0)[..., None, :], value.abs(), v


def _halves(pair: AtomPair) -> tuple[slice, slice]:
    """Where the coefficients of z and of x stand, in the order of L3 and L4."""
    return slice(pair.k, None), slice(None, pair.k)


def _energies(pair: AtomPair) -> list[Tensor]:
    """‖s_z‖² and ‖s_x‖², (...); 1 for an empty channel, which has nothing to pull."""
    sizes = [pair.values[..., half].square().sum(-1) for half in _halves(pair)]
    return [size + (size == 0) for size in sizes]


def _omega(weights: Weights, omega: float | None) -> float:
    """The share of the target in the mixed reference, after checking the weights."""
    weights = [float(w) for w in weights]
    if len(weights) != 4 or not all(isfinite(w) and w >= 0 for w in weights) or not any(weights):
        raise ValueError(f"weights = {weights}: give four finite numbers >= 0, not all of them 0")
    if omega is None and weights[0] + weights[1] == 0:
        raise ValueError(f"weights = {weights} leave the mix open; give omega in 0 ... 1")
    omega = weights[0] / (weights[0] + weights[1]) if omega is None else omega
    if not 0 <= omega <= 1:
        raise ValueError(f"omega = {omega}: choose 0 (source) ... 1 (target)")
    return omega
