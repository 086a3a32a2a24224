"""Editing through h-space: the asymmetric reverse process of Asyrp.

Kwon, Jeong and Uh, "Diffusion Models Already Have a Semantic Latent Space" (2023), Sec. 3 and 4.
"""

import warnings
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from functools import partial
from itertools import groupby, pairwise
from typing import NamedTuple

import torch
from torch import Tensor

from lib.diffusion.models import Generator
from lib.diffusion.sampling import Predict, ddim, rows_per_call, time_grid
from lib.hspace.deltas import Delta, Sum, finite_number, for_steps, no_change
from lib.hspace.taps import MIDDLE, inject, shared_encoder

SHIFT = ("t_edit", "strength", "trained_steps", "symmetric", "layer")  # what a plain run ignores
LEVELS = (0.25, 0.35, 0.5, 0.7, 1.0, 1.4, 2.0, 2.8, 4.0)


class Edit(NamedTuple):
    """Edited images and the plain ones of the same latents and noise, (n, c, h, w) each."""

    edited: Tensor
    reconstruction: Tensor


class Sufficient(NamedTuple):
    """Images (n, c, h, w), the strength of each (n,), 0 for no edit, and who was accepted (n,)."""

    images: Tensor
    strengths: Tensor
    reached: Tensor


def predictions(
    generator: Generator,
    x: Tensor,
    t: int,
    delta: Delta,
    *,
    symmetric: bool = False,
    layer: str = MIDDLE,
    **text: object,
) -> tuple[Tensor, Tensor]:
    """The pair eps(x | Δh), for P, and eps(x), for D, from one call on twice the rows.

    At the mid-block the two share the way down to it (`taps.shared_encoder`). symmetric: the
    shifted one twice, from one call on the rows alone. With guidance each of the two is guided by
    its own pair of rows. x: (n, *latent_shape). text: prompt, guidance, negative, class_labels as
    in `Generator.epsilon`.
    """
    if symmetric:
        with inject(generator, delta, layer=layer):
            eps = generator.epsilon(x, t, **text)
        return eps, eps
    twice = {name: _doubled(value) for name, value in text.items()}
    shifted = [True] * len(x) + [False] * len(x)
    shared = shared_encoder(generator, len(x)) if layer == MIDDLE else nullcontext()
    with shared, inject(generator, delta, rows=shifted, layer=layer):
        both = generator.epsilon(torch.cat([x, x]), t, **twice)
    return both.chunk(2)


def _doubled(value: object) -> object:
    """What is given for each row, for twice the rows; one for all as it is."""
    per_row = isinstance(value, Sequence | Tensor) and not isinstance(value, str)
    return [*value, *value] if per_row else value


def asyrp(
    generator: Generator,
    latents: Tensor,
    delta: Delta,
    *,
    steps: int,
    t_boost: float = 0,
    **options: object,
) -> Edit:
    """Edited images and their reconstruction, with the same boost noise: `edit`, `reconstruct`.

    Options as in `edit`; those that shift nothing go to both.
    """
    run = {"steps": steps, "t_boost": t_boost}
    plain = {name: value for name, value in options.items() if name not in SHIFT}
    edited = edit(generator, latents, delta, **run, **options)
    return Edit(edited, reconstruct(generator, latents, **run, **plain))


def edit(
    generator: Generator,
    latents: Tensor,
    delta: Delta,
    *,
    steps: int,
    t_edit: float | None = None,
    t_boost: float = 0,
    strength: float = 1.0,
    trained_steps: int | None = None,
    symmetric: bool = False,
    layer: str = MIDDLE,
    **options: object,
) -> Tensor:
    """Edited images (n, c, h, w) of latents (n, *latent_shape) at the noisiest time.

    Three phases (Asyrp, Sec. 3 and 4): x' = sqrt(alpha') P(eps(x | Δh)) + D(eps(x)) while
    t >= t_edit, then plain DDIM, then eta = 1 with fresh noise while t < t_boost. P is not clipped.
    strength: any finite multiple of Δh; trained_steps: S of a Δh found with another number of
    steps, which multiplies it by S / steps. A trained Δh carries both t_edit and S, which hold
    where they are not given. symmetric: eps(x | Δh) in both terms. layer: where Δh is added.
    options: prompt, guidance, negative, class_labels, decode, batch, progress as in
    `sampling.ddim`, and seed and first: the boost's noise is keyed by (seed, first + row, time).
    Raises ValueError for times or numbers out of range and what `inject` refuses; warns where the
    edit and the boost overlap.
    """
    if not callable(delta):
        raise ValueError(no_change(delta))
    time_grid(steps, len(generator.alphas))  # refuses a number of steps before it divides
    window = _window(delta, t_edit)
    _check_phases(window, t_boost, len(generator.alphas))
    shift = scaled(delta, strength, steps=steps, trained_steps=trained_steps)
    predict = partial(predictions, generator, delta=shift, symmetric=symmetric, layer=layer)
    phases = {"steps": steps, "t_edit": window, "t_boost": t_boost, "single": symmetric}
    return _in_phases(generator, latents, predict, **phases, **options)


def edit_each(
    generator: Generator,
    latents: Tensor,
    delta: Delta,
    strengths: Tensor,
    *,
    batch: int = 8,
    **options: object,
) -> Tensor:
    """`edit` with a strength of its own for each latent, (n,).

    batch: rows at a time. Other options as in `edit`, without strength and boost, whose noise is
    keyed by the row.
    """
    if not callable(delta):
        raise ValueError(no_change(delta))
    parts = zip(latents.split(batch), strengths.split(batch), strict=True)
    own = [(x, Sum((delta,), (c.to(x).view(-1, 1, 1, 1),))) for x, c in parts]
    run = {"batch": 2 * batch, **options}
    return torch.cat([edit(generator, x, shift, **run) for x, shift in own])


