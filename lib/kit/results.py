"""The numbers contract: one row per claim in results.json, a verdict by rule, and a table."""

import json
import math
from collections.abc import Iterable, Mapping
from pathlib import Path

from lib.kit import session, stamps
from lib.kit import verdicts as rule
from lib.kit.claims import CLAIMS, SECOND, Claim
from lib.kit.verdicts import Bound, Controls, Number, Numbers, above, below, verdict, within
from lib.kit.wording import measured_text, number_text

__all__ = ["CLAIMS", "Bound", "Claim", "Controls", "above", "below", "verdict", "within"]


def record(
    claim: str,
    measured: Number,
    error: Number,
    n: int | None,
    null: Numbers,
    *,
    bound: Bound | None = None,
    setting: str = "",
    family: str = "",
    controls: Controls | None = None,
    requires: Mapping[str, bool] | None = None,
    second_route: Numbers = None,
    verdict: str = "",
    reason: str = "",
) -> dict:
    """Write the row of `claim` into the results file of this run and return it.

    `error` is one standard error (0 for an exact law), `n` the number of independent units, `null`
    what a trivial predictor scores: a number, or {name: number} for several. `setting` says in a
    few words at which sizes we measured, `family` on which images or models (by default that of
    the claim). The verdict follows from `bound` (by default the claim's) by `verdicts.verdict`; it
    is "partly" at best when one of the conditions `requires` {text: holds} fails or when `controls`
    show too many false alarms or too little power. `verdict` is given where nothing was tested.
    Raises ValueError for an unknown claim, one of another notebook, a lesson whose evidence
    records, a bound that is missing or is not the claim's, numbers that are missing or not finite,
    or "not tested here" without a reason or a need.
    """
    entry = _claim(claim)
    row = {
        "statement": entry.statement,
        "reported": entry.reported,
        "measured": rule.plain("measured", measured),
        "error": rule.plain("error", error),
        "n": n if n is None else int(n),
        "unit": entry.unit,
        "null": rule.plain_all("null", null),
        "second_route": rule.plain_all("second_route", second_route),
        "setting": setting,
        "family": family or SECOND.get(_lesson()) or entry.family,
        "bound": None,
        "controls": controls and rule.plain_all("controls", controls._asdict()),
        "verdict": verdict,
        "reason": reason,
        "needs": entry.needs,
    }
    _check(claim, row)
    if not verdict:
        bound = _agreed(entry, bound)
        row["bound"] = _kept(bound)
        found = rule.verdict(row["measured"], row["error"], bound, row["null"])
        row["verdict"], short = rule.capped(found, controls, requires or {})
        row["reason"] = "; ".join(filter(None, [reason, *short]))
        if short:
            print(f"{claim}: partly at best: {'; '.join(short)}")
    _write(claim, row)
    return row


def _write(claim: str, row: dict) -> None:
    run = session.current()
    path = run.output / stamps.rows_name(run.profile)
    rows = {**read(path), claim: row}
    ordered = {key: rows[key] for key in CLAIMS if key in rows}
    session.write_atomically(path, json.dumps(ordered, indent=1, allow_nan=False) + "\n")


def _claim(claim: str) -> Claim:
    if claim not in CLAIMS:
        raise ValueError(f"unknown claim {claim!r}{session.nearest(claim, CLAIMS)}")
    entry, run = CLAIMS[claim], session.current()
    if entry.notebook != _lesson() and _lesson() not in SECOND:
        raise ValueError(f"claim {claim!r} belongs to {entry.notebook}, this is {run.notebook}")
    if stamps.recorder(run.notebook) != run.notebook:
        raise ValueError(
            f"{claim}: {run.notebook} is a lesson, and its evidence alone records: move the call "
            f"to notebooks/{stamps.recorder(run.notebook)}.ipynb"
        )
    return entry


def _lesson() -> str:
    return stamps.lesson_of(session.current().notebook)


