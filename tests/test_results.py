"""The numbers contract: results agree with tests/expected/LESSON.PROFILE.json.

LESSON is the name of the lesson, also where its evidence records. An entry is {"value": v} with
"rtol" or "atol", or {"below": b}, {"above": a}, each also with
"verdict"; `smoke` results are those that the pipeline has just left in build/.
`python tests/expected/draft.py` drafts the rules of results that lie in figures/.
"""

import importlib.util
import json
from pathlib import Path

import pytest

from lib.kit import results, stamps

ROOT = Path(__file__).resolve().parents[1]
SPEC = importlib.util.spec_from_file_location("draft", ROOT / "tests" / "expected" / "draft.py")
draft = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(draft)
EXPECTED = sorted((ROOT / "tests" / "expected").glob("*.json"))
CASES = [
    (path.stem, claim, rule)
    for path in EXPECTED
    for claim, rule in json.loads(path.read_text()).items()
]


def rows(case):
    return results.read(stamps.rows_file(*case.rsplit(".", 1)))


def agrees(row, rule):
    """Whether a row's measured value obeys a rule; an unknown rule is an error."""
    if rule.get("verdict", row.get("verdict")) != row.get("verdict"):
        return False
    measured, kinds = row["measured"], set(rule) - {"value", "verdict"}
    if set(rule) == {"verdict"}:
        return True
    bounds = {"below": lambda b: measured < b, "above": lambda b: measured > b}
    if kinds and kinds <= set(bounds):
        return all(bounds[kind](rule[kind]) for kind in kinds)
    deviation = abs(measured - rule["value"])
    (kind,) = kinds
    scales = {"rtol": abs(rule["value"]), "atol": 1.0}
    return deviation <= rule[kind] * scales[kind]


@pytest.mark.parametrize(("case", "claim", "rule"), CASES, ids=lambda part: str(part))
def test_measured_numbers_are_the_expected_ones(case, claim, rule):
    found = rows(case)
    if case.endswith(".smoke") and not found:
        pytest.skip("no smoke results: `make test` runs the pipeline first")
    assert claim in results.CLAIMS
    row = found[claim]
    assert agrees(row, rule), f"{row['measured']} ({row['verdict']}) against {rule}"


@pytest.mark.parametrize("lesson", sorted({*map(stamps.lesson_of, stamps.notebooks())}))
def test_every_number_has_expected_numbers_for_what_is_committed(lesson):
    names = {expected.name for expected in EXPECTED}
    assert f"{lesson}.quick.json" in names
    for profile in ("full", "paper"):
        committed = stamps.rows_file(lesson, profile).is_file()
        assert not committed or f"{lesson}.{profile}.json" in names


@pytest.mark.parametrize("path", sorted((ROOT / "figures").rglob("results*.json")), ids=str)
def test_committed_verdicts_follow_from_the_rows_that_keep_their_bound(path):
    for claim, row in results.read(path).items():
        if bound := results.bound_of(row):
            found = results.verdict(row["measured"], row["error"], bound, row["null"])
            capped = found == "reproduced" and row["verdict"] == "partly" and row["reason"]
            assert row["verdict"] == found or capped, claim


@pytest.mark.parametrize(
    ("measured", "error", "rule", "verdict"),
    [
        (1.05, 0.1, {"value": 1, "rtol": 0.1}, True),
        (1.15, 0.1, {"value": 1, "rtol": 0.1}, False),
        (0.02, 0, {"value": 0, "atol": 0.01}, False),
        (0.3, 0, {"below": 0.2}, False),
        (0.3, 0, {"above": 0.2, "below": 0.4}, True),
        (0.3, 0, {"above": 0.2, "verdict": "partly"}, True),
        (0.3, 0, {"above": 0.2, "verdict": "reproduced"}, False),
        (None, None, {"verdict": "partly"}, True),
    ],
)
def test_a_rule_tells_right_from_wrong(measured, error, rule, verdict):
    row = {"measured": measured, "error": error, "verdict": "partly"}
    assert agrees(row, rule) is verdict


def test_a_draft_of_the_rules_holds_for_the_results_it_was_made_from():
    for error, measured in ((0.1, 1.2), (0, 1.2), (0, 0.0), (None, None)):
        row = {"measured": measured, "error": error, "verdict": "partly"}
        rule = draft.rule("hessian.ising.rmse_free_energy", row)
        assert agrees(row, rule) and not agrees(row | {"verdict": "x"}, rule)
        if measured is not None:
            assert not agrees(row | {"measured": measured + 0.5}, rule)


def test_of_a_ratio_of_times_only_the_verdict_is_drafted():
    row = {"measured": 2.2, "error": None, "verdict": "not reproduced"}
    assert all(claim in results.CLAIMS for claim in draft.TIMES)
    for claim in draft.TIMES:
        assert draft.rule(claim, row) == {"verdict": "not reproduced"}


@pytest.mark.parametrize("rule", [{"value": 1}, {"value": 1, "sigma": 2}, {"bellow": 1}])
def test_a_misspelt_rule_is_an_error(rule):
    with pytest.raises((KeyError, ValueError)):
        agrees({"measured": 1.0, "error": 0.1}, rule)
