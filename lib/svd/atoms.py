"""Singular value decomposition of latents, channel by channel: atoms, subspaces, noise threshold.

A channel is x = Σ_i s_i u_i v_iᵀ with s_1 >= s_2 >= ... >= 0; one term is an atom. Notation and
claims: Wang et al. 2025, arXiv 2502.02225. Bases are constants: no gradient flows through them.
"""

import warnings
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from lib.diffusion.models import real_numbers, unit_normal
from lib.intervals import Values

DEGENERATE = 1e-5  # relative gap; rounding in float32 then turns an atom by about 1e-2
TIE = 1e-3  # entries this close to the largest count as equal to it, or rounding picks the sign


class DegenerateWarning(UserWarning):
    """Two singular values are so close that their atoms are fixed only as a pair."""


@dataclass(frozen=True)
class Track:
    """Atoms followed through time, labelled by their index at the last time.

    index: (steps, ..., r) int64, where the atom stands at each time, 0 the largest. overlap:
    (steps - 1, ..., r), |u·u'||v·v'| between neighbouring times, from 0 to 1.
    """

    index: Tensor
    overlap: Tensor


def as_latents(latents: Values, name: str = "latents") -> Tensor:
    """Finite detached float32 or float64 tensor (..., h, w); other numbers become one of these.

    Raises ValueError for fewer than two axes, an empty axis, and values that are no finite reals.
    """
    x = real_numbers(latents, name).detach()
    if x.dtype not in (torch.float32, torch.float64):
        x = x.float() if x.is_floating_point() else x.double()
    if x.ndim < 2 or x.numel() == 0:
        raise ValueError(f"{name} has shape {tuple(x.shape)}; expected (..., h, w), none of them 0")
    if not bool(x.isfinite().all()):
        where = (~x.isfinite()).nonzero()[0].tolist()
        raise ValueError(f"{name}{where} is not finite; check the sampler or edit that made it")
    return x


def decompose(latents: Values) -> tuple[Tensor, Tensor, Tensor]:
    """Channel-wise reduced SVD with fixed signs, x = U diag(S) Vh.

    latents: (..., h, w), decomposed in float64, as fast on a CPU at these sizes; the parts come
    in the precision of the latents: U (..., h, r), S (..., r) falling, Vh (..., r, w),
    r = min(h, w). Gauge: in each u_i the first of the entries of largest
    magnitude is positive, and v_i follows. Warns (`DegenerateWarning`, with the gap) where
    neighbouring singular values are closer than 1e-5 of the largest. Raises ValueError as
    `as_latents`.
    """
    x = as_latents(latents)
    U, S, Vh = torch.linalg.svd(x.double(), full_matrices=False)
    _warn_degenerate(S)
    sign = _gauge(U)
    return tuple(part.to(x.dtype) for part in (U * sign, S, Vh * sign.mT))


def compose(U: Values, S: Values, Vh: Values) -> Tensor:
    """Latents U diag(S) Vh, (..., h, w), from (..., h, k), (..., k) and (..., k, w).

    Raises ValueError where the three do not fit together.
    """
    U, S, Vh = (torch.as_tensor(part) for part in (U, S, Vh))
    if min(U.ndim, Vh.ndim) < 2 or not U.shape[-1] == S.shape[-1] == Vh.shape[-2]:
        raise ValueError(
            f"shapes U {tuple(U.shape)}, S {tuple(S.shape)}, Vh {tuple(Vh.shape)} do not share k; "
            "expected (..., h, k), (..., k), (..., k, w), as decompose gives them"
        )
    return (U * S.unsqueeze(-2)) @ Vh


def gaps(S: Values) -> Tensor:
    """Distance of each singular value to its nearest neighbour, over the largest one, (..., r).

    Noise of relative size e turns atom i by about e / gap_i; a lone singular value has gap 1.
    """
    S = torch.as_tensor(S)
    step = (S[..., :-1] - S[..., 1:]) / S[..., :1].clamp_min(torch.finfo(S.dtype).tiny)
    edge = torch.ones_like(S[..., :1])
    return torch.minimum(torch.cat([edge, step], -1), torch.cat([step, edge], -1))


