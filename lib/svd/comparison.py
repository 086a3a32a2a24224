"""Editing methods side by side: swept over their strength, priced where they succeed.

At one strength different methods do different amounts, so each is priced where it first succeeds on
80 % of the faces. `rows` below is {method: {strength: scores}} with scores {name: (n,)}.
"""

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from lib import hspace, intervals
from lib.diffusion.models import Generator
from lib.svd import avi, edits

Rows = Mapping[str, Mapping[float, tuple]]


class Entry(NamedTuple):
    """Where an edit enters: a model, its training times, the row among them, how to go on.

    finish: latents at times[row] -> images. cache: called as cache(function, *arguments), or None.
    """

    generator: Generator
    times: Sequence[int]
    row: int
    finish: Callable[[Tensor], Tensor]
    cache: Callable | None = None


def compare(
    entry: Entry,
    ends: tuple[Tensor, Tensor],
    shift: tuple[hspace.Delta, int],
    score: Callable[[Tensor, Tensor], dict],
    *,
    k: int,
    weights: Sequence[float],
    omega: float,
    seed: int = 0,
) -> dict[str, dict[float, tuple[dict, Tensor]]]:
    """{method: {weight: (scores, images)}}; weight 0 is the unedited face.

    ends: trajectories (steps + 1, n, ...) of source and target by inversion. shift: Δh and its
    sign; at weight w the ways by Δh have strength 2 w. score(images, plain) -> {name: (n,)}, plain
    the images without the method's edit. "unedited" and "target" stand at weight `omega` alone.
    """
    (source, target), (delta, sign), row = ends, shift, entry.row
    x, z = source[row], target[row]
    plain, goal = entry.finish(x), entry.finish(z)
    start = score(plain, plain), plain
    rows = {"unedited": {omega: start}, "target": {omega: (score(goal, plain), goal)}}
    for way, mix in edits.latent_ways(x, z, k=k).items():
        images = {w: entry.finish(mix(w)) for w in weights}
        rows[way] = {0: start} | {w: (score(found, plain), found) for w, found in images.items()}
    own = {"steps": len(entry.times), "t": entry.times[row], "seed": seed, "cache": entry.cache}
    shifts = edits.shift_ways(entry.generator, source[0], x, plain, delta, **own)
    for way, edit in shifts.items():
        without = edit(0) if way == "h-space" else plain  # its own way there and back
        images = {0: edit(0) if way == "restart" else without}
        images |= {w: edit(2 * sign * w) for w in weights}
        rows[way] = {w: (score(found, without), found) for w, found in images.items()}
    return rows


def swept(rows: Rows, method: str, score: str) -> np.ndarray:
    """One score of a method at all its strengths, rising, (strengths, n)."""
    own = rows[method]
    return np.array([own[w][0][score] for w in sorted(own)])


def prices(rows: Rows, methods: Sequence[str], score: str = "off") -> dict[str, intervals.Matched]:
    """What each method costs where it first succeeds on 80 % of the faces."""
    return {
        m: intervals.matched(sorted(rows[m]), swept(rows, m, "success"), swept(rows, m, score))
        for m in methods
    }


def lead(
    strengths: Sequence[float], own: np.ndarray, rivals: np.ndarray, *, draws: int = 500
) -> tuple[intervals.Interval, int]:
    """Price of a method less that of its cheapest rival, on the same faces; and which rival.

    own: (n, 2, strengths), success and cost; rivals: (r, n, 2, strengths). A method that does not
    reach 80 % costs 1, the largest possible.
    """
    own_sweep = np.moveaxis(own, 0, -1)
    if not np.isfinite(intervals.cost_at(strengths, *own_sweep)[1]):
        return intervals.Interval(1.0, 0.0, 1.0, 1.0), 0
    best = _cheapest(strengths, rivals)
    rival_sweep = np.moveaxis(rivals[best], 0, -1)
    return intervals.lead(strengths, own_sweep, rival_sweep, draws=draws), best


def lead_apart(
    strengths: Sequence[float], own: np.ndarray, rivals: np.ndarray, *, draws: int = 500
) -> intervals.Interval:
    """`lead` over the rival that is cheapest on the other half of the faces, for each half.

    A rival chosen on the faces that score it would be the luckiest of several, not the best. Where
    both halves choose the same one this is `lead` over it.
    """
    rival = np.empty_like(own)
    for side in (0, 1):
        best = _cheapest(strengths, rivals[:, 1 - side :: 2])
        rival[side::2] = rivals[best, side::2]
    return lead(strengths, own, rival[None], draws=draws)[0]


def _cheapest(strengths: Sequence[float], rivals: np.ndarray) -> int:
    """Which of the rivals (r, n, 2, strengths) costs least at 80 %; the first if none succeeds."""
    cost = [intervals.cost_at(strengths, *np.moveaxis(part, 0, -1))[1] for part in rivals]
    return int(np.nanargmin(cost)) if np.isfinite(cost).any() else 0


def committed(
    entry: Entry, path: Tensor, delta: hspace.Delta, *, k: int, weight: float = 0.9
) -> dict[str, Tensor]:
    """Images when a shift of strength 1.5 enters late, in a sampled trajectory, {way: images}.

    "before": z is sampled under the shift down to there and injected, by AVI or by interpolation,
    and sampling goes on without it; "after": no shift down to there, and the shift from there on.
    """
    x, t = path[entry.row], entry.times[entry.row]
    shifted = functools.partial(entry.cache, edits.shifted, entry.generator, steps=len(entry.times))
    z = shifted(path[0], delta, 1.5, start=entry.times[0], stop=t).to(x)
    y = avi.integrate(x, z, k=k, weights=(weight, 1 - weight, 0.1, 0.1))
    return {
        "AVI, shift before": entry.finish(y),
        "interpolation, shift before": entry.finish(torch.lerp(x, z, weight)),
        "switch, shift after": shifted(x, delta, 1.5, start=t),
    }
