"""The short drills: nothing that was finished is lost, and the user reads what to do."""

import drills
import pytest
from drilling import Drill, Outcome
from drills import DRILLS, Skipped


@pytest.mark.parametrize("drill", [d for d in DRILLS if d.short], ids=lambda d: d.fault)
def test_nothing_is_lost(drill, tmp_path):
    try:
        outcome = drill.act(tmp_path)
    except Skipped as reason:
        pytest.skip(str(reason))
    assert outcome.lost == 0 and outcome.saw


def forbidden(folder):
    raise Skipped("not here")


def broken(folder):
    raise IndexError("no line")


@pytest.mark.parametrize(("others", "status"), [([], 0), ([Drill("c", broken, False)], 1)])
def test_one_run_writes_the_page_unless_a_drill_fails(
    others, status, tmp_path, monkeypatch, capsys
):
    page, readme = tmp_path / "drills.md", tmp_path / "README.md"
    for path in (page, readme):
        path.write_text("above\n<!-- drills -->\nold\n<!-- /drills -->\nbelow\n")
    fine = Drill("a", lambda folder: Outcome(0, "one | two"), True)
    monkeypatch.setattr(drills, "DRILLS", [fine, Drill("b", forbidden, False), *others])
    monkeypatch.setattr(drills, "PAGE", page)
    monkeypatch.setattr(drills, "CHECKOUT", tmp_path)
    assert drills.main([]) == status
    total = f"{2 + len(others)} faults, {drills.TRIES * (1 + len(others))} tries, 0 results lost"
    assert capsys.readouterr().out.endswith(f"{total}\n")
    if status:
        assert "old" in page.read_text() and "old" in readme.read_text()
        return
    rows = f"| a | {drills.TRIES} | 0 | one \\| two |\n| b | 0 | - | not tried: not here |"
    assert rows in page.read_text() and f"\n\n{total}.\n" in page.read_text()
    assert readme.read_text() == f"above\n<!-- drills -->\n{total}.\n<!-- /drills -->\nbelow\n"
