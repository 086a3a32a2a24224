"""Averages over samples: mean Δh of an f_t, labelled mean differences of h, mean Δε of a Δh.

All come as `deltas.PerStep`: {t: change}, and callable as a Δh.
"""

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from functools import wraps
from typing import NamedTuple

import torch
from torch import Tensor

from lib.diffusion.models import Generator, unit_normal
from lib.diffusion.sampling import ddim
from lib.hspace import bases, editing, schedule, taps
from lib.hspace.deltas import Delta, PerStep, per_step

Labels = Callable[[Tensor], Mapping[str, Tensor]]


class Means(NamedTuple):
    """Mean Δh over samples at each edited time, {t: (C, h, w)}, and their mean over the times."""

    per_step: PerStep
    overall: Tensor


def mean_over_samples(
    generator: Generator,
    latents: Tensor,
    delta: Delta,
    *,
    steps: int,
    trained_steps: int | None = None,
    **options: object,
) -> Means:
    """Δh_t^mean = Σ_i Δh_t(h_i) / N and Δh^global = Σ_t Δh_t^mean / T_e (Asyrp, Sec. 5.3).

    The h_i lie on the edited trajectories of the latents, and Δh is that of a run of `steps`;
    `trained_steps` and `options` are those of `editing.edit`, of which strength scales the
    trajectories alone. Raises ValueError where no step is edited.
    """
    sums: dict[int, Tensor] = {}
    shift = editing.scaled(delta, 1.0, steps=steps, trained_steps=trained_steps)

    @wraps(delta, assigned=("owners", "t_edit"), updated=())
    def record(h: Tensor, t: int) -> Tensor:
        change = shift(h, t).expand_as(h)
        sums[t] = sums.get(t, 0) + change.sum(0)
        return change

    with torch.no_grad():
        editing.edit(generator, latents, record, steps=steps, decode=False, **options)
    if not sums:
        raise ValueError("no step was edited; choose a smaller t_edit")
    mean = per_step({t: total / len(latents) for t, total in sums.items()})
    return Means(mean, torch.stack(mean.changes).mean(0))


def mean_difference(h: Mapping[int, Tensor], labels: Sequence[bool]) -> PerStep:
    """v_t = mean h_t of the samples with the attribute minus that of those without (Haas et al.).

    h: {t: (n, C, height, width)} from `taps.capture`; labels: (n,). Raises ValueError for another
    number of labels, and for labels that are all alike.
    """
    labels = torch.as_tensor(labels, dtype=torch.bool)
    if any(labels.shape != (len(rows),) for rows in h.values()):
        raise ValueError(f"{labels.numel()} labels for h of {len(next(iter(h.values())))} rows")
    if bool(labels.all()) or not bool(labels.any()):
        raise ValueError("the labels are all alike; give samples with and without the attribute")
    return per_step({t: rows[labels].mean(0) - rows[~labels].mean(0) for t, rows in h.items()})


def labelled_differences(
    generator: Generator,
    latents: Tensor,
    label: Labels,
    *,
    steps: int,
    layers: Sequence[str] = (taps.MIDDLE,),
    halves: int = 0,
    batch: int = 16,
    **text: object,
) -> dict[str, dict[str, PerStep]]:
    """`mean_difference` of every attribute at every layer, from one run: {layer: {name: {t: v}}}.

    The latents are sampled plainly and label(images) -> {name: (n,) bool} names the groups. Only
    running sums are kept. A name whose labels are all alike is left out. halves: at the first
    layer, as many differences between random halves of the samples, "half 0" ...: chance alone.
    text: prompt, guidance, negative, class_labels as in `sampling.ddim`, one for all latents.
    """
    coins = {
        f"half {i}": torch.rand(len(latents), generator=torch.Generator().manual_seed(i)) < 0.5
        for i in range(halves)
    }
    sums = {layer: _Sums() for layer in layers}
    for index in torch.arange(len(latents)).split(batch):
        h, images = _sampled(generator, latents[index], layers, steps=steps, **text)
        groups = {name: rows.cpu() for name, rows in label(images).items()}
        chance = {name: rows[index] for name, rows in coins.items()}
        for layer in layers:
            sums[layer].add(h[layer], groups | chance if layer == layers[0] else groups)
    return {layer: found.differences() for layer, found in sums.items()}


