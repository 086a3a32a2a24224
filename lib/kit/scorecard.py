"""The scorecard: every claim with what was reported, what was measured, and the verdict."""

from collections import Counter
from collections.abc import Iterator, Mapping

from lib.kit import results, session
from lib.kit.claims import CLAIMS

HEAD = ("claim", "reported", "measured ± error (n)", "trivial", "verdict")
WIDEST = 34  # characters of a cell in the terminal


def rows() -> dict[str, dict]:
    """Return {claim: row with its profile} from figures/: full before paper before quick.

    A profile that could not test a claim does not hide the one that did.
    """
    found: dict[str, dict] = {}
    for profile in ("quick", "paper", "full"):
        for folder in sorted((session.root() / "figures").glob("[0-9][0-9]_*")):
            for claim, row in results.read(results.results_file(folder, profile)).items():
                if row["verdict"] != "not tested here" or claim not in found:
                    found[claim] = row | {"profile": profile}
    return found


def lines(found: Mapping[str, dict]) -> Iterator[tuple[str, ...]]:
    """Yield the cells of each claim's line, in the order of the list of claims."""
    for claim, entry in CLAIMS.items():
        row = found.get(claim)
        reported = " ".join(
            filter(None, [results.number_text(entry.reported), entry.unit.strip("1")])
        )
        if row is None:
            yield claim, reported, "-", "-", "open"
        else:
            verdict = f"{row['verdict']} [{row['profile']}]"
            yield claim, reported, results.measured_text(row), _nulls(row["null"]), verdict


def _nulls(null: object) -> str:
    """At most two of the trivial predictors."""
    if isinstance(null, Mapping) and len(null) > 2:
        return results.number_text(dict(list(null.items())[:2])) + ", …"
    return results.number_text(null)


def summary(found: Mapping[str, dict]) -> str:
    """Return one line that counts the verdicts."""
    counts = Counter(row["verdict"] for row in found.values() if row["verdict"])
    counts["open"] = len(CLAIMS) - len(found)
    return f"{len(CLAIMS)} claims: " + ", ".join(f"{n} {verdict}" for verdict, n in counts.items())


def terminal() -> str:
    """Return the scorecard for the terminal."""
    found = rows()
    cells = [HEAD, *([_cut(cell) for cell in line] for line in lines(found))]
    widths = [max(len(line[column]) for line in cells) for column in range(len(HEAD))]
    text = [
        "  ".join(c.ljust(w) for c, w in zip(line, widths, strict=True)).rstrip() for line in cells
    ]
    text.insert(1, "  ".join("-" * width for width in widths))
    return "\n".join([*text, "", summary(found)])


def _cut(text: str) -> str:
    return text if len(text) <= WIDEST else text[: WIDEST - 1] + "…"


def _stated(claim: str) -> str:
    """The statement of a claim above its id, for a Markdown cell."""
    return f"{CLAIMS[claim].statement}<br>`{claim}`".replace("|", "\\|")


def markdown() -> str:
    """Return the scorecard as a Markdown table."""
    found = rows()
    head = "| " + " | ".join(HEAD) + " |\n|" + " --- |" * len(HEAD)
    body = "\n".join(
        f"| {_stated(claim)} | {' | '.join(cells)} |" for claim, *cells in lines(found)
    )
    return f"{head}\n{body}\n\n{summary(found)}"
