"""Rows of the numbers contract are complete, verdicts follow from numbers, tables show both."""

import json
import re

import numpy as np
import pytest
import torch

from lib.kit import results, scorecard

F = "hessian.ising.rmse_free_energy"
ROW = {"measured": 0.05, "error": 0.001, "n": 3, "null": {"affine": 0.487}}


def test_ids_are_well_formed_and_belong_to_a_numbered_notebook():
    for claim, entry in results.CLAIMS.items():
        assert re.fullmatch(r"(hessian|asyrp|svd|models)(\.[A-Za-z0-9_]+)+", claim)
        assert re.fullmatch(r"0[0-5]_\w+", entry.notebook)
        assert entry.statement and entry.needs in ("", "sd", "celebahq", "users")
        assert entry.reported is None or np.isfinite(entry.reported)
    statements = [(e.notebook, e.statement) for e in results.CLAIMS.values()]
    assert len(set(statements)) == len(statements)


def test_a_row_holds_the_contract_and_plain_numbers(session_in):
    measured, error = np.float32(0.05), torch.tensor(0.001, dtype=torch.float64)
    results.record(F, measured, error, np.int64(3), {"affine": 0.487}, verdict="reproduced")
    (row,) = json.loads((session_in / "results.json").read_text()).values()
    assert row["measured"] == 0.05 and row["error"] == 0.001 and row["n"] == 3
    assert row["reported"] == 0.0883 and row["null"] == {"affine": 0.487}
    others = {"statement", "second_route", "unit", "verdict", "reason", "needs"}
    assert set(row) == others | {"reported", "measured", "error", "n", "null"}


def test_recording_again_replaces_the_row_and_order_does_not_matter(session_in):
    torus = "hessian.ising.torus_rmse"
    results.record(torus, 1.0, 0, 1, None, verdict="partly")
    results.record(F, 1.0, 0, 1, None, verdict="partly")
    results.record(torus, 2.0, 0, 1, None, verdict="partly")
    rows = results.read(session_in / "results.json")
    assert list(rows) == [F, torus] and rows[torus]["measured"] == 2.0


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"claim": "hessian.ising.rmse_free_enrgy"}, F),
        ({"claim": "hessian.tasep.rmse_J"}, "belongs to 02_tasep"),
        ({"verdict": "reproducd"}, "reproduced"),
        ({"measured": None}, "needs measured"),
        ({"measured": float("nan")}, "finite"),
        ({"measured": "0.05 or so"}, "expected a number"),
        ({"error": None}, "needs measured"),
        ({"error": -1.0}, "error is"),
        ({"n": 0}, "n >= 1"),
        ({"null": {"affine": float("inf")}}, "affine.*finite"),
        ({"verdict": "not tested here", "reason": "no time"}, "cannot be 'not tested here'"),
    ],
)
def test_an_incomplete_row_is_refused_and_nothing_is_written(session_in, change, message):
    arguments = {"claim": F, "verdict": "reproduced", **ROW, **change}
    with pytest.raises(ValueError, match=message):
        results.record(**arguments)
    assert not (session_in / "results.json").exists()


def test_recording_needs_a_run(monkeypatch):
    monkeypatch.setattr(results.session, "_current", None)
    with pytest.raises(ValueError, match="run.start"):
        results.record(F, **ROW, verdict="partly")


@pytest.mark.parametrize(
    ("measured", "error", "bound", "expected"),
    [
        (0.05, 0.01, {"below": 0.08}, "reproduced"),
        (0.07, 0.01, {"below": 0.08}, "partly"),
        (0.09, 0.01, {"below": 0.08}, "partly"),
        (0.11, 0.01, {"below": 0.08}, "not reproduced"),
        (0.05, 0.01, {"below": 0.08, "null": 0.06}, "partly"),
        (0.05, 0.01, {"below": 0.08, "null": {"a": 0.2, "b": 0.3}}, "reproduced"),
        (0.05, 0.01, {"below": 0.08, "null": {"a": 0.2, "b": 0.01}}, "partly"),
        (0.11, 0.01, {"below": 0.08, "null": 0.5}, "partly"),
        (0.09, 0.01, {"below": 0.08, "null": 0.1}, "partly"),
        (0.09, 0.01, {"below": 0.08, "null": 0.085}, "not reproduced"),
        (0.11, 0.01, {"below": 0.08, "null": 0.1}, "not reproduced"),
        (0.9, 0.01, {"above": 0.8}, "reproduced"),
        (0.9, 0.01, {"above": 0.8, "null": 0.95}, "partly"),
        (0.5, 0.01, {"above": 0.8, "null": 0.6}, "not reproduced"),
        (0.0, 0.0, {"below": 1e-9}, "reproduced"),
    ],
)
def test_the_verdict_follows_from_bound_and_null(measured, error, bound, expected):
    assert results.verdict(measured, error, **bound) == expected


def test_a_verdict_is_the_same_for_a_mirrored_claim():
    for measured in np.linspace(-1, 1, 21):
        below = results.verdict(measured, 0.1, below=0.3, null=0.5)
        assert below == results.verdict(-measured, 0.1, above=-0.3, null=-0.5)


@pytest.mark.parametrize("bounds", [{}, {"below": 1.0, "above": 0.0}])
def test_a_verdict_takes_exactly_one_bound(bounds):
    with pytest.raises(ValueError, match="give one bound"):
        results.verdict(0.5, 0.1, **bounds)


def test_the_table_of_a_notebook_shows_its_rows(session_in):
    results.record(F, **ROW, second_route=0.0441, verdict="partly", reason="a | b")
    text = results.table("01_ising").data
    assert text.count("\n") == 2
    for part in ("0.0883", "0.05 ± 0.001 (3)", "affine 0.487", "0.0441", r"partly: a \| b"):
        assert part in text


def write_rows(root, profile, measured, verdict="reproduced"):
    folder = root / "figures" / "01_ising"
    folder.mkdir(parents=True, exist_ok=True)
    row = {**ROW, "measured": measured, "verdict": verdict}
    results.results_file(folder, profile).write_text(json.dumps({F: row}))


def test_a_profile_that_could_not_test_a_claim_does_not_hide_the_one_that_did(root):
    write_rows(root, "full", None, "not tested here")
    assert scorecard.rows()[F]["verdict"] == "not tested here"
    write_rows(root, "paper", 0.02)
    assert scorecard.rows()[F]["measured"] == 0.02 and scorecard.rows()[F]["profile"] == "paper"


def test_the_scorecard_prefers_full_and_shows_the_rest_as_open(root):
    write_rows(root, "quick", 0.05)
    assert "[quick]" in scorecard.terminal()
    write_rows(root, "full", 0.01)
    write_rows(root, "paper", 0.02)
    lines = scorecard.terminal().splitlines()
    (line,) = [line for line in lines if line.startswith(F)]
    assert "0.01 ± 0.001 (3)" in line and "reproduced [full]" in line
    assert sum(line.endswith("  open") for line in lines) == len(results.CLAIMS) - 1
    assert max(map(len, lines)) <= 160
    statement = results.CLAIMS[F].statement
    assert f"\n| {statement}<br>`{F}` | 0.0883 J | 0.01 ± 0.001 (3) |" in scorecard.markdown()
