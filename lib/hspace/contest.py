"""Ways of editing, swept over their strength and compared where they reach the same gain.

Strengths of different methods have different units, so equal strength would compare the units.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from lib.diffusion import sampling
from lib.diffusion.models import Generator
from lib.faces import attributes
from lib.hspace import baselines, editing, unsupervised
from lib.hspace.deltas import Delta, PerStep
from lib.hspace.timed import Timed, timed
from lib.intervals import Interval


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
    tuned: the fine-tuned model; pull: a unit direction of x at time t_pull.
    """

    deltas: dict[str, tuple[Delta, float]]
    epsilon: PerStep
    reference: Tensor
    gradient: baselines.Gradient
    tuned: Generator
    pull: Tensor
    t_pull: int


Way = Callable[[float], Timed]
Keep = Callable[..., object]


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

    def call(function: Callable, *args: object, **kwargs: object) -> Timed:
        return keep(timed, function, *args, steps=steps, **kwargs)

    def shifted(delta: Delta, unit: float, symmetric: bool, c: float) -> Timed:
        own = {"strength": unit * c, "symmetric": symmetric}
        return call(editing.edit, generator, latents, delta, t_edit=t_edit, **own)

    def epsilon(unit: float, symmetric: bool, c: float) -> Timed:
        own = {"strength": unit * c, "symmetric": symmetric}
        return call(baselines.epsilon_shift, generator, latents, tools.epsilon, **own)

    def mixed(c: float) -> Timed:
        own = {"t_mix": t_edit, "weight": min(c / 4, 1.0)}
        return call(baselines.mix_latents, generator, latents, tools.reference, **own)

    def guided(c: float) -> Timed:
        own = {"scale": 4 * c, "t_stop": t_boost}
        return call(baselines.guide, generator, latents, tools.gradient, **own)

    def tuned(c: float) -> Timed:
        return call(from_the_middle, generator, tools.tuned, latents, weight=c)

    def pulled(c: float) -> Timed:
        own = {"t": tools.t_pull, "step": c}
        return call(unsupervised.pullback_edit, generator, latents, tools.pull, **own)

    first, unit = next(iter(tools.deltas.values()))
    return {
        **{f"Δh, {n}": partial(shifted, d, c, False) for n, (d, c) in tools.deltas.items()},
        "Δh in both terms": partial(shifted, first, unit / r, True),
        "Δε in P": partial(epsilon, 1.0, False),
        "Δε in both terms": partial(epsilon, 1.0 / r, True),
        "pullback of x": pulled,
        "latent mixing": mixed,
        "classifier guidance": guided,
        "fine-tuning": tuned,
    }


def from_the_middle(
    generator: Generator,
    tuned: Generator,
    latents: Tensor,
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


def gain_at_distance(
    plain: Tensor, way: Callable[[float], Tensor], name: str, levels: Sequence[float], at: float
) -> tuple[Tensor, float]:
    """Gains (n,) of an edit where its images have moved by `at` on average, and how far they got.

    Levels rise and are run until the mean distance reaches `at`; gains are linear in the distance
    in between. If it is never reached, the gains are those of the last level.
    """
    far, gains = 0.0, torch.zeros(len(plain))
    for c in levels:
        image = way(c)
        moved = float(attributes.distance(plain, image).mean())
        own = attributes.score(plain, image, name).gains
        if moved >= at > far:
            return gains + (at - far) / (moved - far) * (own - gains), at
        far, gains = moved, own
    return gains, far
