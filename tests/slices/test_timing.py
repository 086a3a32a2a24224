"""When borders appear and decisions settle, on maps whose steps are known."""

import numpy as np

from lib.slices import timing

LABELS = np.repeat([[0] * 4 + [1] * 4], 8, 0)


def test_a_border_stands_out_from_half_of_its_final_contrast():
    """Images that step by 1 from column to column, and by more at the border."""

    def image(height):
        return np.tile(np.cumsum([0, 1, 1, 1, height, 1, 1, 1]), (8, 1))[..., None]

    # Neighbours in a column are equal, so the mean distance within the phases is 48 / 104.
    assert timing.stands_out([image(h) for h in (1, 1, 4, 3, 5)], LABELS) == 3
    assert timing.stands_out([image(h) for h in (5, 1, 2, 5)], LABELS) == 4
    assert np.isnan(timing.stands_out([image(5)] * 2, np.zeros((8, 8))))


def test_a_decision_settles_when_nearly_all_points_keep_it():
    verdicts = np.zeros((5, 20), int)
    verdicts[1, :2], verdicts[0, :3], verdicts[2, :9] = 1, 1, 1
    assert timing.settles(verdicts) == 4 and timing.settles(verdicts[3:]) == 1
    assert timing.settles(verdicts[[0, 1, 3]]) == 2
