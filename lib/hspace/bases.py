"""Directions that need no training: principal, Jacobian and pullback bases, and projection.

Haas et al. 2023 (principal components and Jacobians of h), Park et al. 2023 (the pullback). Labels
enter only when one of the candidates is picked and given its sign.
"""

import math
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from lib.diffusion.models import Generator, unit_normal
from lib.diffusion.sampling import ddim, nearest, time_grid
from lib.hspace import schedule, taps
from lib.hspace.deltas import PerStep, per_step


def principal_components(h: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Leading k principal directions of h (n, ...), and their standard deviations (k,).

    Directions are (k, ...), orthonormal, computed in float64, with their largest entry positive.
    """
    if not 1 <= k < len(h):
        raise ValueError(f"k = {k}: choose 1 ... {len(h) - 1}, fewer than the {len(h)} samples")
    rows = h.double().flatten(1)
    _, values, vectors = torch.linalg.svd(rows - rows.mean(0), full_matrices=False)
    vectors = vectors[:k] * _sign(vectors[:k])
    return vectors.view(k, *h.shape[1:]), values[:k] / math.sqrt(len(h) - 1)


def principal(
    generator: Generator, latents: Tensor, *, steps: int, t_edit: float, k: int = 10, **text: object
) -> PerStep:
    """k principal directions of h over the latents' samples at each time t >= t_edit, {t: (k, …)}.

    text: prompt, guidance, negative, class_labels, one for all latents. Raises ValueError where no
    step lies at or above t_edit, and for fewer than k + 1 latents.
    """
    times = [t for t, _ in schedule.edit_steps(generator, steps, t_edit)][::-1]
    with taps.capture(generator) as h:
        last = ddim(generator, latents, steps=steps, stop=times[0], progress=False, **text)
        with torch.no_grad():
            for part in last.split(16):
                generator.epsilon(part, times[0], **text)
    found = {t: principal_components(h[t], k)[0].float() for t in times}
    return per_step(found)


def project(change: Tensor, protected: Sequence[Tensor]) -> Tensor:
    """(I - V (V^T V)^-1 V^T) change: the part that leaves the protected directions alone.

    change and each protected direction have one shape; dependent directions are allowed.
    """
    span = torch.stack([v.double().flatten() for v in protected], dim=1)
    own = change.double().flatten()
    remainder = own - span @ (torch.linalg.pinv(span) @ own)
    return remainder.view_as(change).to(change.dtype)


class Basis(NamedTuple):
    """Leading singular triplets of a Jacobian: J inputs_i = values_i outputs_i."""

    inputs: Tensor
    values: Tensor
    outputs: Tensor


def jacobian_directions(
    generator: Generator,
    x: Tensor,
    t: int,
    *,
    k: int = 3,
    text: Mapping[str, object] | None = None,
    **solver: object,
) -> Basis:
    """Directions Δh that change eps(x | Δh) most: singular vectors of d eps / dh (Haas et al.).

    x: (1, *latent_shape); text: prompt, guidance, negative, class_labels. inputs are (k, *h),
    outputs (k, *latent_shape). Options and errors as in `singular_basis`.
    """
    shape = taps.h_shape(generator)

    def predict(change: Tensor) -> Tensor:
        with taps.inject(generator, lambda h, t: change):
            return generator.epsilon(x, t, **(text or {}))[0]

    return singular_basis(predict, torch.zeros(shape).to(x), k, **solver)


def pullback_basis(
    generator: Generator,
    x: Tensor,
    t: int,
    *,
    k: int = 3,
    text: Mapping[str, object] | None = None,
    **solver: object,
) -> Basis:
    """Directions of x that change h most: singular vectors of dh / dx_t (Park et al.).

    x: (1, *latent_shape). inputs are (k, *latent_shape), outputs (k, *h). text, options and errors
    as in `jacobian_directions`.
    """

    def bottleneck(point: Tensor) -> Tensor:
        with taps.capture(generator) as h:
            generator.epsilon(point[None], t, **(text or {}))
        return h[int(t)][0]

    return singular_basis(bottleneck, x[0], k, **solver)


def pullback_edit(
    generator: Generator,
    latents: Tensor,
    v: Tensor,
    *,
    steps: int,
    t: int,
    step: float,
    reach: float = 1.0,
    repeats: int = 8,
    **text: object,
) -> Tensor:
    """Images of latents moved once along v at the grid time nearest t, else plain (Park et al.).

    x <- x + step (eps(x + reach v) - eps(x)), `repeats` times with v fixed, a unit direction of x,
    (*latent_shape). text: as in `principal`.
    """
    grid = time_grid(steps, len(generator.alphas))
    t = grid[nearest(grid, t)]

    def move(x: Tensor) -> Tensor:
        for _ in range(repeats):
            moved, plain = generator.epsilon(torch.cat([x + reach * v, x]), t, **text).chunk(2)
            x = x + step * (moved - plain)
        return x

    x = ddim(generator, latents, steps=steps, stop=t, **text)
    with torch.no_grad():
        moved = torch.cat([move(part) for part in x.split(16)])
    return ddim(generator, moved, steps=steps, start=t, **text)


class Pick(NamedTuple):
    """The candidate nearest to a labelled direction, in its norm, and their mean |cosine|.

    index: which candidate, at the last time of the labelled direction that has candidates.
    """

    change: PerStep
    cosine: float
    index: int


def pick(candidates: Mapping[int, Tensor], labelled: PerStep) -> Pick:
    """The candidate direction nearest to v_t in |cosine|, signed and scaled to the norm of v_t.

    candidates: {t: (k, C, height, width)}. With several times one is picked at each of those that
    `labelled` has too; with a single time its choice serves all times of `labelled` (Haas et al.).
    Raises ValueError without a common time.
    """
    common = [t for t in labelled if t in candidates]
    if not common:
        raise ValueError("candidates and the labelled direction have no time in common")
    chosen, cosines = {}, []
    for t in common:
        rows = torch.nn.functional.normalize(candidates[t].flatten(1).double(), dim=1)
        cosine = rows @ torch.nn.functional.normalize(labelled[t].flatten().double(), dim=0)
        best = int(cosine.abs().argmax())
        chosen[t] = (rows[best] * cosine[best].sign()).view(labelled[t].shape).to(labelled[t])
        cosines.append(float(cosine[best].abs()))
    if len(candidates) == 1:
        chosen = dict.fromkeys(labelled, chosen[common[0]])
    scaled = {t: labelled[t].norm() * v for t, v in chosen.items()}
    return Pick(per_step(scaled), sum(cosines) / len(cosines), best)


def singular_basis(
    function: Callable[[Tensor], Tensor],
    point: Tensor,
    k: int,
    *,
    iterations: int = 50,
    tolerance: float = 1e-3,
    seed: int = 0,
) -> Basis:
    """Leading k singular triplets of the Jacobian of `function` at `point`, by subspace iteration.

    V <- orth(J^T J V), until the largest principal angle between successive subspaces is below
    `tolerance` (radians); warns if it is not. Signs: the largest entry of each input is positive.
    Raises ValueError where the network has no forward-mode derivative, or for k out of range.
    """
    if not 1 <= k <= point.numel():
        raise ValueError(f"k = {k}: choose 1 ... {point.numel()}")
    value, pull = torch.func.vjp(function, point)
    pull_all = torch.func.vmap(lambda u: pull(u.view_as(value))[0].flatten())
    push_all = torch.func.vmap(
        lambda v: torch.func.jvp(function, (point,), (v.view_as(point),))[1].flatten()
    )
    vectors = torch.stack([unit_normal(point.shape, seed, i).flatten() for i in range(k)], 1)
    vectors = torch.linalg.qr(vectors.to(point)).Q
    try:
        for _ in range(iterations):
            new = torch.linalg.qr(pull_all(push_all(vectors.T)).T).Q
            angle = torch.linalg.matrix_norm(new - vectors @ (vectors.T @ new), 2)
            vectors = new
            if angle < tolerance:
                break
        else:
            warnings.warn(
                f"subspace still turns by {angle:.1e}; allow more iterations", stacklevel=2
            )
        images = push_all(vectors.T)
    except RuntimeError as error:
        # With the channels innermost the fused norm has no rule either, and complains of views.
        if not isinstance(error, NotImplementedError) and "view size" not in str(error):
            raise
        raise ValueError(
            "the network has no forward-mode derivative; load it with differentiable=True"
        ) from error
    left, values, right = torch.linalg.svd(images.T, full_matrices=False)
    inputs, outputs = right @ vectors.T, left.T
    sign = _sign(inputs)
    return Basis(
        (sign * inputs).view(k, *point.shape), values, (sign * outputs).view(k, *value.shape)
    )


def _sign(rows: Tensor) -> Tensor:
    """(k, 1) signs that make the largest entry of each row positive."""
    return rows.gather(1, rows.abs().argmax(1, keepdim=True)).sign()