def sufficient(
    generator: Generator,
    latents: Tensor,
    delta: Delta,
    enough: Callable[[Tensor], Tensor],
    *,
    steps: int,
    levels: Sequence[float] = LEVELS,
    **options: object,
) -> Sufficient:
    """Each face edited by the smallest of the rising levels at which enough(images) (n,) says so.

    A face that is accepted as it is stays plain, one that no level brings there has the last.
    Responses to a shift are steps at a place of their own for each face, so that one strength for
    all pushes most of them too far. options as in `edit`, one for all rows, without strength and
    boost, whose noise is keyed by the row. Raises ValueError for levels that do not rise from 0,
    and for an `enough` that does not say so with a tensor of booleans, of a blank image.
    """
    if not callable(delta):
        raise ValueError(no_change(delta))
    if "strength" in options:
        raise ValueError(
            f"strength = {options['strength']!r}: the strength is what is looked for; give levels "
            "to try, levels=(0.3, 0.6), or edit(..., strength=) for one that is known"
        )
    if not callable(enough):
        raise ValueError(
            f"enough is {enough!r}; give a function of images (n, c, h, w) that returns (n,) "
            "booleans, such as fits.Enough('glasses')"
        )
    if not levels or any(b <= a for a, b in pairwise([0, *levels])):
        raise ValueError(f"levels = {tuple(levels)}: give rising strengths above 0")
    if not _says_whether(enough(_blank(generator))):
        raise ValueError(
            f"enough returned {enough(_blank(generator))!r} for one image; give a tensor of one "
            "boolean for each, such as images.mean((1, 2, 3)) > 0"
        )
    plain = {name: value for name, value in options.items() if name not in SHIFT}
    images = reconstruct(generator, latents, steps=steps, **plain)
    strengths, reached = torch.zeros(len(images)), enough(images).cpu()
    for c in levels:
        rows = (~reached).nonzero()[:, 0]
        if not len(rows):
            break
        found = edit(generator, latents[rows], delta, steps=steps, strength=c, **options)
        images[rows], strengths[rows], reached[rows] = found, c, enough(found).cpu()
    return Sufficient(images, strengths, reached)


def _blank(generator: Generator) -> Tensor:
    """One grey image (1, c, h, w)."""
    return torch.zeros(1, *generator.image_shape, device=generator.device, dtype=generator.dtype)


def _says_whether(found: object) -> bool:
    return isinstance(found, Tensor) and found.shape == (1,) and found.dtype == torch.bool


def scaled(delta: Delta, strength: float, *, steps: int, trained_steps: int | None = None) -> Sum:
    """strength Δh for a run of `steps`: times S / steps, S = trained_steps or what Δh carries.

    Raises ValueError for a strength that is not finite, and for trained_steps below 1.
    """
    strength = finite_number(strength, "strength")
    if trained_steps is None:
        return Sum((for_steps(delta, steps),), (strength,))
    if trained_steps < 1:
        raise ValueError(f"trained_steps = {trained_steps}: give the number of steps of training")
    return Sum((delta,), (strength * (trained_steps / steps),))


def reconstruct(
    generator: Generator, latents: Tensor, *, steps: int, t_boost: float = 0, **options: object
) -> Tensor:
    """The plain images of the same latents: DDIM, then eta = 1 with the noise of `edit`.

    `options` go to `sampling.ddim`. Raises ValueError as `edit` does.
    """
    top = len(generator.alphas)
    _check_phases(top, t_boost, top)
    return _in_phases(generator, latents, None, steps=steps, t_edit=top, t_boost=t_boost, **options)


def _in_phases(
    generator: Generator,
    x: Tensor,
    predict: Predict | None,
    *,
    steps: int,
    t_edit: float,
    t_boost: float,
    single: bool = False,
    batch: int | None = None,
    **options: object,
) -> Tensor:
    """One `ddim` for each phase: `predict` while t >= t_edit, eta = 1 while t < t_boost.

    single: `predict` calls the network on its rows alone, not on twice as many.
    """
    rows = rows_per_call(generator, batch)
    grid = time_grid(steps, len(generator.alphas))[::-1]
    phases = groupby(grid, lambda t: (t >= t_edit, t < t_boost))
    starts = [(next(times), *phase) for phase, times in phases]
    for (start, edited, noisy), (stop, *_) in pairwise([*starts, (None,)]):
        own = {"start": start, "stop": stop, "eta": float(noisy), "batch": rows}
        if edited:
            own |= {"predict": predict, "batch": rows if single else rows // 2 or rows}
        x = ddim(generator, x, steps=steps, **own, **options)
    return x


def _window(delta: Delta, t_edit: float | None) -> float:
    found = getattr(delta, "t_edit", None) if t_edit is None else t_edit
    if found is None:
        raise ValueError("this Δh carries no window: say where the edit stops, t_edit = 0 ... T")
    return found


def _check_phases(t_edit: float, t_boost: float, last: int) -> None:
    for name, t in (("t_edit", t_edit), ("t_boost", t_boost)):
        if not 0 <= t <= last:
            raise ValueError(f"{name} = {t}: choose a training time in 0 ... {last}")
    if t_boost > t_edit:
        warnings.warn(
            f"t_boost = {t_boost} lies above t_edit = {t_edit}: steps between them are edited and "
            "noisy",
            stacklevel=3,
        )
