"""Directions of h found without labels, and how near they come to a labelled one.

Principal components and Jacobian vectors (Haas et al. 2023), the local pullback basis (Park et al.
2023). Labels enter only when one of the candidates is picked and given its sign.
"""

from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor

from lib.diffusion.models import Generator
from lib.diffusion.sampling import _nearest, ddim, time_grid
from lib.hspace import bases, taps
from lib.hspace.deltas import PerStep, per_step


class Pick(NamedTuple):
    """The candidate nearest to a labelled direction, in its norm, and their mean |cosine|.

    index: which candidate, at the last time of the labelled direction that has candidates.
    """

    change: PerStep
    cosine: float
    index: int


def principal(
    generator: Generator, latents: Tensor, *, steps: int, t_edit: float, k: int = 10
) -> PerStep:
    """k principal directions of h over the latents' samples at each time t >= t_edit, {t: (k, …)}.

    Raises ValueError where no step lies at or above t_edit, and for fewer than k + 1 latents.
    """
    times = [t for t in time_grid(steps, len(generator.alphas)) if t >= t_edit]
    if not times:
        raise ValueError(f"t_edit = {t_edit} lies above every step; choose a smaller one")
    with taps.capture(generator) as h:
        last = ddim(generator, latents, steps=steps, stop=times[0], progress=False)
        with torch.no_grad():
            for part in last.split(16):
                generator.epsilon(part, times[0])
    found = {t: bases.principal_components(h[t], k)[0].float() for t in times}
    return per_step(found)


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
) -> Tensor:
    """Images of latents that were moved once along v at the grid time nearest t (Park et al.).

    v: a unit direction of x, (*latent_shape). `bases.pullback_move` there, plain DDIM before
    and after.
    """
    grid = time_grid(steps, len(generator.alphas))
    t = grid[_nearest(grid, t, "t", grid[-1])]
    x = ddim(generator, latents, steps=steps, stop=t)
    moved = [
        bases.pullback_move(generator, part, t, v, step=step, reach=reach, repeats=repeats)
        for part in x.split(16)
    ]
    return ddim(generator, torch.cat(moved), steps=steps, start=t)
