"""The numbers contract: one row per claim in results.json, a verdict, and a table to show."""

import json
import math
from collections.abc import Mapping
from pathlib import Path

from lib.kit import session
from lib.kit.claims import CLAIMS, Claim

__all__ = ["CLAIMS", "Claim", "read", "record", "table", "verdict"]

VERDICTS = ("reproduced", "partly", "not reproduced", "not tested here")
DIGITS = 6  # beyond them, machines differ

Number = float | int | None
Numbers = float | int | str | None | Mapping[str, object]


def record(
    claim: str,
    measured: Number,
    error: Number,
    n: int | None,
    null: Numbers,
    *,
    second_route: Numbers = None,
    verdict: str,
    reason: str = "",
) -> dict:
    """Write the row of `claim` into the results file of this run and return it.

    `error` is one standard error (0 for an exact law), `n` the number of independent units, `null`
    what a trivial predictor scores: a number, or {name: number} for several.

    Raises:
        ValueError: for an unknown claim, one of another notebook, an unknown verdict, numbers that
            are missing or not finite, or "not tested here" without a reason or a need.
    """
    entry = _claim(claim)
    row = {
        "statement": entry.statement,
        "reported": entry.reported,
        "measured": _number("measured", measured),
        "error": _number("error", error),
        "n": n if n is None else int(n),
        "unit": entry.unit,
        "null": _numbers("null", null),
        "second_route": _numbers("second_route", second_route),
        "verdict": verdict,
        "reason": reason,
        "needs": entry.needs,
    }
    _check(claim, row)
    path = results_file(session.current().output, session.current().profile)
    rows = {**read(path), claim: row}
    ordered = {key: rows[key] for key in CLAIMS if key in rows}
    session.write_atomically(path, json.dumps(ordered, indent=1, allow_nan=False) + "\n")
    return row


def verdict(
    measured: float,
    error: float,
    *,
    below: float | None = None,
    above: float | None = None,
    null: float | Mapping[str, float] | None = None,
) -> str:
    """Return the verdict on measured ± 2 error against a bound and the best of the nulls.

    "reproduced": the whole interval is on the right side of the bound and beats the null.
    "partly": one of the two holds, or the interval straddles the bound and the value itself is
    better than the nulls. Else "not reproduced".

    Raises:
        ValueError: unless exactly one of `below` and `above` is given and all numbers are finite.
    """
    if (below is None) == (above is None):
        raise ValueError(f"give one bound: below is {below!r}, above is {above!r}")
    sign = 1.0 if above is None else -1.0
    value = sign * _number("measured", measured)
    bound = sign * _number("bound", below if above is None else above)
    margin = 2 * abs(_number("error", error))
    nulls = list(null.values()) if isinstance(null, Mapping) else [null] * (null is not None)
    beaten = all(value + margin < sign * _number("null", item) for item in nulls)
    if value + margin < bound:
        return "reproduced" if beaten else "partly"
    ahead = all(value < sign * _number("null", item) for item in nulls)
    straddles = value - margin < bound and ahead
    return "partly" if straddles or (nulls and beaten) else "not reproduced"


def results_file(folder: Path, profile: str) -> Path:
    """Return where a profile keeps its rows: results.json, or results.PROFILE.json."""
    return folder / (f"results.{profile}.json" if profile in ("full", "paper") else "results.json")


def read(path: Path) -> dict[str, dict]:
    """Return the rows of a results file; no file, no rows."""
    return json.loads(path.read_text()) if path.is_file() else {}


def table(notebook: str):
    """Return the rows of `notebook` in this run as a Markdown table for display."""
    from IPython.display import Markdown

    run = session.current()
    rows = read(results_file(run.output, run.profile))
    chosen = {key: row for key, row in rows.items() if CLAIMS[key].notebook == notebook}
    head = ("claim", "paper", "measured", "trivial", "second route", "verdict")
    lines = [head, ("---",) * len(head), *(_cells(row) for row in chosen.values())]
    return Markdown("\n".join(f"| {' | '.join(line)} |" for line in lines))


def _cells(row: dict) -> tuple[str, ...]:
    verdict_text = row["verdict"] + (f": {row['reason']}" if row["reason"] else "")
    shown = (
        row["statement"],
        number_text(row["reported"]),
        measured_text(row),
        number_text(row["null"]),
        number_text(row["second_route"]),
        verdict_text,
    )
    return tuple(text.replace("|", "\\|") for text in shown)


def number_text(value: Numbers) -> str:
    """Return a short text for a number, a named set of numbers, or None."""
    if isinstance(value, Mapping):
        return ", ".join(f"{name} {number_text(item)}" for name, item in value.items())
    if value is None:
        return "-"
    return f"{value:.4g}" if isinstance(value, int | float) else str(value)


def measured_text(row: Mapping) -> str:
    """Return `measured ± error (n)` of a row."""
    if row["measured"] is None:
        return "-"
    spread = f" ± {row['error']:.1g}" if row["error"] else ""
    return f"{number_text(row['measured'])}{spread}" + (f" ({row['n']})" if row["n"] else "")


def _claim(claim: str) -> Claim:
    if claim not in CLAIMS:
        raise ValueError(f"unknown claim {claim!r}{session.nearest(claim, CLAIMS)}")
    entry, run = CLAIMS[claim], session.current()
    if entry.notebook != run.notebook:
        raise ValueError(f"claim {claim!r} belongs to {entry.notebook}, this is {run.notebook}")
    return entry


def _check(claim: str, row: dict) -> None:
    """Refuse a row that says less than the contract asks."""
    verdict_given = row["verdict"]
    if verdict_given not in VERDICTS:
        raise ValueError(
            f"unknown verdict {verdict_given!r}{session.nearest(verdict_given, VERDICTS)}"
        )
    if verdict_given == "not tested here":
        if not row["needs"] or not row["reason"]:
            raise ValueError(
                f"{claim} cannot be 'not tested here': that takes a reason (given: "
                f"{row['reason']!r}) and a claim that needs something (it needs {row['needs']!r})"
            )
    elif row["measured"] is None or row["error"] is None or not row["n"] or row["n"] < 1:
        raise ValueError(
            f"{claim} needs measured, error and n >= 1; given {row['measured']!r}, "
            f"{row['error']!r}, {row['n']!r}"
        )
    if row["error"] is not None and row["error"] < 0:
        raise ValueError(f"{claim}: error is {row['error']!r}, expected 0 or larger")


def _number(name: str, value: object) -> Number:
    """Plain number with the digits that machines agree on."""
    if value is None:
        return None
    try:
        number = float(value)
    except (TypeError, ValueError):
        raise ValueError(f"{name} is {value!r}: expected a number or None") from None
    if not math.isfinite(number):
        raise ValueError(f"{name} is {number}: expected a finite number")
    return float(f"{number:.{DIGITS}g}")


def _numbers(name: str, value: object) -> Numbers:
    if value is None or isinstance(value, str):
        return value
    if isinstance(value, Mapping):
        return {str(key): _numbers(f"{name}[{key!r}]", item) for key, item in value.items()}
    return _number(name, value)
