"""The scorecard: every claim with what was reported, what was measured, and the verdict."""

from collections import Counter
from collections.abc import Mapping

from lib.kit import results, stamps
from lib.kit.claims import CLAIMS, SECOND, Claim

PAPERS = {
    "hessian": "Hessian Geometry of Latent Space in Generative Models",
    "asyrp": "Diffusion Models Already Have a Semantic Latent Space",
    "svd": "Exploring the latent space of diffusion models directly through SVD",
    "bridge": "The bridge: what no paper asks",
    "models": "The embedded models",
}
SHORT = ("measured ± error (n)", "null", "verdict")
COUNTED = ("reproduced", "partly", "not reproduced", "not tested here", "open")
HEAD = ("claim", "reported", "paper's setting", "our setting", "family", "measured ± error (n)")
HEAD += ("bound", "trivial", "controls", "verdict", "on garments", "notebook")
OLDER, UNCONTROLLED, ELSEWHERE = "†", "°", "‡"
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


def paper_of(claim: Claim) -> str:
    """Return the title of the paper that makes a claim."""
    return PAPERS[claim.id.split(".")[0]]


def _verdict(row: Mapping | None) -> str:
    if row is None:
        return "open"
    return f"{row['verdict']} [{row['profile']}]" + (f" {row['marks']}" if row["marks"] else "")


def _reported(entry: Claim, row: Mapping | None) -> str:
    known = entry.reported is not None and (row or {}).get("measured") is not None
    sign = ELSEWHERE if known and row.get("setting") != entry.setting else ""
    parts = results.number_text(entry.reported), entry.unit.strip("1"), sign
    return " ".join(filter(None, parts))


def line(entry: Claim, row: Mapping | None, second: Mapping | None = None) -> tuple[str, ...]:
    """Return the cells of a claim's line below HEAD; second: its row on another family."""
    given = row or {"measured": None, "error": None, "n": None, "null": None}
    recorder = stamps.recorder(entry.notebook)
    return (
        f"{entry.statement}<br>`{entry.id}`",
        _reported(entry, row),
        entry.setting or "-",
        given.get("setting") or "-",
        given.get("family") or entry.family,
        results.measured_text(given),
        str(results.bound_of(given) or entry.bound or "-"),
        results.number_text(given["null"]),
        controls_text(given),
        _verdict(row) + (f": {row['reason']}" if row and row["reason"] else ""),
        f"{second['verdict']} [{second['profile']}]" if second else "-",
        f"[{recorder}](notebooks/{recorder}.ipynb)",
    )


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
        numbers = _reported(claim, row), results.measured_text(row)
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
    chosen = ((CLAIMS[claim], found.get(claim)) for claim in HEADLINES)
    short = (
        (e.statement, _reported(e, r), results.measured_text(r or {"measured": None}), _verdict(r))
        for e, r in chosen
    )
    headlines = results.markdown(("claim", "reported", "measured ± error (n)", "verdict"), short)
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
