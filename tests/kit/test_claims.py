"""Rows of the numbers contract are complete, verdicts follow from numbers, tables show both."""

import json
import re

import numpy as np
import pytest
import torch
from small_notebooks import write_notebook

from book import scorecard as pages
from lib.kit import claims, results, scorecard, session, stamps, verdicts

F = "hessian.ising.rmse_free_energy"
T = "hessian.ising.torus_rmse"
ROW = {"measured": 0.05, "error": 0.001, "n": 3, "null": {"affine": 0.487}}
SURE = results.Controls(false_alarms=0.01, power=0.97, n=200)


def test_ids_are_well_formed_and_belong_to_a_numbered_notebook():
    for claim, entry in results.CLAIMS.items():
        assert re.fullmatch(r"(hessian|asyrp|svd|bridge|models)(\.[A-Za-z0-9_]+)+", claim)
        assert re.fullmatch(r"0[0-7]_\w+", entry.notebook)
        assert entry.statement and entry.needs in ("", "sd", "celebahq", "users")
        assert entry.reported is None or np.isfinite(entry.reported)
        assert entry.section and entry.family and (entry.bound or entry.needs == "users")
        assert entry.setting or entry.notebook == "00_models"
    statements = [(e.notebook, e.statement) for e in results.CLAIMS.values()]
    assert len(set(statements)) == len(statements)


@pytest.mark.parametrize(
    ("text", "bound"),
    [
        ("< 0.0112", results.below(0.0112)),
        ("> -1e-9", results.above(-1e-9)),
        ("-0.5 +- 0.05", results.within(-0.5, 0.05)),
        ("< blurred faces", results.below("blurred faces")),
    ],
)
def test_a_bound_is_read_from_the_list_of_claims(text, bound):
    assert claims.parse_bound(text) == bound


@pytest.mark.parametrize("text", ["0.1", "<0.1", "= 0.1", "one +- 0.1", ""])
def test_what_is_no_bound_is_refused(text):
    with pytest.raises(ValueError):
        claims.parse_bound(text)


def test_a_row_holds_the_contract_and_plain_numbers(session_in):
    measured, error = np.float32(0.05), torch.tensor(0.001, dtype=torch.float64)
    row = results.record(
        F, measured, error, np.int64(3), {"affine": 0.487}, setting="16 x 16", controls=SURE
    )
    assert list(json.loads((session_in / "results.json").read_text()).values()) == [row]
    assert row["measured"] == 0.05 and row["error"] == 0.001 and row["n"] == 3
    assert row["reported"] == 0.0883 and row["null"] == {"affine": 0.487}
    assert row["bound"] == {"below": 0.0883} and row["verdict"] == "reproduced"
    assert row["setting"] == "16 x 16" and row["family"] == "exact"
    assert row["controls"] == {"false_alarms": 0.01, "power": 0.97, "n": 200}
    others = {"statement", "second_route", "unit", "verdict", "reason", "needs", "bound"}
    others |= {"setting", "family", "controls"}
    assert set(row) == others | {"reported", "measured", "error", "n", "null"}


def test_recording_again_replaces_the_row_and_order_does_not_matter(session_in):
    results.record(T, 1.0, 0, 1, None)
    results.record(F, 1.0, 0, 1, None)
    results.record(T, 2.0, 0, 1, None)
    rows = results.read(session_in / "results.json")
    assert list(rows) == [F, T] and rows[T]["measured"] == 2.0


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"claim": "hessian.ising.rmse_free_enrgy"}, F),
        ({"claim": "hessian.tasep.rmse_J"}, "belongs to 02_tasep"),
        ({"measured": None}, "needs measured"),
        ({"measured": float("nan")}, "finite"),
        ({"measured": "0.05 or so"}, "expected a number"),
        ({"error": None}, "needs measured"),
        ({"error": -1.0}, "error is"),
        ({"n": 0}, "n >= 1"),
        ({"null": {"affine": float("inf")}}, "affine.*finite"),
        ({"verdict": "reproduced"}, 'given only as "not tested here"'),
        ({"verdict": "not tested here", "reason": "no time"}, "cannot be 'not tested here'"),
        ({"bound": results.below(0.09)}, "asks for < 0.0883 in claims.toml, given < 0.09"),
        ({"bound": results.above(0.0883)}, "asks for < 0.0883"),
        ({"controls": results.Controls(1.1, 0.9, 20)}, "expected shares"),
        ({"controls": results.Controls(0.1, 0.9, 0)}, "n >= 1 trials"),
    ],
)
def test_an_incomplete_row_is_refused_and_nothing_is_written(session_in, change, message):
    with pytest.raises(ValueError, match=message):
        results.record(**{"claim": F, **ROW, **change})
    assert not (session_in / "results.json").exists()


