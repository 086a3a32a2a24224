"""What the calls of this room ask of their input, one helper for each kind."""

from collections.abc import Callable, Sequence
from numbers import Integral

import numpy as np
import torch
from torch import Tensor

Values = Tensor | np.ndarray | Sequence
Metric = Callable[[Tensor], Tensor]  # (n, d) -> (n, d, d), row by row
Potential = Callable[[Tensor], Tensor]  # (n, d) -> (n,), row by row
Natural = Callable[[Tensor], Tensor]  # t (n, d) -> θ (n, d), row by row


def as_tensor(values: Values, name: str) -> Tensor:
    """Real numbers as a tensor, on the device of the input; floats of a list are float64."""
    if not isinstance(values, Tensor):
        array = np.asarray(values)
        if array.dtype.kind not in "biuf":
            raise ValueError(f"{name} holds {array.dtype}, not real numbers; give numbers (n, ...)")
        values = torch.as_tensor(np.require(array, requirements="CW"))
    if values.is_complex():
        raise ValueError(f"{name} is complex; give real numbers, or real and imaginary parts apart")
    return values


def float64(values: Values, name: str = "values") -> Tensor:
    """Real numbers in double precision, on the device of the input."""
    return as_tensor(values, name).double()


def as_points(t: Values, name: str = "t") -> Tensor:
    """Finite floating-point (n, d) tensor; arrays keep their precision, integers become float64."""
    t = as_tensor(t, name)
    t = t if t.is_floating_point() else t.double()
    if t.ndim != 2 or t.shape[1] == 0:
        raise ValueError(f"{name} has shape {tuple(t.shape)}; expected (n, d) with d >= 1")
    if not torch.isfinite(t).all():
        row = int((~torch.isfinite(t)).any(1).nonzero()[0])
        raise ValueError(f"{name}[{row}] = {t[row].tolist()} is not finite; drop or mend that row")
    return t


def require_finite(name: str, values: Tensor) -> None:
    """Raise a ValueError that counts the entries that are not finite."""
    bad = (~values.isfinite()).sum().item()
    if bad:
        raise ValueError(f"{name} has {bad} entries that are not finite; remove or mend them")


def require_whole(least: int, **values: int) -> None:
    """Raise a ValueError unless each value is an integer of at least `least`."""
    for name, value in values.items():
        if not isinstance(value, Integral) or value < least:
            raise ValueError(f"{name}={value!r}; give an integer of at least {least}")


def occupied(samples: Tensor) -> Tensor:
    """Where a two-state system is in its upper state; ValueError unless coded −1/+1 or 0/1."""
    up, low = samples == 1, samples == (0 if (samples == 0).any() else -1)
    if not (up | low).all():
        states = samples[:4096].unique().tolist()
        raise ValueError(
            f"samples hold the states {states[:4]}{', ...' if len(states) > 4 else ''}: two states "
            "are coded -1 and +1, or 0 and 1; give samples == upper, or network= for anything else"
        )
    return up


def check_positive(g: Tensor, t: Tensor) -> None:
    """Raise a ValueError that says where a metric is not finite or not positive definite."""
    finite = torch.isfinite(g).flatten(1).all(1)
    bad = ~finite | (torch.linalg.cholesky_ex(g).info > 0)
    if not bad.any():
        return
    row = int(bad.nonzero()[0])
    what = "is not finite"
    if finite[row]:
        what = f"has eigenvalue {torch.linalg.eigvalsh(g[row])[0].item():.3g}"
    raise ValueError(
        f"the metric {what} at t = {t[row].tolist()} ({int(bad.sum())} of {len(t)} points are not "
        "positive); give floor > 0 where it is degenerate, or keep to its domain"
    )
