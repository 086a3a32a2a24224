"""Pairs of latents from a generator, and the plain ways to mix two latents.

`atoms` decomposes and compares latents, `avi` integrates two of them (Wang et al. 2025, arXiv
2502.02225); this module makes the two, and the alternatives to compare with.
"""

from collections.abc import Sequence
from math import isfinite
from numbers import Integral

import numpy as np
import torch
from scipy.fft import dct
from torch import Tensor

from lib.diffusion.models import Generator
from lib.diffusion.sampling import ddim, in_batches, nearest, spherical, time_grid, update
from lib.intervals import Values
from lib.svd.atoms import as_latents
from lib.svd.avi import Bases, atom_pair


def match_noise(
    generator: Generator,
    z: Values,
    t_from: int,
    t_to: int,
    *,
    prompt: str | Sequence[str] | None = None,
    guidance: float = 1.0,
    batch: int = 16,
) -> Tensor:
    """Bring latents z (n, c, h, w) from training time t_from to the noise level of t_to.

    z' = √α_to ẑ0 + √(1 - α_to) ε̂ with the generator's own estimates at t_from, in one step; either
    time may be the noisier. prompt, guidance: those z was made with, as in `Generator.epsilon`.
    Raises ValueError for z of the wrong shape or not finite, or times outside 0 ... T - 1.
    """
    last, z = len(generator.alphas) - 1, as_latents(z, "z").to(generator.device, generator.dtype)
    if z.ndim != 4 or tuple(z.shape[1:]) != generator.latent_shape:
        raise ValueError(f"z is {tuple(z.shape)}; this model has (n, *{generator.latent_shape})")
    whole = isinstance(t_from, Integral) and isinstance(t_to, Integral)
    if not whole or not (0 <= t_from <= last and 0 <= t_to <= last):
        raise ValueError(f"t_from = {t_from}, t_to = {t_to}: give training times in 0 ... {last}")
    alphas = generator.alpha(t_from), generator.alpha(t_to)

    def run(rows: slice) -> Tensor:
        own = prompt if prompt is None or isinstance(prompt, str) else prompt[rows]
        eps = generator.epsilon(z[rows], t_from, prompt=own, guidance=guidance)
        return update(z[rows], eps, *alphas)

    with torch.no_grad():
        return in_batches(run, len(z), batch)


def latent_pair(
    generator: Generator,
    noise: Values,
    source: str | Sequence[str] | None,
    target: str | Sequence[str],
    *,
    steps: int,
    stop: int,
    shift: int = 0,
    guidance: float = 1.0,
) -> tuple[Tensor, Tensor]:
    """Latents x of the source prompt and z of the target prompt, from one noise (n, c, h, w).

    Both at the grid time nearest to training time `stop`; with `shift`, z is taken that many
    sampler steps earlier on the way, where it is noisier (negative: cleaner), and matched in noise.
    Raises ValueError for a model without text, or a `stop` or a shift that leaves the grid.
    """
    grid = time_grid(steps, len(generator.alphas))
    i = nearest(grid, stop, "stop")
    if not 0 <= i + shift < len(grid):
        raise ValueError(f"shift = {shift} leaves the grid: use {-i} ... {len(grid) - 1 - i}")
    own = {"steps": steps, "guidance": guidance}
    x = ddim(generator, noise, stop=grid[i], prompt=source, **own)
    z = ddim(generator, noise, stop=grid[i + shift], prompt=target, **own)
    if shift:
        times = grid[i + shift], grid[i]
        z = match_noise(generator, z, *times, prompt=target, guidance=guidance)
    return x, z


def integrate_full_core(
    x: Values, z: Values, *, k: int, omega: float = 0.5, keep_tail: bool = True
) -> Tensor:
    """The same with any 2k x 2k core in place of a diagonal, (..., h, w); a baseline.

    y = P_Ũ ((1 - ω) x + ω z - tail) P_Ṽ + tail with the projectors P on the columns of Ũ and Ṽ, the
    minimiser of ω ‖y - z‖² + (1 - ω) ‖y - x‖². Raises ValueError as `atom_pair`.
    """
    pair = atom_pair(x, z, k=k, keep_tail=keep_tail)
    rows, columns = (side @ torch.linalg.pinv(side) for side in (pair.left, pair.right))
    y = rows @ (torch.lerp(pair.x, pair.z, omega) - pair.tail) @ columns + pair.tail
    return y.to(as_latents(x).dtype)


def interpolate(x: Values, z: Values, weight: float, *, path: str = "linear") -> Tensor:
    """Latents between x and z, (n, ...), at `weight` from 0 (x) to 1 (z), the plain baselines.

    "linear": (1 - w) x + w z; "rescaled": that, stretched per sample to the norm (1 - w) ‖x‖ +
    w ‖z‖; "spherical": `sampling.spherical`. Raises ValueError for another path, unequal shapes, a
    weight that is not finite, and where a path has no direction: "rescaled" if x and z cancel,
    "spherical" between opposite latents or with one that is zero.
    """
    x, z = as_latents(x, "x"), as_latents(z, "z")
    known = path in ("linear", "rescaled", "spherical")
    if x.shape != z.shape or not known or not isfinite(weight):
        raise ValueError(
            f"x is {tuple(x.shape)}, z {tuple(z.shape)}, path {path!r}, weight {weight}: give "
            "equal shapes, 'linear', 'rescaled' or 'spherical', and a finite weight"
        )
    if path == "spherical":
        return spherical(x, z, [weight])[:, 0]
    a, b = x.double().flatten(1), z.double().flatten(1)
    y = torch.lerp(a, b, weight)
    if path == "linear":
        return y.reshape(x.shape).to(x.dtype)
    norms = [part.norm(dim=1, keepdim=True) for part in (a, b)]
    length = y.norm(dim=1, keepdim=True)
    if not bool((length > 1e-7 * sum(norms)).all() and (norms[0] * norms[1] > 0).all()):
        raise ValueError(
            f"'rescaled' at weight {weight} has no direction: a latent is zero, or two are "
            "opposite; use 'linear'"
        )
    y = y * torch.lerp(*norms, weight) / length
    return y.reshape(x.shape).to(x.dtype)


def cosine_basis(n: int) -> Tensor:
    """Orthonormal cosines (DCT-II) as columns, (n, n) float64; a choice of `bases`."""
    return torch.from_numpy(dct(np.eye(n), norm="ortho", axis=1))


def principal_bases(latents: Values) -> Bases:
    """Two-sided principal axes of many latents (..., h, w): bases (h, h) and (w, w), a choice.

    Eigenvectors of the mean of X Xᵀ and of Xᵀ X, largest first, float64.
    """
    x = as_latents(latents).double()
    flat = x.reshape(-1, *x.shape[-2:])
    moments = ((flat @ flat.mT).mean(0), (flat.mT @ flat).mean(0))
    return tuple(torch.linalg.eigh(moment).eigenvectors.flip(-1) for moment in moments)