def test_a_bound_in_words_needs_the_number_that_this_run_measured(session_in, monkeypatch):
    words = results.CLAIMS[F]._replace(bound=claims.parse_bound("< the bowl"))
    monkeypatch.setitem(results.CLAIMS, F, words)
    with pytest.raises(ValueError, match="has no bound"):
        results.record(F, **ROW)
    row = results.record(F, **ROW, bound=results.below(0.09))
    assert row["verdict"] == "reproduced"


def test_recording_needs_a_run(monkeypatch):
    monkeypatch.setattr(results.session, "_current", None)
    with pytest.raises(ValueError, match="run.start"):
        results.record(F, **ROW)


def test_a_lesson_with_evidence_does_not_record_and_the_evidence_has_its_table(root, session_in):
    write_notebook(root)
    session.announce(session.Session("01_ising", "quick", 0, {}, session_in))
    results.record(F, **ROW)
    write_notebook(root, name="evidence/01_ising")
    with pytest.raises(ValueError, match="its evidence alone records.*evidence/01_ising.ipynb"):
        results.record(F, **ROW)
    session.announce(session.Session("evidence/01_ising", "quick", 0, {}, session_in))
    results.record(T, 1.0, 0, 1, None)
    assert set(results.read(session_in / "results.json")) == {F, T}
    assert results.CLAIMS[T].statement in results.table("evidence/01_ising").data
    assert results.table("01_ising").data == results.table("evidence/01_ising").data


@pytest.mark.parametrize(
    ("measured", "error", "bound", "null", "expected"),
    [
        (0.05, 0.01, results.below(0.08), None, "reproduced"),
        (0.07, 0.01, results.below(0.08), None, "partly"),
        (0.09, 0.01, results.below(0.08), None, "partly"),
        (0.11, 0.01, results.below(0.08), None, "not reproduced"),
        (0.05, 0.01, results.below(0.08), 0.06, "partly"),
        (0.05, 0.01, results.below(0.08), {"a": 0.2, "b": 0.3}, "reproduced"),
        (0.05, 0.01, results.below(0.08), {"a": 0.2, "b": 0.01}, "partly"),
        (0.05, 0.01, results.below(0.08, rivals=()), {"a": 0.2, "b": 0.01}, "reproduced"),
        (0.05, 0.01, results.below(0.08, rivals=[0.01]), {"a": 0.2}, "partly"),
        (0.11, 0.01, results.below(0.08), 0.5, "partly"),
        (0.09, 0.01, results.below(0.08), 0.1, "partly"),
        (0.09, 0.01, results.below(0.08), 0.085, "not reproduced"),
        (0.11, 0.01, results.below(0.08), 0.1, "not reproduced"),
        (9.99, 0.01, results.below(0.08, of=(0.05, 0.01)), None, "reproduced"),
        (0.9, 0.01, results.above(0.8), None, "reproduced"),
        (0.9, 0.01, results.above(0.8), 0.95, "partly"),
        (0.5, 0.01, results.above(0.8), 0.6, "not reproduced"),
        (0.0, 0.0, results.below(1e-9), None, "reproduced"),
        (0.9, 0.01, results.within(1.0, 0.3), 0.5, "reproduced"),
        (1.1, 0.01, results.within(1.0, 0.3), 1.09, "partly"),
        (0.6, 0.01, results.within(1.0, 0.3), 0.61, "not reproduced"),
    ],
)
def test_the_verdict_follows_from_bound_and_null(measured, error, bound, null, expected):
    assert results.verdict(measured, error, bound, null) == expected


def test_a_verdict_is_the_same_for_a_mirrored_claim():
    for measured in np.linspace(-1, 1, 21):
        below = results.verdict(measured, 0.1, results.below(0.3), 0.5)
        assert below == results.verdict(-measured, 0.1, results.above(-0.3), -0.5)
        inside = results.verdict(measured, 0.1, results.within(0.0, 0.3), 0.5)
        assert inside == results.verdict(abs(measured), 0.1, results.below(0.3), 0.5)


