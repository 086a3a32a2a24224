"""Methods compared where they succeed equally, against answers worked out by hand."""

import numpy as np
import pytest
import torch

from lib import hspace
from lib.diffusion import sampling
from lib.diffusion.models import unit_normal
from lib.svd import comparison, edits, properties

STEPS = 6


def rows(own, rival):
    """Two methods at strengths 0, 1, 2 on four faces: (success, cost) of shape (3, 4) each."""

    def part(sweep, i):
        return ({"success": sweep[0][i], "off": sweep[1][i]}, None)

    return {
        name: {w: part(sweep, w) for w in (0, 1, 2)}
        for name, sweep in (("own", own), ("rival", rival))
    }


ONES = np.ones(4)
SUCCESS = np.stack([0 * ONES, np.array([1.0, 1, 0, 0]), ONES])
COST = np.stack([0 * ONES, 0.1 * ONES, 0.2 * ONES])


def test_a_price_is_read_where_eight_in_ten_succeed():
    found = comparison.prices(rows((SUCCESS, COST), (SUCCESS, 2 * COST)), ["own", "rival"])
    assert found["own"].strength == pytest.approx(1.6)  # from .5 at 1 to 1 at 2
    assert found["own"].cost.value == pytest.approx(0.16)
    assert found["rival"].cost.value == pytest.approx(0.32)
    same = rows((SUCCESS, COST), (SUCCESS, COST))
    assert np.array_equal(comparison.swept(same, "own", "off"), COST)


def stacked(success, cost):
    return np.stack([success.T, cost.T], 1)


def test_a_lead_is_over_the_cheapest_rival_on_the_same_faces():
    own, line, dear = (stacked(SUCCESS, f * COST) for f in (0.5, 1.0, 3.0))
    found, best = comparison.lead((0, 1, 2), own, np.stack([dear, line]))
    assert best == 1 and found.value == pytest.approx(-0.08)
    same, _ = comparison.lead((0, 1, 2), line, line[None])
    assert same.value == 0 and same.error == 0


def test_a_rival_chosen_apart_is_not_the_luckiest_on_the_faces_that_score_it():
    def priced(cost):
        return stacked(np.stack([0 * ONES, ONES]), np.stack([0 * ONES, np.array(cost)]))

    own = priced([0.2] * 4)
    lucky = np.stack([priced([0.1, 0.3, 0.1, 0.3]), priced([0.3, 0.1, 0.3, 0.1])])
    found = comparison.lead_apart((0, 1), own, lucky)
    assert found.value == pytest.approx(0.8 * (0.2 - 0.3))  # each half meets the other's choice
    clear = np.stack([priced([0.1] * 4), priced([0.3] * 4)])
    together, best = comparison.lead((0, 1), own, clear)
    assert best == 0 and comparison.lead_apart((0, 1), own, clear) == together


def test_a_method_that_never_succeeds_costs_the_largest_possible():
    own = stacked(0 * SUCCESS, COST)
    found, _ = comparison.lead((0, 1, 2), own, stacked(SUCCESS, COST)[None])
    assert found.value == 1.0 and found.error == 0


@pytest.fixture(scope="module")
def at_work(pixel):
    """A model with a mid-block, a trajectory of it, and where an edit enters."""
    twin = pixel.to(torch.float32)
    twin.unet.mid_block = twin.unet.unet.mid_block
    times = properties.times(twin, STEPS)
    path = properties.trajectory(twin, twin.noise(4, 0), steps=STEPS)

    def finish(x):
        return sampling.ddim(twin, x, steps=STEPS, start=times[3]).clamp(-1, 1)

    def call(function, *given, **options):
        return function(*given, **options)

    delta = hspace.constant(0.3 * unit_normal(hspace.h_shape(twin), 1))
    return comparison.Entry(twin, times, 3, finish, call), path, delta


def test_at_weight_zero_every_method_is_the_unedited_face(at_work):
    entry, path, delta = at_work
    other = properties.trajectory(entry.generator, entry.generator.noise(4, 9), steps=STEPS)

    def score(images, plain):
        return {"far": (images - plain).abs().amax((1, 2, 3)).numpy()}

    sizes = {"k": 3, "weights": (1.0,), "omega": 1.0}
    found = comparison.compare(entry, (path, other), (delta, -1), score, **sizes)
    far = {way: row[0][0]["far"].max() for way, row in found.items() if 0 in row}
    assert far.pop("restart") > 1e-3 and set(far.values()) == {0.0}
    goal = found["target"][1.0][1]
    assert torch.allclose(found["interpolation"][1.0][1], goal, atol=1e-5)
    own = {"steps": STEPS, "start": entry.times[3]}
    turned = edits.shifted(entry.generator, path[3], delta, -2.0, **own)
    assert torch.equal(found["switch"][1.0][1], turned)


def test_a_shift_enters_before_or_after(at_work):
    entry, path, delta = at_work
    found = comparison.committed(entry, path, delta, k=3, weight=1.0)
    own = {"steps": STEPS}
    z = edits.shifted(entry.generator, path[0], delta, 1.5, start=999, stop=entry.times[3], **own)
    assert torch.allclose(found["interpolation, shift before"], entry.finish(z), atol=1e-5)
    after = edits.shifted(entry.generator, path[3], delta, 1.5, start=entry.times[3], **own)
    assert torch.equal(found["switch, shift after"], after)
