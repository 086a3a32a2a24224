"""Write a first draft of the rules for the results that lie in figures/, to be read before use.

    python tests/expected/draft.py 01_ising.quick ...

A number may move by four of the errors that stand in figures/ today (not of the errors of a later
run, which would excuse itself), one without an error by a percent; a verdict is kept. Of a ratio of
times, which is a machine's own, only the verdict counts.
"""

import json
import sys
from pathlib import Path

from lib.kit import results, stamps

HERE = Path(__file__).resolve().parent
TIMES = {"bridge.spacetime_speed"}
SIGMAS, SHARE, ROUNDING = 4, 0.01, 1e-9  # of exact laws only the size of the rounding is one's own


def rule(claim: str, row: dict) -> dict:
    """The rule of one row of results."""
    value = row["measured"]
    if value is None or claim in TIMES:
        return {"verdict": row["verdict"]}
    tolerance = {"rtol": SHARE} if abs(value) > ROUNDING else {"atol": ROUNDING}
    if row["error"]:
        tolerance = {"atol": float(f"{SIGMAS * row['error']:.3g}")}
    return {"value": value, **tolerance, "verdict": row["verdict"]}


def draft(case: str) -> None:
    """Write CASE.json = LESSON.PROFILE.json beside this file."""
    rows = results.read(stamps.rows_file(*case.rsplit(".", 1)))
    text = json.dumps({claim: rule(claim, row) for claim, row in rows.items()}, indent=1)
    (HERE / f"{case}.json").write_text(text + "\n")
    print(f"{case}: {len(rows)} rules")


if __name__ == "__main__":
    for case in sys.argv[1:]:
        draft(case)
