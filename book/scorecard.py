"""SCORECARD.md and the scorecard's block in README.md: `python -m book.scorecard [--write]`.

Every claim with what was reported, what was measured, and the verdict, from the committed rows.
Without --write only the totals are printed.
"""

import argparse
import re
import sys
from collections import Counter
from collections.abc import Iterator, Mapping

from lib.kit import results, session, stamps, wording
from lib.kit.claims import CLAIMS, SECOND, Claim
from lib.kit.scorecard import (
    ELSEWHERE,
    OLDER,
    UNCONTROLLED,
    asked_text,
    guesses_text,
    reported_text,
    rows,
)

PAPERS = {
    "hessian": "Hessian Geometry of Latent Space in Generative Models",
    "asyrp": "Diffusion Models Already Have a Semantic Latent Space",
    "svd": "Exploring the latent space of diffusion models directly through SVD",
    "bridge": "The bridge: what no paper asks",
    "models": "The embedded models",
}
COUNTED = ("reproduced", "partly", "not reproduced", "not tested here", "open")
HEAD = ("claim", "reported", "paper's setting", "our setting", "family", "measured ± error (n)")
HEAD += ("bound", "trivial", "controls", "verdict", "on garments", "notebook")
TOTALS = ("paper", "claims", *COUNTED, OLDER, UNCONTROLLED)
LEGEND = (
    f"{OLDER} the row is older than its code: `make verify` says in what. {UNCONTROLLED} a "
    "statistical row whose instrument has not yet been run where the claim is known to be true and "
    f"where it is known to be false. {ELSEWHERE} setting differs: the paper reports its number for "
    "another setting than the one that we measure in."
)
HEADLINES = (
    "hessian.ising.rmse_free_energy",
    "hessian.tasep.rmse_J",
    "hessian.diffusion.phases",
    "hessian.diffusion.lipschitz",
    "hessian.diffusion.fractal",
    "asyrp.cancellation",
    "asyrp.homogeneity",
    "asyrp.linearity",
    "svd.small_neighbourhood_excess",
    "svd.crossing_time",
    "svd.late_edit",
    "svd.edit_success",
)
MAPPED = ("notebook", "figures", "command", "time and hardware")
BEGIN, END = "<!-- scorecard -->", "<!-- /scorecard -->"
INTRODUCTION = """# Scorecard

Every claim of the three papers: what was reported, at which setting, what we measure at ours, and
the verdict. Best available profile of each claim: `full` before `paper` before `quick`, and any
that could test it before one that could not. The verdict follows from the numbers: *reproduced*
when the number, with two standard errors, is on the right side of the bound and beats the trivial
predictors; *partly* when one of the two holds, when the bound lies within two errors and the number
itself beats the trivial predictors, or when a stated condition fails or the controls show more than
5 % false alarms or less than 90 % power. T1 to T8 number the claims of *asyrp*; in *svd*, U1 to U6
are identities that hold exactly, P1 to P3 properties of the latents, A1 to A4 claims about AVI.
This page is made by `make refresh`."""
MAP = """## Figure map

All of a notebook's figures come from its one command. Beside each `NAME.png` lie its description
`NAME.txt` and its provenance `NAME.json`; `stamp.json` says from which code the set was made."""


def second_rows() -> dict[str, dict]:
    """Return {claim: its best committed row on a second family of images}."""
    return {claim: row for lesson in SECOND for claim, row in stamps.best_rows(lesson).items()}


def carried_over(found: Mapping[str, dict]) -> str:
    """Return in a sentence how many claims have a second verdict, and for how many it is equal."""
    second = {claim: row for claim, row in second_rows().items() if claim in found}
    same = sum(row["verdict"] == found[claim]["verdict"] for claim, row in second.items())
    return (
        f"{len(second)} claims have a second verdict, on photographs of garments; for {same} of "
        "them it is that on faces."
    )


def paper_of(claim: Claim) -> str:
    """Return the title of the paper that makes a claim."""
    return PAPERS[claim.id.split(".")[0]]


def _verdict(row: Mapping | None) -> str:
    if row is None:
        return "open"
    return f"{row['verdict']} [{row['profile']}]" + (f" {row['marks']}" if row["marks"] else "")


def line(entry: Claim, row: Mapping | None, second: Mapping | None = None) -> tuple[str, ...]:
    """Return the cells of a claim's line below HEAD; second: its row on another family."""
    given = row or {"measured": None, "error": None, "n": None, "null": None}
    recorder = stamps.recorder(entry.notebook)
    return (
        f"{entry.statement}<br>`{entry.id}`",
        reported_text(entry, row),
        entry.setting or "-",
        given.get("setting") or "-",
        given.get("family") or entry.family,
        wording.measured_text(given),
        asked_text(entry, row),
        guesses_text(given),
        controls_text(given),
        _verdict(row) + (f": {row['reason']}" if row and row["reason"] else ""),
        f"{second['verdict']} [{second['profile']}]" if second else "-",
        f"[{recorder}](notebooks/{recorder}.ipynb)",
    )