@pytest.mark.parametrize(
    ("controls", "requires", "short"),
    [
        (SURE, {}, ""),
        (SURE, {"the order is certain": True}, ""),
        (None, {"the order is certain": False}, "not met: the order is certain"),
        (results.Controls(0.06, 0.97, 200), {}, "false alarms 0.06, more than 0.05"),
        (results.Controls(0.05, 0.9, 200), {}, ""),
        (results.Controls(0.0, 0.89, 200), {}, "power 0.89, less than 0.9"),
    ],
)
def test_what_is_short_caps_the_verdict_and_says_so(session_in, capsys, controls, requires, short):
    row = results.record(F, **ROW, controls=controls, requires=requires, reason="why")
    assert row["verdict"] == ("partly" if short else "reproduced")
    assert row["reason"] == ("why; " + short if short else "why")
    assert (short in capsys.readouterr().out) and verdicts.MOST_FALSE_ALARMS == 0.05
    worse = results.record(F, **ROW | {"measured": 0.6}, controls=controls, requires=requires)
    assert worse["verdict"] == "not reproduced"


def test_a_row_tells_by_which_bound_it_was_judged(session_in):
    given = results.below(0.0883, of=(0.1, 0.001), rivals=(0.2,))
    row = json.loads(json.dumps(results.record(F, **ROW, bound=given)))
    found = results.bound_of(row)
    assert (found.side, found.value, *found.of) == ("below", 0.0883, 0.1, 0.001)
    again = results.verdict(row["measured"], row["error"], found, row["null"])
    assert again == row["verdict"] == "partly"


def test_the_table_of_a_notebook_shows_its_rows(session_in):
    results.record(F, **ROW, second_route=0.0441, reason="a | b")
    text = results.table("01_ising").data
    assert text.count("\n") == 2
    for part in ("0.0883", "< 0.0883", "0.0500 ± 0.0010 (3)", "affine 0.487", "0.0441"):
        assert part in text
    assert r"reproduced: a \| b" in text


def write_rows(root, profile, measured, verdict="reproduced", **more):
    write_notebook(root)
    path = stamps.rows_file("01_ising", profile)
    path.parent.mkdir(parents=True, exist_ok=True)
    row = {**ROW, "reason": "", "measured": measured, "verdict": verdict, **more}
    path.write_text(json.dumps({F: row}))


def leave_stamp(root, profile):
    made_from = stamps.inputs("01_ising", profile, {"profile": profile})
    path = stamps.figures("01_ising", profile) / "stamp.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(stamps.committed_text("01_ising", made_from))


def test_a_profile_that_could_not_test_a_claim_does_not_hide_the_one_that_did(root):
    write_rows(root, "full", None, "not tested here", error=None)
    assert scorecard.rows()[F]["verdict"] == "not tested here"
    write_rows(root, "paper", 0.02)
    assert scorecard.rows()[F]["measured"] == 0.02 and scorecard.rows()[F]["profile"] == "paper"


def test_a_lesson_shows_the_committed_verdicts_and_where_each_is_settled(root):
    write_rows(root, "quick", 0.05)
    section = f"## 2. Free energy\n\nSettles `{F}`."
    write_notebook(root, "# Evidence", f"# Title\n\n{section}", name="evidence/01_ising")
    lines = scorecard.claims_table("01_ising").data.splitlines()
    assert len(lines) == 2 + sum(c.notebook == "01_ising" for c in results.CLAIMS.values())
    (line,) = [line for line in lines if results.CLAIMS[F].statement in line]
    assert "| 0.0500 ± 0.0010 (3) | < 0.0883 | " in line and "| **reproduced** [quick] |" in line
    assert "[2. Free energy](evidence/01_ising.ipynb#2.-Free-energy)" in line
    (other,) = [line for line in lines if results.CLAIMS[T].statement in line]
    assert "| open | [evidence/01_ising](evidence/01_ising.ipynb#) |" in other


