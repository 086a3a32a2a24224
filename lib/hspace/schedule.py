"""When to edit and when to add noise, and what the step count does to a symmetric shift (Asyrp)."""

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from lib.diffusion.models import Generator
from lib.diffusion.sampling import CLEAN, downward, in_batches, invert, predicted, time_grid


class Curves(NamedTuple):
    """Mean distances from the clean image along its inversion, (S,) each, at rising `times`.

    prediction: d(x, P_t); its fall from T to t is the editing strength, what an edit from T to t
    can change. noisy: d(x, x_t), the quality deficiency.
    """

    times: Tensor
    prediction: Tensor
    noisy: Tensor


def curves(
    generator: Generator,
    images: Tensor,
    distance: Callable[[Tensor, Tensor], Tensor],
    *,
    steps: int,
    batch: int = 16,
    **text: object,
) -> Curves:
    """Distances of P_t and x_t from images (n, c, h, w) in [-1, 1], averaged over them.

    x_t is the inversion of the released code on `steps` points, P_t the prediction at t itself.
    distance: (n, c, h, w) twice -> (n,). text: prompt, guidance, negative, class_labels.
    """
    grid = time_grid(steps, len(generator.alphas))
    images = generator.check_images(images)

    def run(rows: slice) -> Tensor:
        own, found = images[rows], {}

        def measure(x: Tensor, t: int, eps: Tensor, _: slice) -> None:
            if t != CLEAN:
                clean = generator.decode(predicted(x, eps, generator.alpha(t)))
                values = distance(own, clean), distance(own, generator.decode(x))
                found[t] = torch.stack(values, 1).double()

        run = {"steps": steps, "refine": 0, "batch": len(own), "progress": False}
        top = invert(generator, own, callback=measure, **run, **text)
        measure(top, grid[-1], generator.epsilon(top, grid[-1], **text), rows)
        return torch.stack([found[t] for t in grid], 1)

    with torch.no_grad():
        mean = in_batches(run, len(images), batch).mean(0).cpu()
    return Curves(torch.tensor(grid, dtype=torch.float64), mean[:, 0], mean[:, 1])


def t_edit(curves: Curves, *, cosine: float = 1.0, share: float = 0.29) -> int:
    """Where the edit stops: the smallest t with d(x, P_t) >= share cosine d(x, P_T).

    cosine: of source and target text, 0.33 cosine of the paper in its scale-free form. Its own rule
    is share = 0.33 / d(x, P_T), in LPIPS. Raises ValueError unless cosine and share are in (0, 1].
    """
    _check_share(cosine=cosine, share=share)
    return _reaches(curves.times, curves.prediction, share * cosine * float(curves.prediction[-1]))


def t_boost(curves: Curves, *, share: float = 0.85) -> int:
    """Where noise is added again: the smallest t with d(x, x_t) >= share d(x, x_T).

    The paper's own rule is share = 1.2 / d(x, x_T), in LPIPS. Raises ValueError unless share is in
    (0, 1].
    """
    _check_share(share=share)
    return _reaches(curves.times, curves.noisy, share * float(curves.noisy[-1]))


def edit_steps(generator: Generator, steps: int, t_edit: float) -> list[tuple[int, int]]:
    """The pairs (t, t_next) of a run of `steps` with t >= t_edit, falling.

    Raises ValueError where no step lies at or above t_edit.
    """
    pairs = [(t, t_next) for t, t_next in downward(generator, steps) if t >= t_edit]
    if not pairs:
        raise ValueError(f"t_edit = {t_edit} lies above every step; choose a smaller one")
    return pairs


def cancellation(alpha: float, alpha_next: float) -> float:
    """Effect of the same Δeps in both terms over that in P alone, for one DDIM step of any stride.

    r = 1 - sqrt(1 - beta / (1 - alpha)) with beta = 1 - alpha / alpha'. To first order it is
    beta / (2 (1 - alpha)): of the same sign, and small on a fine grid. For adjacent steps this is
    Theorem 1 of Asyrp. Raises ValueError unless 0 < alpha < alpha' <= 1.
    """
    if not 0 < alpha < alpha_next <= 1:
        raise ValueError(f"alpha = {alpha}, alpha' = {alpha_next}: sampling needs alpha < alpha'")
    kept = (1 - alpha / alpha_next) / (1 - alpha)
    return kept / (1 + math.sqrt(max(1 - kept, 0.0)))


def window_cancellation(generator: Generator, *, steps: int, t_edit: float) -> float:
    """The ratio of `cancellation` for a constant Δeps over all steps with t >= t_edit.

    The shifts of the single steps are carried on by sqrt(alpha' / alpha), without the network's own
    answer to them. Raises ValueError where no step lies at or above t_edit.
    """
    both = alone = 0.0
    for t, t_next in edit_steps(generator, steps, t_edit):
        alpha, alpha_next = generator.alpha(t), generator.alpha(t_next)
        shift = math.sqrt(1 - alpha)
        both = math.sqrt(alpha_next / alpha) * (both + shift * cancellation(alpha, alpha_next))
        alone = math.sqrt(alpha_next / alpha) * (alone + shift)
    return both / alone


def _check_share(**values: float) -> None:
    for name, value in values.items():
        if not 0 < value <= 1:
            raise ValueError(f"{name} = {value}: choose a number in (0, 1]")


def _reaches(times: Sequence[float], values: Sequence[float], threshold: float) -> int:
    """Smallest whole time at which the straight line between grid points reaches the threshold."""
    times, values = [float(t) for t in times], [float(v) for v in values]
    i = next(i for i, value in enumerate(values) if value >= threshold)
    if i == 0:
        return int(times[0])
    part = (threshold - values[i - 1]) / (values[i] - values[i - 1])
    return math.ceil(times[i - 1] + part * (times[i] - times[i - 1]) - 1e-9)