def controls_text(row: Mapping) -> str:
    """Return false alarms and power of a row's controls, "-" where it has none."""
    kept = row.get("controls")
    if not kept:
        return "-"
    return f"alarms {kept['false_alarms']:.2g}, power {kept['power']:.2g} ({kept['n']:g})"


def totals(found: Mapping[str, dict]) -> list[tuple[str, ...]]:
    """Return, for each paper, its number of claims, of each verdict and of each mark."""
    lines = []
    for prefix, title in PAPERS.items():
        own = {claim: found.get(claim) for claim in CLAIMS if claim.split(".")[0] == prefix}
        counts = Counter(row["verdict"] if row else "open" for row in own.values())
        marks = [sum(m in (row or {"marks": ""})["marks"] for row in own.values()) for m in "†°"]
        lines.append((title, len(own), *(counts[verdict] for verdict in COUNTED), *marks))
    sums = [sum(column) for column in zip(*(line[1:] for line in lines), strict=True)]
    return [tuple(map(str, line)) for line in (*lines, ("all", *sums))]


def summary() -> str:
    """Return the totals of each paper, the headline rows and the legend, as Markdown."""
    found = rows()
    lines = []
    for entry in map(CLAIMS.get, HEADLINES):
        row = found.get(entry.id)
        measured = wording.measured_text(row or {"measured": None})
        lines.append((entry.statement, reported_text(entry, row), measured, _verdict(row)))
    headlines = results.markdown(("claim", "reported", "measured ± error (n)", "verdict"), lines)
    parts = results.markdown(TOTALS, totals(found)), carried_over(found), headlines, LEGEND
    return "\n\n".join(parts)


def page() -> str:
    """Return all rows as Markdown, by paper and section."""
    found, second, parts, above = rows(), second_rows(), [], ""
    for section in dict.fromkeys((paper_of(c), c.section) for c in CLAIMS.values()):
        own = [c for c in CLAIMS.values() if (paper_of(c), c.section) == section]
        parts += [f"## {section[0]}"] * (section[0] != above) + [f"### {section[1]}"]
        lines = (line(entry, found.get(entry.id), second.get(entry.id)) for entry in own)
        parts.append(results.markdown(HEAD, lines))
        above = section[0]
    return "\n\n".join([results.markdown(TOTALS, totals(found)), *parts])


def terminal() -> str:
    """Return the totals for the terminal."""
    cells = [TOTALS, *totals(rows())]
    widths = [max(len(row[k]) for row in cells) for k in range(len(cells[0]))]
    text = ["  ".join([r[0].ljust(widths[0]), *map(str.rjust, r[1:], widths[1:])]) for r in cells]
    return "\n".join([*text, "", f"{len(CLAIMS)} claims, all rows in SCORECARD.md", LEGEND])


def figure_map() -> str:
    """Return the Markdown table notebook -> figures -> command -> time."""
    return results.markdown(MAPPED, map(_row, stamps.notebooks()))


def _row(name: str) -> Iterator[str]:
    text = [c.source for c in stamps.read_notebook(name).cells if c.cell_type == "markdown"]
    folder = stamps.figures(name, "quick")
    figures = sorted(path.relative_to(session.root()) for path in folder.glob("*.png"))
    yield f"[{name}](notebooks/{name}.ipynb)"
    yield ", ".join(f"[{file.stem}]({file.as_posix()})" for file in figures) or "not drawn yet"
    yield f"`make {name}`"
    yield _header(text[0] if text else "", "Time")


def _header(card: str, field: str) -> str:
    """What the header card of a notebook says in one row of its table."""
    found = re.search(rf"^\| \*\*{field}\*\* \|(.*)\|\s*$", card, re.MULTILINE)
    return found[1].strip() if found else ""


def scorecard_page() -> str:
    """Return the text of SCORECARD.md."""
    parts = [INTRODUCTION, LEGEND, page(), MAP, figure_map()]
    return "\n\n".join(parts) + "\n"


def write() -> None:
    """Write SCORECARD.md, and its summary between the markers of README.md.

    Raises:
        ValueError: when README.md lacks a marker or holds them in the wrong order.
    """
    path = session.root() / "README.md"
    text = _filled(path.read_text(encoding="utf-8") if path.is_file() else "", summary())
    session.write_atomically(session.root() / "SCORECARD.md", scorecard_page())
    session.write_atomically(path, text)


def _filled(text: str, block: str) -> str:
    before, opened, rest = text.partition(BEGIN)
    _, closed, after = rest.partition(END)
    if not opened or not closed:
        raise ValueError(f"README.md needs a line {BEGIN} and, below it, a line {END}")
    return f"{before}{BEGIN}\n{block}\n{END}{after}"


def main(arguments: list[str] | None = None) -> int:
    """Print the totals, after writing both pages when asked; return the exit status."""
    parser = argparse.ArgumentParser(prog="python -m book.scorecard", description=__doc__)
    parser.add_argument("--write", action="store_true", help="write README.md, SCORECARD.md")
    try:
        if parser.parse_args(arguments).write:
            write()
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(terminal())
    return 0


if __name__ == "__main__":
    sys.stdout.reconfigure(errors="replace")  # headings have letters that not every locale has
    sys.exit(main())
