"""The short drills: nothing that was finished is lost, and the user reads what to do."""

import pytest
from drills import DRILLS, Skipped


@pytest.mark.parametrize("drill", [d for d in DRILLS if d.short], ids=lambda d: d.fault)
def test_nothing_is_lost(drill, tmp_path):
    try:
        outcome = drill.act(tmp_path)
    except Skipped as reason:
        pytest.skip(str(reason))
    assert outcome.lost == 0 and outcome.saw