def rescale(
    latents: Values, index: Values, factor: Values, *, energy_matched: bool = False, shift: int = 0
) -> Tensor:
    """Change one atom per channel and nothing else.

    Plain: s_i becomes factor · s_i. Energy-matched: x + factor ‖x‖_F u_i v_jᵀ, ‖x‖_F of the
    channel, a signed step of the same size for every atom, since scaling large atoms confounds size
    with meaning; j = i + shift modulo the rank, so that a shift pairs the same vectors wrongly.
    index (integers, 0 the largest atom) and factor broadcast over the leading axes of latents
    (..., h, w): factor (2, 1, 1) scales in the first of three channels only.
    Raises ValueError for an index outside 0 ... r - 1, a factor that is not finite, or a shift of
    a move that is not energy-matched.
    """
    x = as_latents(latents)
    U, S, Vh = decompose(x)
    i, r = torch.as_tensor(index, device=S.device), S.shape[-1]
    if i.is_floating_point() or bool(((i < 0) | (i >= r)).any()):
        raise ValueError(f"index = {i.tolist()}: atoms are numbered 0 ... {r - 1}")
    i, factor = i.long().expand(S.shape[:-1]), torch.as_tensor(factor, dtype=x.dtype).to(x.device)
    if not bool(factor.isfinite().all()) or (shift and not energy_matched):
        raise ValueError(
            f"factor = {factor.tolist()} is not finite, or a shift without energy_matched"
        )
    j = (i + shift) % r
    u = U.gather(-1, i[..., None, None].expand(*U.shape[:-1], 1))
    v = Vh.gather(-2, j[..., None, None].expand(*Vh.shape[:-2], 1, Vh.shape[-1]))
    value = S.gather(-1, i[..., None])[..., 0]
    size = factor * S.norm(dim=-1) if energy_matched else (factor - 1) * value
    return x + size[..., None, None] * u * v


def principal_angles(a: Values, b: Values) -> Tensor:
    """Principal angles between the spans of a and b, (..., k), in radians, rising.

    θ = atan2(sin, cos) with cos = σ(AᵀB) and sin = σ(B - A AᵀB): exact near 0 and near π/2, where
    arccos alone loses half the digits (Björck and Golub 1973). a, b: (..., n, k), orthonormalised
    in float64. Raises ValueError for k > n, different n or k, or columns that are dependent.
    """
    a, b = _basis(a, "a"), _basis(b, "b")
    if a.shape[-2:] != b.shape[-2:]:
        raise ValueError(
            f"a spans {tuple(a.shape[-2:])} (n, k), b {tuple(b.shape[-2:])}; give both the same"
        )
    inner = a.mT @ b
    cos = torch.linalg.svdvals(inner)
    sin = torch.linalg.svdvals(b - a @ inner).flip(-1)
    return torch.atan2(sin, cos)


def grassmann_distance(a: Values, b: Values) -> Tensor:
    """Geodesic distance (Σ θ_i²)^½ of the spans of a and b, (...), in radians.

    a, b: (..., n, k), as in `principal_angles`; U[..., :k] or Vh[..., :k, :].mT of `decompose`. At
    most π/2 √k; identically 0 for k = n; compare with `random_distance`.
    """
    return principal_angles(a, b).norm(dim=-1)


def random_subspaces(n: int, k: int, draws: int, *, seed: int = 0, first: int = 0) -> Tensor:
    """Uniform random orthonormal bases, (draws, n, k) float64; draw i depends on its number alone.

    With k = 1: directions for the random rank-one moves that any chosen atom is compared with.
    """
    if not 1 <= k <= n or draws < 1:
        raise ValueError(f"n = {n}, k = {k}, draws = {draws}: need 1 <= k <= n and draws >= 1")
    rows = [unit_normal((n, k), seed, first + i) for i in range(draws)]
    return torch.linalg.qr(torch.stack(rows).double()).Q


