"""Claims with what was reported, what was measured, and the verdict, for a notebook to show."""

from collections.abc import Mapping

from lib.intervals import with_error
from lib.kit import results, stamps, wording
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
    return wording.measured_text(row), wording.number_text(row["null"]), row["verdict"]


def reported_text(entry: Claim, row: Mapping | None) -> str:
    """Return the number that a paper reports, with its unit, and a mark where settings differ."""
    known = entry.reported is not None and (row or {}).get("measured") is not None
    sign = ELSEWHERE if known and row.get("setting") != entry.setting else ""
    parts = wording.number_text(entry.reported), entry.unit.strip("1"), sign
    return " ".join(filter(None, parts))


def asked_text(entry: Claim, row: Mapping | None) -> str:
    """Return the bound of a row, and the number that it judges where that is another one."""
    bound = results.bound_of(row or {})
    if bound is None or not bound.of or bound.of[0] == row["measured"]:
        return str(bound or entry.bound or "-")
    value, error = bound.of
    return f"{bound}, judged on {with_error(value, error)}"


def claims_table(lesson: str):
    """Return what the paper claims and what was found, with links into the evidence, for display.

    From the committed rows: the verdicts stand before any evidence has run on this machine. Asked
    is the bound that was set beforehand, beside what the best guess without the method scores. A
    link leads to the section of the evidence whose text names the claim.
    """
    from IPython.display import Markdown

    found, recorder = stamps.best_rows(lesson), stamps.recorder(lesson)
    headings, lines = _headings(recorder), []
    for claim in (entry for entry in CLAIMS.values() if entry.notebook == lesson):
        row, heading = found.get(claim.id, {"measured": None}), headings.get(claim.id, "")
        verdict = f"**{row['verdict']}** [{row['profile']}]" if "verdict" in row else "open"
        link = f"[{heading or recorder}]({recorder}.ipynb#{heading.replace(' ', '-')})"
        numbers = reported_text(claim, row), wording.measured_text(row)
        asked = asked_text(claim, row)
        lines.append((claim.statement, *numbers, asked, guesses_text(row, most=1), verdict, link))
    head = ("claim", "reported", "measured ± error (n)", "asked", "a guess", "verdict", "evidence")
    return Markdown(results.markdown(head, lines))


def guesses_text(row: Mapping, most: int | None = None) -> str:
    """Return what guesses score, the hardest to beat first where only `most` of them are shown.

    A guess that the row did not beat pair by pair stands in it with the row's own number.
    """
    bound, null = results.bound_of(row), row.get("null")
    if not isinstance(null, Mapping):
        return wording.number_text(null)
    names = list(null)
    if most and bound and bound.side != "within":
        names = [name for name in null if bound.rivals is None or null[name] in bound.rivals]
        names = sorted(names, key=null.get, reverse=bound.side == "above")[:most]
    own = {name: "not beaten" if null[name] == row["measured"] else null[name] for name in names}
    return wording.number_text(own) or "-"


def _headings(name: str) -> dict[str, str]:
    """{claim: heading of the section of a notebook whose text names it}."""
    found, heading = {}, ""
    for cell in stamps.read_notebook(name).cells:
        if cell.cell_type == "markdown":
            for text in cell.source.splitlines():
                heading = text.lstrip("# ") if text.startswith("## ") else heading
                found |= {claim: heading for claim in CLAIMS if f"`{claim}`" in text}
    return found