class _Sums:
    """Sums of h at each time over all rows and over named groups of them, batch by batch."""

    def __init__(self) -> None:
        self.count: Tensor | int = 0  # (1 + names,), of all rows and of each group
        self.total: dict[int, Tensor] = {}  # {t: (1 + names, C, height, width)}

    def add(self, h: Mapping[int, Tensor], groups: Mapping[str, Tensor]) -> None:
        """Rows h, {t: (n, C, height, width)}, and who belongs to each group, {name: (n,) bool}."""
        self.names = list(groups)
        everyone = torch.ones(len(next(iter(h.values()))), dtype=torch.bool)
        members = torch.stack([everyone, *groups.values()])
        self.count = self.count + members.sum(1)
        for t, values in h.items():
            own = (members.to(values) @ values.flatten(1)).view(-1, *values.shape[1:])
            self.total[t] = self.total.get(t, 0) + own

    def differences(self) -> dict[str, PerStep]:
        """Mean with less mean without, of every name that some rows have and others have not."""
        known = [i for i, n in enumerate(self.count) if 0 < n < self.count[0]]
        times = sorted(self.total)
        return {self.names[i - 1]: per_step({t: self._at(t, i) for t in times}) for i in known}

    def _at(self, t: int, i: int) -> Tensor:
        total, count = self.total[t], self.count
        without = (total[0] - total[i]) / (count[0] - count[i])
        return total[i] / count[i] - without


def _sampled(
    generator: Generator, latents: Tensor, layers: Sequence[str], **options: object
) -> tuple[dict[str, dict[int, Tensor]], Tensor]:
    """h of every layer on the way of one batch, {layer: {t: h}}, and its images."""
    with ExitStack() as stack:
        h = {k: stack.enter_context(taps.capture(generator, layer=k)) for k in layers}
        return h, ddim(generator, latents, batch=len(latents), progress=False, **options)


def random_like(changes: Mapping[int, Tensor], seed: int) -> PerStep:
    """One Gaussian direction with the norm of each Δ_t: what a direction without meaning does."""
    shape = next(iter(changes.values())).shape
    draw = unit_normal(tuple(shape), seed)
    return per_step({t: draw.to(v) * (v.norm() / draw.to(v).norm()) for t, v in changes.items()})


def projected(changes: Mapping[int, Tensor], protected: Sequence[Mapping[int, Tensor]]) -> PerStep:
    """`bases.project` at every time: the part of Δ_t that the protected ones do not share."""
    return per_step(
        {t: bases.project(v, [other[t] for other in protected]) for t, v in changes.items()}
    )


class Agreement(NamedTuple):
    """Mean cosine of two estimates of a shift at pairs of different times, and at equal times."""

    across: float
    same: float


def agreement(
    changes: Mapping[int, Tensor], others: Mapping[int, Tensor], *, above: float = 0
) -> Agreement:
    """How far one direction serves all times: mean cos(v_t, w_s) over t ≠ s >= above, and t = s.

    changes and others are estimates of the same shift from *different* samples, so that the errors
    of the two are independent: the same samples at every time share their error, and even random
    groups of them agree across times. Raises ValueError for fewer than two common times.
    """
    times = sorted(t for t in changes if t in others and t >= above)
    if len(times) < 2:
        raise ValueError(f"{len(times)} times lie at or above {above}; a pair is needed")
    first, second = (
        torch.nn.functional.normalize(torch.stack([v[t].double().flatten() for t in times]), dim=1)
        for v in (changes, others)
    )
    cosines, n = first @ second.T, len(times)
    same = float(cosines.diagonal().mean())
    return Agreement(float((cosines.mean() * n - same) / (n - 1)), same)


def mean_epsilon(
    generator: Generator,
    latents: Tensor,
    delta: Delta,
    *,
    steps: int,
    t_edit: float,
    strength: float = 1.0,
    layer: str = taps.MIDDLE,
    **options: object,
) -> PerStep:
    """Mean over samples of ε(x_t | c Δh_t) − ε(x_t) on the edited trajectories, {t: (c, h, w)}.

    The partner of a Δh in ε-space: on a single sample it makes the same edit. layer: where Δh is
    added. options: prompt, guidance, negative, class_labels, batch. Raises ValueError where no
    step is edited.
    """
    sums: dict[int, Tensor] = {}
    shift = editing.scaled(delta, strength, steps=steps)

    def predict(x: Tensor, t: int, **text: object) -> tuple[Tensor, Tensor]:
        shifted, plain = editing.predictions(generator, x, t, shift, layer=layer, **text)
        sums[t] = sums.get(t, 0) + (shifted - plain).sum(0)
        return shifted, plain

    _, last = schedule.edit_steps(generator, steps, t_edit)[-1]
    stop = None if last < 0 else last
    ddim(generator, latents, steps=steps, stop=stop, predict=predict, decode=False, **options)
    return per_step({t: total / len(latents) for t, total in sums.items()})