def random_distance(n: int, k: int, *, draws: int = 400, seed: int = 0) -> tuple[float, float]:
    """Mean and standard deviation of the Grassmann distance of two random k-spaces in n dimensions.

    The baseline d_rand of every subspace claim.
    """
    a = random_subspaces(n, k, draws, seed=seed)
    d = grassmann_distance(a, random_subspaces(n, k, draws, seed=seed, first=draws))
    return float(d.mean()), float(d.std())


def match_atoms(first: Sequence, second: Sequence) -> tuple[Tensor, Tensor]:
    """Pair the atoms of two decompositions one to one, by the largest total |u·u'||v·v'|.

    first, second: (U, S, Vh) of equal shapes. Returns for each atom of `first` its partner's index
    in `second`, and their overlap, both (..., r). Hungarian method; signs do not matter. Raises
    ValueError for other shapes.
    """
    (U, _, Vh), (U2, _, Vh2) = first, second
    if (U.shape, Vh.shape) != (U2.shape, Vh2.shape):
        raise ValueError(f"U are {tuple(U.shape)} and {tuple(U2.shape)}; give latents of one shape")
    overlap = ((U.mT @ U2) * (Vh @ Vh2.mT)).abs()
    rows = overlap.reshape(-1, *overlap.shape[-2:]).cpu().numpy()
    order = np.stack([linear_sum_assignment(row, maximize=True)[1] for row in rows])
    order = torch.from_numpy(order).to(U.device).reshape(overlap.shape[:-1])
    return order, overlap.gather(-1, order[..., None])[..., 0]


def track(latents: Values, times: Sequence[int]) -> Track:
    """Follow every atom down a trajectory, latents (steps, ..., h, w) at falling training times.

    Later means noisier, as in DDIM: times fall from noise to image, and atoms are labelled at the
    last, cleanest one, where they mean most. Raises ValueError for fewer than two times, or times
    that do not fall.
    """
    x, times = as_latents(latents), [int(t) for t in times]
    if len(times) != len(x) or len(times) < 2:
        raise ValueError(f"{len(times)} times for {len(x)} latents; give one each, two at least")
    if any(t <= later for t, later in zip(times, times[1:], strict=False)):
        raise ValueError(f"times {times} must fall, from noise to image; reverse the trajectory")
    U, S, Vh = decompose(x)
    index, overlaps = [torch.arange(S.shape[-1], device=x.device).expand(S.shape[1:])], []
    for i in range(len(times) - 2, -1, -1):
        back, overlap = match_atoms((U[i + 1], S[i + 1], Vh[i + 1]), (U[i], S[i], Vh[i]))
        overlaps.append(overlap.gather(-1, index[-1]))
        index.append(back.gather(-1, index[-1]))
    return Track(torch.stack(index[::-1]), torch.stack(overlaps[::-1]))


def aligned_atom(latents: Values, pattern: Values) -> tuple[Tensor, Tensor]:
    """Index of the atom nearest to a pattern's first atom (a, b), and |u·a||v·b|, both (...).

    pattern: (..., h, w), e.g. the mean difference of images with and without an attribute. Raises
    ValueError for a pattern of another height or width.
    """
    U, _, Vh = decompose(latents)
    if as_latents(pattern, "pattern").shape[-2:] != (U.shape[-2], Vh.shape[-1]):
        raise ValueError(f"pattern is {tuple(pattern.shape)}, latents {tuple(latents.shape)}")
    a, _, b = (part.to(U) for part in torch.linalg.svd(as_latents(pattern, "pattern")))
    left, right = U.mT @ a[..., :1], Vh @ b[..., :1, :].mT
    overlap, index = (left * right).abs()[..., 0].max(-1)
    return index, overlap


