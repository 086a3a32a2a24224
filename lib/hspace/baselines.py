"""The methods that Asyrp is compared with, on the same latents: ε-shift, mixing, guidance, tuning.

Each returns images (n, c, h, w), not clipped, of latents (n, *latent_shape) at the noisiest time.
text: prompt, guidance, negative, class_labels as in `sampling.ddim`, one for all latents.
"""

import copy
import math
from collections.abc import Callable, Mapping
from itertools import pairwise

import torch
from torch import Tensor
from torch.nn import functional

from lib.diffusion.models import Generator
from lib.diffusion.sampling import CLEAN, ddim, nearest, time_grid, update
from lib.hspace.deltas import finite_number
from lib.hspace.trained import directional_loss

Gradient = Callable[[Tensor, int], Tensor]


def epsilon_shift(
    generator: Generator,
    latents: Tensor,
    changes: Mapping[int, Tensor],
    *,
    steps: int,
    strength: float = 1.0,
    symmetric: bool = False,
    **text: object,
) -> Tensor:
    """x' = sqrt(α') P(ε + c Δε_t) + D(ε) at the grid times in `changes`, {t: (c, h, w)}.

    symmetric: Δε in both terms. Raises ValueError when a time of `changes` is not on the grid.
    """
    known = set(time_grid(steps, len(generator.alphas)))
    if not changes or not set(changes) <= known:
        raise ValueError(
            f"changes has the times {sorted(changes)}; give some of the grid of {steps} steps"
        )

    def step(x: Tensor, t: int, t_next: int, eps: Tensor) -> Tensor:
        shifted = eps + strength * changes[t].to(eps) if t in changes else eps
        plain = shifted if symmetric else eps
        return update(x, shifted, generator.alpha(t), generator.alpha(t_next), eps_direction=plain)

    return ddim(generator, latents, steps=steps, step=step, **text)


def mix_latents(
    generator: Generator,
    latents: Tensor,
    reference: Tensor,
    *,
    steps: int,
    t_mix: float,
    weight: float,
    **text: object,
) -> Tensor:
    """Image guidance: x_t <- x_t + w (x_t^ref − x_t) while t >= t_mix, then plain DDIM.

    x_t^ref is the trajectory of one latent, (1, *latent_shape), whose image has the attribute.
    Raises ValueError for a weight outside [0, 1].
    """
    if not 0 <= weight <= 1:
        raise ValueError(f"weight = {weight}: choose 0 (no mixing) ... 1 (the reference)")
    path: dict[int, Tensor] = {}
    keep = lambda x, t, eps, rows: path.update({t: x})  # noqa: E731
    ddim(generator, reference, steps=steps, callback=keep, **text)

    def mixed(x: Tensor, t: int) -> Tensor:
        return x + weight * (path[t] - x) if t >= t_mix else x

    def step(x: Tensor, t: int, t_next: int, eps: Tensor) -> Tensor:
        x = update(x, eps, generator.alpha(t), generator.alpha(t_next))
        return mixed(x, t_next) if t_next in path else x

    top = time_grid(steps, len(generator.alphas))[-1]
    return ddim(generator, mixed(latents, top), steps=steps, step=step, **text)


def guide(
    generator: Generator,
    latents: Tensor,
    gradient: Gradient,
    *,
    steps: int,
    scale: float,
    t_stop: float = 0,
    **text: object,
) -> Tensor:
    """Classifier guidance: ε <- ε − s sqrt(1 − α_t) ∇_x log p(y | x_t), in both terms, t >= t_stop.

    gradient(x, t) is the ∇ of a classifier that has seen noisy images (Dhariwal and Nichol 2021).
    Raises ValueError for a scale that is not finite.
    """
    finite_number(scale, "scale")

    def step(x: Tensor, t: int, t_next: int, eps: Tensor) -> Tensor:
        alpha = generator.alpha(t)
        if t >= t_stop:
            eps = eps - scale * math.sqrt(1 - alpha) * gradient(x, t)
        return update(x, eps, alpha, generator.alpha(t_next))

    return ddim(generator, latents, steps=steps, step=step, **text)


def fine_tune(
    generator: Generator,
    latents: Tensor,
    encode: Callable[[Tensor], Tensor],
    direction: Tensor,
    *,
    steps: int,
    t_start: int,
    rate: float = 2e-4,
    batch: int = 8,
    passes: int = 1,
    short: int = 5,
    **text: object,
) -> Generator:
    """A copy of the model, all of its weights tuned to one attribute (DiffusionCLIP, Kim 2022).

    Source images come from the latents by `steps` steps. The copy decodes their latents at t_start,
    taken along the same trajectories, in `short` steps, and its weights follow the gradient of
    -log((1 + cos(ΔI, ΔT)) / 2) + |image − source|_1 through all of them, once per batch and pass.
    encode, direction: as in `trained.train`. Apply it with `ddim(tuned, x_start, steps=steps,
    start=t_start)`.
    """
    tuned = with_weights(generator, generator.unet.state_dict())
    tuned.unet.requires_grad_(True)
    optimiser = torch.optim.Adam(tuned.unet.parameters(), lr=rate)
    middles = ddim(generator, latents, steps=steps, stop=t_start, **text)
    sources = ddim(generator, middles, steps=steps, start=t_start, **text)
    grid = time_grid(steps, len(generator.alphas))
    top = grid[nearest(grid, t_start, "t_start")]
    times = [round(top * (short - i) / short) for i in range(short)]
    for _ in range(passes):
        for x, source in zip(middles.split(batch), sources.split(batch), strict=True):
            for t, t_next in pairwise([*times, CLEAN]):
                eps = tuned.epsilon(x, t, **text)
                x = update(x, eps, tuned.alpha(t), tuned.alpha(t_next))
            edited = tuned.decode(x)
            change = encode(edited) - encode(source)
            cosine = functional.cosine_similarity(change, direction.expand_as(change), dim=-1)
            loss = directional_loss(cosine).mean() + functional.l1_loss(edited, source)
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
    tuned.unet.requires_grad_(False)
    return tuned


def with_weights(generator: Generator, state: Mapping[str, Tensor]) -> Generator:
    """A copy of the model whose U-Net has these weights, {name: tensor}; the copy is frozen."""
    twin = copy.copy(generator)
    twin.unet, twin._hash = copy.deepcopy(generator.unet), None
    twin.unet.load_state_dict(state)
    twin.unet.requires_grad_(False)
    return twin


def blend(generator: Generator, tuned: Generator, weight: float) -> Generator:
    """The model with weights θ + w (θ_tuned − θ): the strength of a fine-tuned edit.

    Raises ValueError for two networks of different shapes.
    """
    finite_number(weight, "weight")
    old, new = generator.unet.state_dict(), tuned.unet.state_dict()
    if {k: v.shape for k, v in old.items()} != {k: v.shape for k, v in new.items()}:
        raise ValueError("the two models have different networks; tune a copy of this one")
    return with_weights(generator, {k: torch.lerp(old[k], new[k], weight) for k in old})
