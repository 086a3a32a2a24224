"""Claims with what was reported, what was measured, and the verdict, for a notebook to show."""

from collections.abc import Mapping

from lib.kit import results, stamps
from lib.kit.claims import CLAIMS, Claim

SHORT = ("measured ± error (n)", "null", "verdict")
OLDER, UNCONTROLLED, ELSEWHERE = "†", "°", "‡"


def rows() -> dict[str, dict]:
    """Return {claim: its best committed row with its profile and marks}."""
    found: dict[str, dict] = {}
    for lesson in (name for name in stamps.notebooks() if name == stamps.lesson_of(name)):
        own, recorder = stamps.best_rows(lesson), stamps.recorder(lesson)
        profiles = {row["profile"] for row in own.values()}
        older = {profile: stamps.reason_older(recorder, profile) != "" for profile in profiles}
        for claim, row in own.items():
            marks = OLDER * older[row["profile"]] + UNCONTROLLED * results.lacks_controls(row)
            found[claim] = row | {"marks": marks}
    return found


def families_table(second: Mapping[str, dict]):
    """Return rows of a second family beside the committed ones of the first, for display."""
    from IPython.display import Markdown

    first, lines = rows(), []
    for claim, row in second.items():
        own = first.get(claim)
        same = "-" if own is None else "yes" if own["verdict"] == row["verdict"] else "**no**"
        lines.append((CLAIMS[claim].statement, *_short(own), *_short(row), same))
    columns = [f"{family}: {part}" for family in ("faces", "garments") for part in SHORT]
    return Markdown(results.markdown(("claim", *columns, "same verdict?"), lines))


def _short(row: Mapping | None) -> tuple[str, ...]:
    if row is None:
        return "-", "-", "open"
    return results.measured_text(row), results.number_text(row["null"]), row["verdict"]


def reported_text(entry: Claim, row: Mapping | None) -> str:
    """Return the number that a paper reports, with its unit, and a mark where settings differ."""
    known = entry.reported is not None and (row or {}).get("measured") is not None
    sign = ELSEWHERE if known and row.get("setting") != entry.setting else ""
    parts = results.number_text(entry.reported), entry.unit.strip("1"), sign
    return " ".join(filter(None, parts))


def claims_table(lesson: str):
    """Return what the paper claims and what was found, with links into the evidence, for display.

    From the committed rows: the verdicts stand before any evidence has run on this machine. A link
    leads to the section of the evidence whose text names the claim.
    """
    from IPython.display import Markdown

    found, recorder = stamps.best_rows(lesson), stamps.recorder(lesson)
    headings, lines = _headings(recorder), []
    for claim in (entry for entry in CLAIMS.values() if entry.notebook == lesson):
        row, heading = found.get(claim.id, {"measured": None}), headings.get(claim.id, "")
        verdict = f"**{row['verdict']}** [{row['profile']}]" if "verdict" in row else "open"
        link = f"[{heading or recorder}]({recorder}.ipynb#{heading.replace(' ', '-')})"
        numbers = reported_text(claim, row), results.measured_text(row)
        lines.append((claim.statement, *numbers, verdict, link))
    head = ("the paper's claim", "paper", "measured ± error (n)", "verdict", "evidence")
    return Markdown(results.markdown(head, lines))


def _headings(name: str) -> dict[str, str]:
    """{claim: heading of the section of a notebook whose text names it}."""
    found, heading = {}, ""
    for cell in stamps.read_notebook(name).cells:
        if cell.cell_type == "markdown":
            for text in cell.source.splitlines():
                heading = text.lstrip("# ") if text.startswith("## ") else heading
                found |= {claim: heading for claim in CLAIMS if f"`{claim}`" in text}
    return found
