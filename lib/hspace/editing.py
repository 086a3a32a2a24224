"""Editing through h-space: the asymmetric reverse process of Asyrp.

Kwon, Jeong and Uh, "Diffusion Models Already Have a Semantic Latent Space" (2023), Sec. 3 and 4.
"""

import warnings
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from lib.diffusion.models import Generator
from lib.diffusion.sampling import (
    _bar,
    _batch,
    _downward,
    _latents,
    _per_row,
    ddim,
    deviation,
    in_batches,
    step_noise,
    time_grid,
    update,
)
from lib.hspace.deltas import Delta, Sum, finite_number
from lib.hspace.taps import MIDDLE, inject


class Edit(NamedTuple):
    """Edited images and the plain ones of the same latents and noise, (n, c, h, w) each."""

    edited: Tensor
    reconstruction: Tensor


def predictions(
    generator: Generator,
    x: Tensor,
    t: int,
    delta: Delta,
    *,
    symmetric: bool = False,
    layer: str = MIDDLE,
    prompt: str | Sequence[str] | None = None,
    guidance: float = 1.0,
    negative: str = "",
) -> tuple[Tensor, Tensor]:
    """The pair eps(x | Δh), for P, and eps(x), for D, from one call on twice the rows.

    symmetric: the shifted one twice, from one call on the rows alone. With guidance each of the two
    is guided by its own pair of rows. x: (n, *latent_shape).
    """
    options = {"guidance": guidance, "negative": negative}
    if symmetric:
        with inject(generator, delta, layer=layer):
            eps = generator.epsilon(x, t, prompt=prompt, **options)
        return eps, eps
    twice = prompt if prompt is None or isinstance(prompt, str) else [*prompt, *prompt]
    shifted = [True] * len(x) + [False] * len(x)
    with inject(generator, delta, rows=shifted, layer=layer):
        both = generator.epsilon(torch.cat([x, x]), t, prompt=twice, **options)
    return both.chunk(2)


def asyrp(
    generator: Generator,
    latents: Tensor,
    delta: Delta,
    *,
    steps: int,
    t_edit: float,
    t_boost: float = 0,
    strength: float = 1.0,
    trained_steps: int | None = None,
    symmetric: bool = False,
    prompt: str | Sequence[str] | None = None,
    guidance: float = 1.0,
    seed: int = 0,
    layer: str = MIDDLE,
    **options: object,
) -> Edit:
    """Edited images and their reconstruction, with the same boost noise: `edit`, `reconstruct`.

    Arguments as in `edit`; `options` (negative, first, decode, batch, progress) go to both.
    """
    run = {"steps": steps, "t_boost": t_boost, "seed": seed, "prompt": prompt, "guidance": guidance}
    edited = edit(
        generator,
        latents,
        delta,
        t_edit=t_edit,
        strength=strength,
        trained_steps=trained_steps,
        symmetric=symmetric,
        layer=layer,
        **run,
        **options,
    )
    return Edit(edited, reconstruct(generator, latents, **run, **options))


def edit(
    generator: Generator,
    latents: Tensor,
    delta: Delta,
    *,
    steps: int,
    t_edit: float,
    t_boost: float = 0,
    strength: float = 1.0,
    trained_steps: int | None = None,
    symmetric: bool = False,
    prompt: str | Sequence[str] | None = None,
    guidance: float = 1.0,
    negative: str = "",
    seed: int = 0,
    first: int = 0,
    layer: str = MIDDLE,
    decode: bool = True,
    batch: int | None = None,
    progress: bool | None = None,
) -> Tensor:
    """Edited images (n, c, h, w) of latents (n, *latent_shape) at the noisiest time.

    Three phases (Asyrp, Sec. 3 and 4): x' = sqrt(alpha') P(eps(x | Δh)) + D(eps(x)) while
    t >= t_edit, then plain DDIM, then eta = 1 with fresh noise while t < t_boost. P is not clipped.
    strength: any finite multiple of Δh; trained_steps: S of a Δh found with another number of
    steps, which multiplies it by S / steps. symmetric: eps(x | Δh) in both terms. seed, first: the
    noise of the boost is keyed by (seed, first + row, time). layer: where Δh is added.
    prompt, guidance, negative, decode, batch, progress: as in `sampling.ddim`.
    Raises ValueError for times or numbers out of range and what `inject` refuses; warns where the
    edit and the boost overlap.
    """
    x = _latents(generator, latents, finite=True)
    _check_phases(t_edit, t_boost, len(generator.alphas))
    scale = finite_number(strength, "strength") * _step_ratio(trained_steps, steps)
    shift, prompts = Sum((delta,), (scale,)), _per_row(prompt, len(x))
    down = _downward(time_grid(steps, len(generator.alphas)), None, None)
    pairs = [(t, t_next) for t, t_next in down if t >= t_edit]
    rest = down[len(pairs) :]
    text = {"guidance": guidance, "negative": negative}

    def run(rows: slice) -> Tensor:
        part, keys = x[rows], range(first + rows.start, first + rows.stop)
        own = {"symmetric": symmetric, "layer": layer, "prompt": prompts(rows), **text}
        for t, t_next in pairs:
            eps, direction = predictions(generator, part, t, shift, **own)
            alpha, alpha_next, eta = generator.alpha(t), generator.alpha(t_next), float(t < t_boost)
            noisy = deviation(alpha, alpha_next, eta) > 0
            noise = step_noise(generator, keys, seed, t) if noisy else None
            part = update(
                part, eps, alpha, alpha_next, eta=eta, noise=noise, eps_direction=direction
            )
            bar.update(len(part))
        return part if rest or not decode else generator.decode(part)

    rows = _batch(generator, batch)
    with torch.no_grad(), _bar(len(x) * len(pairs), "editing", progress) as bar:
        x = in_batches(run, len(x), rows if symmetric else max(rows // 2, 1))
    if not rest:
        return x
    plain = {"prompt": prompt, "seed": seed, "first": first, "decode": decode, "batch": batch}
    return _plain(generator, x, rest[0][0], t_boost, steps, progress=progress, **plain, **text)


def reconstruct(
    generator: Generator, latents: Tensor, *, steps: int, t_boost: float = 0, **options: object
) -> Tensor:
    """The plain images of the same latents: DDIM, then eta = 1 with the noise of `edit`.

    `options` go to `sampling.ddim`. Raises ValueError as `edit` does.
    """
    train_steps = len(generator.alphas)
    _check_phases(train_steps, t_boost, train_steps)
    top = time_grid(steps, train_steps)[-1]
    return _plain(generator, latents, top, t_boost, steps, **options)


def _plain(
    generator: Generator, x: Tensor, start: int, t_boost: float, steps: int, **options: object
) -> Tensor:
    """The two phases without Δh, from latents at a grid point `start`."""
    times = [t for t in time_grid(steps, len(generator.alphas)) if t <= start]
    noisy = [t for t in times if t < t_boost]
    if 0 < len(noisy) < len(times):
        x = ddim(generator, x, steps=steps, start=start, stop=noisy[-1], **options)
        start = noisy[-1]
    return ddim(generator, x, steps=steps, start=start, eta=float(bool(noisy)), **options)


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


def _step_ratio(trained_steps: int | None, steps: int) -> float:
    if trained_steps is None:
        return 1.0
    if trained_steps < 1:
        raise ValueError(f"trained_steps = {trained_steps}: give the number of steps of training")
    return trained_steps / steps
