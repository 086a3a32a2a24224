"""The rule behind a verdict: a bound, trivial predictors, and the controls of the instrument."""

import math
from collections.abc import Iterable, Mapping
from typing import NamedTuple

MOST_FALSE_ALARMS, LEAST_POWER = 0.05, 0.90
DIGITS = 6  # beyond them, machines differ

Number = float | int | None
Numbers = float | int | str | None | Mapping[str, object]


class Bound(NamedTuple):
    """What a claim asks of a number; `value` is a text where it is measured in the same run."""

    side: str  # below, above or within
    value: float | str
    centre: float = 0.0
    of: tuple[float, float] | None = None
    rivals: Mapping[str, float] | Iterable[float] | None = None

    def __str__(self) -> str:
        """Return the bound as it stands on the scorecard."""
        value = f"{self.value:.4g}" if isinstance(self.value, int | float) else self.value
        signs = {"below": "< ", "above": "> ", "within": f"{self.centre:.4g} ± "}
        return signs[self.side] + value


class Controls(NamedTuple):
    """Share of false alarms where the claim is known to be false, power where it is true."""

    false_alarms: float
    power: float
    n: int


def below(value: float | str, *, of: tuple | None = None, rivals: object = None) -> Bound:
    """Ask for a number below `value` that is also below what trivial predictors score.

    of: (number, error) that the bound is about, where it is not the measured one itself.
    rivals: the numbers to beat, by default all of the row's `null`; () for none, where the null
    is the end of a scale and no rival.
    """
    return Bound("below", value, of=of, rivals=rivals)


def above(value: float | str, *, of: tuple | None = None, rivals: object = None) -> Bound:
    """Ask for a number above `value` and above the rivals; see `below`."""
    return Bound("above", value, of=of, rivals=rivals)


def within(
    centre: float, radius: float, *, of: tuple | None = None, rivals: object = None
) -> Bound:
    """Ask for a number nearer to `centre` than `radius`, and nearer than the rivals."""
    return Bound("within", radius, centre, of, rivals)


def verdict(measured: float, error: float, bound: Bound, nulls: Numbers = None) -> str:
    """Return the verdict on measured ± 2 error against a bound and the best of the nulls.

    "reproduced": the whole interval is on the right side of the bound and beats the nulls.
    "partly": one of the two holds, or the interval straddles the bound and the value itself is
    better than the nulls. Else "not reproduced". Raises ValueError for no finite number.
    """
    measured, error = bound.of or (measured, error)
    sign = -1.0 if bound.side == "above" else 1.0

    def place(name: str, number: object) -> float:
        """Where a number lies on a scale on which lower is better."""
        number = plain(name, number)
        if number is None:
            raise ValueError(f"{name} is None: a verdict takes a finite number")
        return abs(number - bound.centre) if bound.side == "within" else sign * number

    value, margin = place("measured", measured), 2 * abs(plain("error", error))
    limit = sign * plain("bound", bound.value)
    rivals = [place("null", item) for item in numbers(bound.rivals, nulls)]
    beaten = all(value + margin < rival for rival in rivals)
    if value + margin < limit:
        return "reproduced" if beaten else "partly"
    straddles = value - margin < limit and all(value < rival for rival in rivals)
    return "partly" if straddles or (rivals and beaten) else "not reproduced"


def numbers(rivals: object, nulls: Numbers = None) -> list:
    """Return the numbers to beat: the rivals, by default the nulls."""
    chosen = nulls if rivals is None else rivals
    if isinstance(chosen, Mapping):
        return list(chosen.values())
    return list(chosen) if isinstance(chosen, list | tuple) else [chosen] * (chosen is not None)


def capped(found: str, controls: Controls | None, requires: Mapping[str, bool]) -> tuple[str, list]:
    """Return the verdict, "partly" at best when something is short, and what is short."""
    short = [f"not met: {name}" for name, holds in requires.items() if not holds]
    if controls is not None and controls.false_alarms > MOST_FALSE_ALARMS:
        short.append(f"false alarms {controls.false_alarms:.3g}, more than {MOST_FALSE_ALARMS:g}")
    if controls is not None and controls.power < LEAST_POWER:
        short.append(f"power {controls.power:.3g}, less than {LEAST_POWER:g}")
    return ("partly" if short and found == "reproduced" else found), short


def plain(name: str, value: object) -> Number:
    """Return a number with the digits that machines agree on, or None.

    Raises ValueError for anything else, and for a number that is not finite.
    """
    if value is None:
        return None
    try:
        number = float(value)
    except (TypeError, ValueError):
        raise ValueError(f"{name} is {value!r}: expected a number or None") from None
    if not math.isfinite(number):
        raise ValueError(f"{name} is {number}: expected a finite number")
    return float(f"{number:.{DIGITS}g}")


def plain_all(name: str, value: object) -> Numbers:
    """Return numbers, texts and named sets of them as `plain` ones."""
    if value is None or isinstance(value, str):
        return value
    if isinstance(value, Mapping):
        return {str(key): plain_all(f"{name}[{key!r}]", item) for key, item in value.items()}
    return plain(name, value)