def bbp_ratio(theta: Values, n: int, alpha: Values) -> Tensor:
    """θ̂ = √α θ / √((1 - α) n), a rank-one signal θ u vᵀ over the edge of n x n Gaussian noise.

    alpha: cumulative product at the latent's time. θ̂ > 1 stands out of the noise (Baik, Ben Arous
    and Péché 2005; Benaych-Georges and Nadakuditi 2012). theta and alpha broadcast; float64.
    """
    theta = torch.as_tensor(theta, dtype=torch.float64)
    alpha = torch.as_tensor(alpha, dtype=torch.float64).to(theta.device)
    if n < 1 or not bool((theta >= 0).all()) or not bool(((alpha > 0) & (alpha < 1)).all()):
        raise ValueError(f"n = {n}, theta, alpha: need n >= 1, theta >= 0 and 0 < alpha < 1")
    return theta * (alpha / (1 - alpha) / n).sqrt()


def bbp_overlap(ratio: Values) -> Tensor:
    """Squared overlap |⟨u, û⟩|² of signal and top singular vector: 1 - θ̂⁻², 0 below threshold."""
    return 1 - torch.as_tensor(ratio, dtype=torch.float64).clamp_min(1) ** -2


def crossing_time(theta: Values, n: int, alphas: Values) -> Tensor:
    """Largest training time at which a signal θ stands out of the noise, -1 where it never does.

    t* = max {t: √(α_t / (1 - α_t)) >= √n / θ}, int64 of the shape of theta. alphas: (T,) cumulative
    products, falling with t (later = noisier); raises ValueError in any other order.
    """
    alphas = torch.as_tensor(alphas, dtype=torch.float64)
    if alphas.ndim != 1 or not bool((alphas.diff() < 0).all()):
        raise ValueError("alphas must be (T,) and fall with t, noise last; give generator.alphas")
    theta = torch.as_tensor(theta, dtype=torch.float64)
    return (bbp_ratio(theta[..., None], n, alphas) >= 1).sum(-1) - 1


def _gauge(U: Tensor) -> Tensor:
    """Signs (..., 1, r) that make the first of the largest entries of each column positive."""
    size = U.abs()
    largest = size >= (1 - TIE) * size.amax(-2, keepdim=True)
    first = largest.byte().argmax(-2, keepdim=True)
    return torch.where(U.gather(-2, first) < 0, -1.0, 1.0).to(U.dtype)


def _warn_degenerate(S: Tensor) -> None:
    gap = gaps(S)
    close = (gap < DEGENERATE).flatten(0, -2) if S.ndim > 1 else (gap < DEGENERATE)[None]
    if not bool(close.any()):
        return
    channels, worst = int(close.any(-1).sum()), int(gap.argmin())
    warnings.warn(
        f"{channels} of {len(close)} channels have degenerate singular values; the smallest gap is "
        f"{float(gap.min()):.1e} of the largest value, at atom {worst % S.shape[-1]}. Such atoms "
        "are fixed only together: compare their subspaces, or the values, not single atoms",
        DegenerateWarning,
        stacklevel=3,
    )


def _basis(a: Values, name: str) -> Tensor:
    """Orthonormal float64 basis of a full-rank (..., n, k)."""
    a = as_latents(a, name).double()
    n, k = a.shape[-2:]
    if k > n:
        raise ValueError(f"{name} has k = {k} columns in n = {n} dimensions; transpose it, or cut")
    Q, R = torch.linalg.qr(a)
    diagonal = R.diagonal(dim1=-2, dim2=-1).abs()
    if bool((diagonal < 1e-10 * a.norm(dim=-2).amax(-1, keepdim=True)).any()):
        raise ValueError(f"the columns of {name} are dependent; give a basis of k = {k} vectors")
    return Q
