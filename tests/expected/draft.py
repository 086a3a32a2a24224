"""Write a first draft of the rules for the results that lie in figures/, to be read before use.

    python tests/expected/draft.py 01_ising.quick ...

A number with an error may move by four of them, one without by a percent; a verdict is kept.
"""

import json
import sys
from pathlib import Path

from lib.kit import results, stamps

HERE = Path(__file__).resolve().parent
SIGMAS, SHARE = 4, 0.01


def rule(row: dict) -> dict:
    """The rule of one row of results."""
    value = row["measured"]
    if value is None:
        return {"verdict": row["verdict"]}
    tolerance = (
        {"sigmas": SIGMAS} if row["error"] else {"rtol": SHARE} if value else {"atol": SHARE}
    )
    return {"value": value, **tolerance, "verdict": row["verdict"]}


def draft(case: str) -> None:
    """Write CASE.json = LESSON.PROFILE.json beside this file."""
    rows = results.read(stamps.rows_file(*case.rsplit(".", 1)))
    text = json.dumps({claim: rule(row) for claim, row in rows.items()}, indent=1)
    (HERE / f"{case}.json").write_text(text + "\n")
    print(f"{case}: {len(rows)} rules")


if __name__ == "__main__":
    for case in sys.argv[1:]:
        draft(case)