def _agreed(entry: Claim, given: Bound | None) -> Bound:
    """The bound of a row: what a claim asks is fixed before anything is measured."""
    asked = entry.bound
    if given is None and (asked is None or isinstance(asked.value, str)):
        raise ValueError(f"{entry.id} has no bound: give bound=results.below(...) or above(...)")
    if asked is None or given is None:
        return given or asked
    open_ = isinstance(asked.value, str)
    same = open_ or math.isclose(given.value, asked.value) and given.centre == asked.centre
    if given.side != asked.side or not same:
        raise ValueError(f"{entry.id} asks for {asked} in claims.toml, given {given}: mend one")
    return given if given.rivals is not None else given._replace(rivals=asked.rivals)


def _kept(bound: Bound) -> dict:
    """The bound as a row keeps it."""
    kept = {bound.side: rule.plain("bound", bound.value)}
    kept |= {"centre": bound.centre} if bound.side == "within" else {}
    kept |= {"of": [rule.plain("of", item) for item in bound.of]} if bound.of else {}
    if bound.rivals is None:
        return kept
    return kept | {"rivals": [rule.plain("rival", item) for item in rule.numbers(bound.rivals)]}


def bound_of(row: Mapping) -> Bound | None:
    """Return the bound that a row was judged by, None where it keeps none."""
    kept = dict(row.get("bound") or {})
    of, rivals, centre = kept.pop("of", None), kept.pop("rivals", None), kept.pop("centre", 0.0)
    return next((Bound(*item, centre, of, rivals) for item in kept.items()), None)


def lacks_controls(row: Mapping) -> bool:
    """Whether a statistical row stands without controls of its instrument; exact laws need none."""
    return bool(row["error"]) and not row.get("controls")


def of_this_run() -> dict[str, dict]:
    """Return the rows that the current run and earlier ones of its profile have recorded."""
    run = session.current()
    return read(run.output / stamps.rows_name(run.profile))


def read(path: Path) -> dict[str, dict]:
    """Return the rows of a results file; no file, no rows."""
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}


def table(notebook: str):
    """Return the rows of a lesson or of its evidence in this run as a Markdown table for display.

    `scorecard.claims_table` is that of a lesson whose evidence records.
    """
    from IPython.display import Markdown

    lesson, rows = stamps.lesson_of(notebook), of_this_run()
    chosen = {key: row for key, row in rows.items() if CLAIMS[key].notebook == lesson}
    head = ("claim", "paper", "measured", "bound", "trivial", "second route", "verdict")
    return Markdown(markdown(head, map(_cells, chosen.values())))


def markdown(head: Iterable[str], lines: Iterable[Iterable[str]]) -> str:
    """Return a Markdown table."""
    rows = [[cell.replace("|", "\\|") for cell in row] for row in (head, *lines)]
    text = [f"| {' | '.join(row)} |" for row in rows]
    return "\n".join([text[0], "|" + " --- |" * len(rows[0]), *text[1:]])


def _cells(row: dict) -> tuple[str, ...]:
    return (
        row["statement"],
        number_text(row["reported"]),
        measured_text(row),
        str(bound_of(row) or "-"),
        number_text(row["null"]),
        number_text(row["second_route"]),
        row["verdict"] + (f": {row['reason']}" if row["reason"] else ""),
    )


def _check(claim: str, row: dict) -> None:
    """Refuse a row that says less than the contract asks."""
    if row["verdict"] not in ("", "not tested here"):
        raise ValueError(
            f"{claim}: verdict is {row['verdict']!r}; it follows from bound, controls and requires"
            ' and is given only as "not tested here"'
        )
    if row["verdict"]:
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
    controls = row["controls"] or {"false_alarms": 0, "power": 1, "n": 1}
    shares_fit = 0 <= controls["false_alarms"] <= 1 and 0 <= controls["power"] <= 1
    if not shares_fit or controls["n"] < 1:
        raise ValueError(f"{claim}: controls are {controls}, expected shares of n >= 1 trials")
