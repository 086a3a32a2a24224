"""Changes of h as values that can be called, compared by content in a cache, stored and saved.

A change is called with h (n, channels, height, width) and a training time and gives Δh of that
shape, or of one sample's. It may carry `owners`, the hashes of the models that it was trained on,
`t_edit`, where its window ends, and `trained_steps`, the number of steps of its training.
"""

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

Delta = Callable[[Tensor, int], Tensor]


@dataclass(frozen=True, eq=False)
class PerStep(Mapping):
    """Δh_t at some times, {t: (channels, height, width)}; called at another, the nearest one."""

    times: tuple[int, ...]
    changes: tuple[Tensor, ...]

    __hash__ = object.__hash__
    __eq__ = object.__eq__

    def __call__(self, h: Tensor, t: int) -> Tensor:
        """Δh_t; h gives type and device only."""
        return self[min(self.times, key=lambda s: abs(s - t))].to(h)

    def __getitem__(self, t: int) -> Tensor:
        """The change at one of the times."""
        if t not in self.times:
            raise KeyError(t)
        return self.changes[self.times.index(t)]

    def __iter__(self) -> Iterator[int]:
        """The times."""
        return iter(self.times)

    def __len__(self) -> int:
        """How many times there are."""
        return len(self.times)


@dataclass(frozen=True, eq=False)
class Sum:
    """Σ_i w_i Δh_i."""

    deltas: tuple[Delta, ...]
    weights: tuple[float, ...]

    @property
    def owners(self) -> frozenset[str]:
        """Weight hashes of the models that the parts were trained on."""
        return frozenset().union(*(getattr(d, "owners", ()) for d in self.deltas))

    @property
    def t_edit(self) -> float | None:
        """The window's end, where all parts carry the same."""
        found = {getattr(d, "t_edit", None) for d in self.deltas}
        return found.pop() if len(found) == 1 else None

    def __call__(self, h: Tensor, t: int) -> Tensor:
        """The weighted sum of the parts."""
        return sum(w * delta(h, t) for w, delta in zip(self.weights, self.deltas, strict=True))


def constant(change: Tensor) -> PerStep:
    """The same Δh at every time; change: (channels, height, width), or one such row per sample."""
    return PerStep((0,), (_finite(change, "change"),))


def per_step(changes: Mapping[int, Tensor]) -> PerStep:
    """Δh_t from {t: (channels, height, width)}; a time that is not there takes the nearest one."""
    if not changes:
        raise ValueError("changes is empty; give Δh for at least one training time")
    values = tuple(_finite(v, f"changes[{t}]") for t, v in changes.items())
    return PerStep(tuple(int(t) for t in changes), values)


def combine(strengths: Mapping[Delta, float]) -> Sum:
    """Several attributes at once: Σ_i c_i Δh_i / sqrt(n), from {Δh_i: c_i} (Asyrp, released code).

    Raises ValueError for no attribute or a strength that is not finite.
    """
    if not strengths:
        raise ValueError("strengths is empty; give at least one {delta: strength}")
    if not all(map(callable, strengths)):
        raise ValueError(no_change(next(d for d in strengths if not callable(d))))
    root = math.sqrt(len(strengths))
    weights = tuple(finite_number(c, "strength") / root for c in strengths.values())
    return Sum(tuple(strengths), weights)


def no_change(delta: object) -> str:
    """Why what cannot be called is no Δh, and what would be one."""
    given = repr(str(delta)) if isinstance(delta, str | Path) else f"a {type(delta).__name__}"
    return (
        f"delta is {given}; give a Δh: trained.load(generator, file) with a file of models/hspace, "
        "hspace.constant(tensor) or hspace.per_step({time: tensor})"
    )


def for_steps(delta: Delta, steps: int) -> Delta:
    """Δh for a run of `steps`: every part that carries its own number S is multiplied by S / steps.

    Asyrp's rule for a shift that acts in more, or fewer, steps than it was found with.
    """
    if isinstance(delta, Sum):
        return Sum(tuple(for_steps(d, steps) for d in delta.deltas), delta.weights)
    trained = getattr(delta, "trained_steps", None)
    return delta if trained is None else Sum((delta,), (trained / steps,))


def finite_number(value: float, name: str) -> float:
    """The value as a float; raises ValueError where it is not one finite number."""
    if not hasattr(value, "__float__") or math.prod(getattr(value, "shape", ())) != 1:
        raise ValueError(f"{name} = {value!r}: give one finite number, such as 1.0")
    if not math.isfinite(value):
        raise ValueError(f"{name} = {value}: give a finite number")
    return float(value)


def _finite(change: Tensor, name: str) -> Tensor:
    change = torch.as_tensor(change)
    if change.ndim not in (3, 4) or not bool(change.isfinite().all()):
        raise ValueError(
            f"{name} has shape {tuple(change.shape)}; give finite values of shape (channels, "
            "height, width)"
        )
    return change
