"""Every claim of the three papers, and what the embedded models must do, listed in claims.toml.

There each claim says what is claimed, the number `reported` by the paper (none where none is known)
and its `unit`, and what it `asks` of the number we measure, fixed before anything is measured:
"< 0.0112", "> 0.05", "-0.5 +- 0.05" (nearer to -0.5 than 0.05), or "< " with the name of a number
that is measured in the same run. `rivals` are the numbers to beat, by default all of the row's
nulls; [] where these are the end of a scale and no rivals. `needs` names what the embedded models
cannot replace: "sd" (Stable Diffusion weights), "celebahq" (CelebA-HQ, church or bedroom weights),
"users" (a study with people). `setting` is the paper's, `family` what we measure it on; both are,
unless given, those of the section.
"""

import tomllib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

from lib.kit.verdicts import Bound, above, below, within

LISTED = Path(__file__).with_suffix(".toml")
SECOND = {"07_photographs": "garments"}  # asks the claims of other numbers of a second family


class Claim(NamedTuple):
    """One claim: its id, the lesson it belongs to, its statement and what would settle it."""

    id: str
    notebook: str
    section: str
    statement: str
    reported: float | None
    unit: str
    needs: str
    setting: str
    family: str
    bound: Bound | None


def parse_bound(text: str) -> Bound:
    """Return the bound that "< 0.1", "> 0.1", "1 +- 0.1" or "< what it is compared with" names.

    Raises ValueError for any other text.
    """
    centre, between, radius = text.partition(" +- ")
    if between:
        return within(float(centre), float(radius))
    sides = {"<": below, ">": above}
    sign, _, value = text.partition(" ")
    if sign not in sides or not value:
        raise ValueError(f'{text!r} is no bound: expected "< 0.1", "> 0.1" or "1 +- 0.1"')
    try:
        return sides[sign](float(value))
    except ValueError:
        return sides[sign](value)


def _claims(section: Mapping) -> Iterator[Claim]:
    for name, row in section["claims"].items():
        yield Claim(
            f"{section['prefix']}.{name}",
            section["lesson"],
            section["title"],
            row["says"],
            row.get("reported"),
            row.get("unit", ""),
            row.get("needs", ""),
            row.get("setting", section["setting"]),
            row.get("family", section["family"]),
            parse_bound(row["asks"])._replace(rivals=row.get("rivals")) if "asks" in row else None,
        )


CLAIMS: dict[str, Claim] = {
    claim.id: claim
    for section in tomllib.loads(LISTED.read_text(encoding="utf-8"))["section"]
    for claim in _claims(section)
}
