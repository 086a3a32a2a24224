"""Ways to bring an attribute into a latent at time t, side by side: what the comparison compares.

All ways start from the same latents: x of the source and z of the target at t, and noise or clean
latents of the same source where a way needs those. Images come out on the CPU, clamped to [-1, 1].
"""

import functools
from collections.abc import Callable

import torch
from torch import Tensor

from lib import hspace
from lib.diffusion.models import Generator, unit_normal
from lib.diffusion.sampling import ddim, in_batches
from lib.svd import avi, mixing

Ways = dict[str, Callable[[float], Tensor]]
BATCH = 16


def images_of(generator: Generator, latents: Tensor) -> Tensor:
    """Images (n, c, h, w) of clean latents, decoded in batches."""
    x = latents.to(generator.device, generator.dtype)
    with torch.no_grad():
        decoded = in_batches(lambda rows: generator.decode(x[rows]), len(x), BATCH)
    return decoded.cpu().clamp(-1, 1)


def renoised(clean: Tensor, alpha: float, *, seed: int) -> Tensor:
    """√α clean + √(1 - α) ε with fresh noise, row i from (seed, i) alone: SDEdit's restart."""
    noise = torch.stack([unit_normal(clean.shape[1:], seed, i) for i in range(len(clean))])
    return alpha**0.5 * clean + (1 - alpha) ** 0.5 * noise.to(clean)


def latent_ways(x: Tensor, z: Tensor, *, k: int) -> Ways:
    """{way: weight -> latents} that mix x and z, (n, c, h, w); weight 0 the source, 1 the target.

    AVI keeps k atoms, "DCT atoms" k fixed products of cosines. Raises ValueError as `integrate`.
    """
    cosines = tuple(mixing.cosine_basis(side) for side in x.shape[-2:])

    def mixed(**options: object) -> Callable[[float], Tensor]:
        return lambda w: avi.integrate(x, z, k=k, weights=(w, 1 - w, 0.1, 0.1), **options)

    return {
        "interpolation": lambda w: mixing.interpolate(x, z, w),
        "slerp": lambda w: mixing.interpolate(x, z, w, path="spherical"),
        "AVI": mixed(),
        "DCT atoms": mixed(bases=cosines),
    }


def mean_shift(
    generator: Generator, without: Tensor, present: Tensor, *, steps: int
) -> hspace.Delta:
    """Δh_t = mean h of `present` less mean h of `without`, noise latents (n, c, h, w) of pairs."""
    with hspace.capture(generator) as h:
        ddim(generator, torch.cat([without, present]), steps=steps, decode=False, progress=False)
    n = len(without)
    return hspace.per_step({t: rows[n:].mean(0) - rows[:n].mean(0) for t, rows in h.items()})


def shifted(
    generator: Generator,
    latents: Tensor,
    delta: hspace.Delta,
    strength: float,
    *,
    steps: int,
    start: int,
    stop: int | None = None,
) -> Tensor:
    """Asyrp from training time `start` on: Δh in the predicted clean latent, not in the direction.

    Images, or latents at `stop`.
    """
    scaled = hspace.scaled(delta, strength, steps=steps)
    predict = functools.partial(hspace.predictions, generator, delta=scaled)
    own = {"steps": steps, "start": start, "stop": stop, "batch": BATCH // 2, "progress": False}
    found = ddim(generator, latents, predict=predict, **own).cpu()
    return found if stop is not None else found.clamp(-1, 1)


def shift_ways(
    generator: Generator,
    noise: Tensor,
    x: Tensor,
    clean: Tensor,
    delta: hspace.Delta,
    *,
    steps: int,
    t: int,
    seed: int,
    cache: Callable | None = None,
) -> Ways:
    """{way: strength -> images} by Δh: throughout from `noise`, from t on, or after a restart.

    noise, x, clean: latents of one source at the noisiest time, at t, and without noise.
    cache: `lib.kit.cache.cached`, or any function called as cache(function, *arguments).
    """
    fresh, first = renoised(clean, generator.alpha(t), seed=seed), len(generator.alphas) - 1
    kept = functools.partial(cache, shifted) if cache else shifted

    def run(latents: Tensor, start: int) -> Callable[[float], Tensor]:
        return lambda w: kept(generator, latents, delta, w, steps=steps, start=start)

    return {"h-space": run(noise, first), "switch": run(x, t), "restart": run(fresh, t)}


def prompt_ways(
    generator: Generator,
    source: Tensor,
    target: Tensor,
    prompts: tuple[str, str],
    *,
    steps: int,
    t: int,
    row: int,
    guidance: float = 1.0,
    weight: float = 0.75,
    seed: int = 0,
) -> dict[str, Tensor]:
    """Images of a text model by each way, {way: (n, c, h, w)}.

    source, target: trajectories (steps + 1, n, ...) of the two `prompts` from one noise, by
    `properties.trajectory`; their row `row` is at training time t. "AVI" (half of the atoms) and
    "interpolation" enter at t and go on under the source prompt; "switch" goes on under the target
    prompt, "restart" too, from fresh noise. Raises ValueError for trajectories of unequal shapes.
    """
    if source.shape != target.shape:
        raise ValueError(
            f"source {tuple(source.shape)}, target {tuple(target.shape)}: give trajectories of the "
            "same noise and steps"
        )
    x, z = source[row], target[row]
    half, weights = max(min(x.shape[-2:]) // 2, 1), (weight, 1 - weight, 0.1, 0.1)
    fresh = renoised(source[-1], generator.alpha(t), seed=seed)
    entries = {
        "AVI": (avi.integrate(x, z, k=half, weights=weights), prompts[0]),
        "interpolation": (mixing.interpolate(x, z, weight), prompts[0]),
        "switch": (x, prompts[1]),
        "restart": (fresh, prompts[1]),
    }
    found = {"source": images_of(generator, source[-1])}
    own = {"steps": steps, "start": t, "guidance": guidance, "progress": False}
    for way, (latents, prompt) in entries.items():
        found[way] = ddim(generator, latents, prompt=prompt, **own).cpu().clamp(-1, 1)
    return found | {"target": images_of(generator, target[-1])}