@pytest.mark.parametrize(
    ("bound", "text"),
    [
        ({"below": 0.1, "rivals": [0.3, 0.2]}, "b 0.2"),  # the oracle, 0.01, need not be beaten
        ({"above": 0.1, "rivals": [0.3, 0.2]}, "a 0.3"),
        ({"below": 0.1}, "oracle 0.01"),
        ({"below": 0.1, "rivals": []}, "-"),
        ({"below": 0.1, "rivals": [0.05]}, "tied not beaten"),
    ],
)
def test_beside_a_verdict_stands_the_guess_that_is_hardest_to_beat(bound, text):
    null = {"a": 0.3, "b": 0.2, "oracle": 0.01, "tied": 0.05}
    row = {"measured": 0.05, "null": null, "bound": bound}
    assert scorecard.guesses_text(row, most=1) == text
    assert scorecard.guesses_text(row) == "a 0.3, b 0.2, oracle 0.01, tied not beaten"


def test_a_bound_that_judges_another_number_names_it():
    row = {"measured": 0.05, "bound": {"below": 0.0, "of": [0.0042, 0.0036]}}
    assert scorecard.asked_text(results.CLAIMS[F], row) == "< 0, judged on 0.004 ± 0.004"
    row = {"measured": 0.05, "bound": {"below": 0.0, "of": [0.05, 0.0]}}
    assert scorecard.asked_text(results.CLAIMS[F], row) == "< 0"
    assert scorecard.asked_text(results.CLAIMS[F], None) == str(results.CLAIMS[F].bound)


def line_of(claim):
    (line,) = [line for line in pages.page().splitlines() if f"`{claim}`" in line]
    return line


def test_the_scorecard_prefers_full_and_shows_the_rest_as_open(root):
    write_rows(root, "quick", 0.05)
    assert "reproduced [quick]" in line_of(F)
    write_rows(root, "full", 0.01)
    write_rows(root, "paper", 0.02)
    line = line_of(F)
    for part in ("0.0883 J", "0.0100 ± 0.0010 (3)", "reproduced [full]", "< 0.0883", "128 x 128"):
        assert part in line
    assert pages.page().count("| open |") == len(results.CLAIMS) - 1 + 1  # the head of totals
    assert f"{len(results.CLAIMS)} claims" in pages.terminal()


def test_a_row_that_is_older_than_its_code_carries_a_dagger(root):
    write_rows(root, "quick", 0.05)
    assert scorecard.rows()[F]["marks"] == "†°"
    leave_stamp(root, "quick")
    assert scorecard.rows()[F]["marks"] == "°"
    path = root / "notebooks" / "01_ising.ipynb"
    path.write_text(path.read_text().replace("seed: int = 0", "seed: int = 1"))
    assert "reproduced [quick] †°" in line_of(F) and "† the row is older" in pages.LEGEND
    assert pages.totals(scorecard.rows())[0][-2:] == ("1", "1")


def test_a_statistical_row_without_controls_carries_a_mark_and_an_exact_law_does_not(root):
    for more, mark in (
        ({}, "°"),
        ({"error": 0}, ""),
        ({"controls": {"false_alarms": 0.0, "power": 1.0, "n": 9}}, ""),
    ):
        write_rows(root, "quick", 0.05, **more)
        leave_stamp(root, "quick")
        assert scorecard.rows()[F]["marks"] == mark
    assert "alarms 0, power 1 (9)" in line_of(F)


def test_the_headlines_are_claims_and_few():
    assert set(pages.HEADLINES) <= set(results.CLAIMS) and len(pages.HEADLINES) <= 12


def test_a_second_family_records_claims_of_other_numbers_and_is_counted(root, session_in):
    write_rows(root, "quick", 0.05)
    write_notebook(root, name="evidence/07_photographs")
    folder = stamps.rows_file("07_photographs", "quick").parent
    folder.mkdir(parents=True)
    session.announce(session.Session("evidence/07_photographs", "quick", 0, {}, folder))
    row = results.record(F, **ROW)
    assert row["family"] == "garments" and results.of_this_run() == {F: row}
    assert "**no**" not in scorecard.families_table({F: row}).data
    assert "1 claims have a second verdict" in pages.carried_over(scorecard.rows())
    assert "for 1 of them" in pages.carried_over(scorecard.rows())
    assert line_of(F).split(" | ")[-2].startswith(row["verdict"])
    worse = results.record(F, **ROW | {"measured": 0.6})
    assert "**no**" in scorecard.families_table({F: worse}).data
    assert "for 0 of them" in pages.carried_over(scorecard.rows())
