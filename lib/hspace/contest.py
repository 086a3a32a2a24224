"""Ways of editing, swept over their strength and compared where they reach the same gain.

Strengths of different methods have different units, so equal strength would compare the units.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from math import inf
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from lib.diffusion import sampling
from lib.diffusion.models import Generator
from lib.faces import attributes
from lib.hspace import baselines, bases, editing
from lib.hspace.deltas import Delta, PerStep
from lib.intervals import Interval


class Timed(NamedTuple):
    """What a call returned, and the seconds it took when it was computed."""

    value: object
    seconds: float


def timed(function: Callable, /, *args: object, **kwargs: object) -> Timed:
    """function(*args, **kwargs) and its seconds, kept together where a cache keeps the call."""
    begin = time.perf_counter()
    value = function(*args, **kwargs)
    return Timed(value, time.perf_counter() - begin)


class Trial(NamedTuple):
    """One method at rising strengths: scores, distances (n,), images, seconds per image."""

    strengths: tuple[float, ...]
    scores: tuple[attributes.Scores, ...]
    distances: tuple[Tensor, ...]
    images: tuple[Tensor, ...]
    seconds: float

    @property
    def top(self) -> Interval:
        """The largest mean gain among the strengths."""
        best = max(self.scores, key=lambda s: s.gain)
        return attributes.interval(lambda s: s.gain, best)


@dataclass(frozen=True)
class Tools:
    """What the methods need for one attribute, each found on seeds that are not scored.

    deltas: {row: (Δh, its strength of reference)}; epsilon: the partner of a Δh, {t: Δε};
    reference: one latent whose image has the attribute; gradient: of a noise-aware classifier;
    tuned: the fine-tuned model; pull: a unit direction of x at time t_pull; own: the strength of
    the first Δh for each face (n,), or none.
    """

    deltas: dict[str, tuple[Delta, float]]
    epsilon: PerStep
    reference: Tensor
    gradient: baselines.Gradient
    tuned: Generator
    pull: Tensor
    t_pull: int
    own: Tensor | None = None


Way = Callable[[float], Timed]
Keep = Callable[..., object]


@dataclass(frozen=True)
class Method:
    """A call of which one keyword, `dial`, is set to unit c for the strength c, at most `most`."""

    function: Callable
    arguments: tuple[object, ...]
    options: Mapping[str, object]
    dial: str = "strength"
    unit: float = 1.0
    most: float = inf

    def __call__(self, keep: Keep, c: float) -> Timed:
        """The timed call at strength c, made by `keep`."""
        own = {**self.options, self.dial: min(self.unit * c, self.most)}
        return keep(timed, self.function, *self.arguments, **own)


def ways(
    generator: Generator,
    latents: Tensor,
    tools: Tools,
    *,
    steps: int,
    t_edit: float,
    t_boost: float,
    r: float,
    keep: Keep = lambda function, *args, **kwargs: function(*args, **kwargs),
) -> dict[str, Way]:
    """{method: strength -> timed images of the latents}; strength 1 is a usual one for each.

    The first Δh also runs in both terms at c / r, r the ratio of `schedule.window_cancellation`.
    keep: how one call is made, `cache.cached` for a comparison that can be interrupted.
    """

    def way(function: Callable, *arguments: object, **options: object) -> Method:
        dials = {k: options.pop(k) for k in ("dial", "unit", "most") if k in options}
        own = {"steps": steps, **options}
        return Method(function, (generator, latents, *arguments), own, **dials)

    methods = _shifts(way, tools, t_edit, r) | {
        "pullback of x": way(bases.pullback_edit, tools.pull, t=tools.t_pull, dial="step"),
        "latent mixing": way(
            baselines.mix_latents, tools.reference, t_mix=t_edit, dial="weight", unit=0.25, most=1.0
        ),
        "fine-tuning": way(from_the_middle, tools.tuned, dial="weight"),
    }
    for title, t in (("classifier guidance", t_edit), ("guidance, longer", t_boost)):
        methods[title] = way(baselines.guide, tools.gradient, t_stop=t, dial="scale", unit=4.0)
    return {name: partial(method, keep) for name, method in methods.items()}


def _shifts(way: Callable[..., Method], tools: Tools, t_edit: float, r: float) -> dict[str, Method]:
    """Shifts of h and of ε, in P alone and in both terms."""
    first, unit = next(iter(tools.deltas.values()))
    own = {"t_edit": t_edit}
    found = {f"Δh, {k}": way(editing.edit, d, unit=c, **own) for k, (d, c) in tools.deltas.items()}
    if tools.own is not None:
        found["Δh, for each face"] = way(per_face, first, tools.own, **own)
    own = {"symmetric": True, "unit": 1 / r}
    return found | {
        "Δh in both terms": way(editing.edit, first, t_edit=t_edit, **own | {"unit": unit / r}),
        "Δε in P": way(baselines.epsilon_shift, tools.epsilon),
        "Δε in both terms": way(baselines.epsilon_shift, tools.epsilon, **own),
    }


def per_face(
    generator: Generator,
    latents: Tensor,
    delta: Delta,
    own: Tensor,
    *,
    strength: float,
    **options: object,
) -> Tensor:
    """`editing.edit` at `strength` times each face's own strength (n,), `editing.sufficient`'s."""
    images = editing.reconstruct(generator, latents, steps=options["steps"])
    for c in own.unique()[own.unique() > 0]:
        rows = own == c
        shift = {"strength": strength * float(c), **options}
        images[rows] = editing.edit(generator, latents[rows], delta, **shift)
    return images


def from_the_middle(
    generator: Generator,
    latents: Tensor,
    tuned: Generator,
    *,
    steps: int,
    weight: float,
    t_start: int = 500,
) -> Tensor:
    """Images by the model down to t_start and by its blend with the tuned one from there."""
    middle = sampling.ddim(generator, latents, steps=steps, stop=t_start)
    mixed = baselines.blend(generator, tuned, weight)
    return sampling.ddim(mixed, middle, steps=steps, start=t_start)


def sweep(plain: Tensor, way: Way, name: str, levels: Sequence[float], gain: float) -> Trial:
    """Run a method at rising levels until its mean gain in an attribute reaches `gain`."""
    strengths, scores, distances, images, seconds = [], [], [], [], 0.0
    for c in levels:
        found = way(c)
        image = torch.nan_to_num(found.value.clamp(-1, 1))  # a method may leave all bounds
        strengths.append(c)
        scores.append(attributes.score(plain, image, name))
        distances.append(attributes.distance(plain, image).cpu())
        images.append(image)
        seconds += found.seconds
        if scores[-1].gain >= gain:
            break
    per_image = seconds / len(strengths) / len(plain)
    parts = (tuple(part) for part in (strengths, scores, distances, images))
    return Trial(*parts, per_image)


def strengths_at(
    reach: Callable[[float], float], targets: Sequence[float], *, first: float = 0.5
) -> list[float]:
    """Strengths at which reach(strength) meets the targets, linear between doubled strengths.

    Doubling begins with `first` and ends with seven: what is still further has the last strength.
    """
    strengths, far = [0.0], [0.0]
    while far[-1] < max(targets) and len(far) < 8:
        strengths.append(2 * strengths[-1] or first)
        far.append(max(far[-1], reach(strengths[-1])))
    return np.interp(targets, far, strengths).tolist()


def gain_at_distance(
    plain: Tensor,
    way: Callable[[float], Tensor],
    name: str,
    levels: Sequence[float],
    at: float,
    *,
    family: Any = attributes,
) -> tuple[Tensor, float]:
    """Gains (n,) of an edit where its images have moved by `at` on average, and how far they got.

    Levels rise and are run until the mean distance reaches `at`; gains are linear in the distance
    in between. If it is never reached, the gains are those of the last level. family: who judges,
    with the functions `score`, whose first part are the gains, and `distance`.
    """
    far, gains = 0.0, torch.zeros(len(plain))
    for c in levels:
        image = way(c)
        moved = float(family.distance(plain, image).mean())
        own = family.score(plain, image, name)[0]
        if moved >= at > far:
            return gains + (at - far) / (moved - far) * (own - gains), at
        far, gains = moved, own
    return gains, far
