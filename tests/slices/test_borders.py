"""Laws of borders: where a label flips, how sharply, and what share of flips a mask holds."""

import numpy as np
import pytest
import torch

from lib.slices import borders


def beyond(t):
    """1 to the right of the line α + 0.3 β = 0.62."""
    return (t @ torch.tensor([1.0, 0.3], dtype=torch.float64) > 0.62).long()


START = [[0.1, 0.2], [0.2, 0.9], [0.9, 0.5]]
END = [[0.9, 0.4], [0.8, 0.9], [0.1, 0.5]]


@pytest.mark.parametrize("tolerance", [1e-2, 1e-9])
def test_crossings_lie_on_the_border_within_their_brackets(tolerance):
    found = borders.crossings(beyond, START, END, tolerance=tolerance)
    assert float(found.gap.max()) <= tolerance
    off = (found.points @ torch.tensor([1.0, 0.3], dtype=torch.float64) - 0.62).abs()
    assert float(off.max()) <= tolerance * 1.05
    step = torch.as_tensor(END).double() - torch.as_tensor(START).double()
    torch.testing.assert_close(found.directions, step / step.norm(dim=1, keepdim=True))


@pytest.mark.parametrize("shift", [3e-6, 0.2], ids=["near the border", "elsewhere"])
def test_a_rough_classifier_saves_calls_and_decides_nothing(shift):
    calls = []

    def counted(t):
        calls.append(len(t))
        return beyond(t)

    own = {"tolerance": 1e-9, "rough": lambda t: beyond(t + shift)}
    found = borders.crossings(counted, START, END, **own)
    exact = borders.crossings(beyond, START, END, tolerance=1e-9)
    torch.testing.assert_close(found.points, exact.points, rtol=0, atol=1e-9)
    assert sum(calls) <= 40 * len(START) or shift > 0.1


def test_of_several_borders_the_first_is_followed():
    def stripes(t):
        return (t[:, 0] * 3).floor().long()

    found = borders.crossings(stripes, [[0.05, 0.5]], [[0.95, 0.5]])
    assert float(found.points[0, 0]) == pytest.approx(1 / 3, abs=1e-6)


@pytest.mark.parametrize(
    "start, end, options, message",
    [
        ([[0.1, 0.1]], [[0.2, 0.1]], {}, "label 0 at both ends"),
        (START, END[:2], {}, "expected two"),
        (START, END, {"tolerance": 0.0}, "above zero"),
    ],
)
def test_segments_without_a_known_border_are_refused(start, end, options, message):
    with pytest.raises(ValueError, match=message):
        borders.crossings(beyond, start, end, **options)


def at(*places):
    """Crossings at places of the slice, looked for along the first axis."""
    points = torch.tensor(places, dtype=torch.float64)
    return borders.Crossing(points, torch.tensor([[1.0, 0.0]]).double().expand_as(points), None)


def test_a_border_that_moved_is_followed_and_one_that_left_is_not():
    def moved(t):
        return t @ torch.tensor([1.0, 0.3], dtype=torch.float64) > 0.66

    known = at([0.53, 0.3], [0.13, 0.3])  # 0.62 and 0.22; the border is at 0.66
    kept, found = borders.followed(moved, known, reach=0.05)
    assert kept.tolist() == [True, False] and len(found.points) == 1
    assert float(found.points[0] @ torch.tensor([1.0, 0.3]).double()) == pytest.approx(
        0.66, abs=1e-6
    )
    kept, found = borders.followed(moved, known, reach=0.02)
    assert not kept.any() and found is None


def test_of_several_borders_the_nearest_one_of_the_own_attribute_is_followed():
    def stripes(t):
        return torch.stack([(t[:, :1] > torch.tensor([0.42, 0.47, 0.55])).sum(1), t[:, 0] > 0.5], 1)

    known = at([0.5, 0.2], [0.5, 0.2])
    kept, found = borders.followed(stripes, known, which=[0, 1], reach=0.1)
    assert kept.all()
    np.testing.assert_allclose(found.points[:, 0], [0.47, 0.5], atol=1e-6)


def test_the_height_of_a_narrow_border_is_met_where_it_is_followed():
    width = 1e-4  # of tanh((x - place) / width), whose slope is 1 / width at its place
    for place in (0.4012345, 0.4312345):
        _, found = borders.followed(lambda t, a=place: t[:, 0] > a, at([0.41, 0.5]))
        off = (float(found.points[0, 0]) - place) / width
        assert np.cosh(off) ** -2 == pytest.approx(1, abs=1e-3)


def test_following_stays_inside_the_slice():
    seen = []

    def classify(t):
        seen.append(t)
        return t[:, 0] > 0.97

    borders.followed(classify, at([0.95, 0.5]), reach=0.2)
    assert float(torch.cat(seen).max()) == 1.0


def test_each_segment_follows_its_own_attribute():
    classify = lambda t: torch.stack([t[:, 0] > 0.3, t[:, 0] > 0.6], 1)  # noqa: E731
    found = borders.crossings(classify, [[0.0, 0.5]] * 2, [[1.0, 0.5]] * 2, which=[1, 0])
    np.testing.assert_allclose(found.points[:, 0], [0.6, 0.3], atol=1e-6)


def cliff(t, place=0.503, width=1e-5):
    """An image that jumps by 15 at `place`, beside the label's flip at 0.5, on a gentle slope."""
    return torch.stack([15 * ((t[:, 0] - place) / width).sigmoid(), 5 * t[:, 0]], 1)


@pytest.mark.parametrize("rough", [None, lambda t: cliff(t, 0.503 + 2e-6)], ids=["plain", "rough"])
def test_a_height_is_read_where_the_image_jumps_and_not_where_the_label_flips(rough):
    flips = borders.crossings(lambda t: t[:, 0] > 0.5, [[0.3, 0.4]] * 2, [[0.9, 0.4], [0.6, 0.7]])
    found = borders.steepest(cliff, *flips[:2], tolerance=1e-9, rough=rough)
    assert float(found.gap.max()) <= 1e-9
    np.testing.assert_allclose(found.points[:, 0], 0.503, atol=1e-9)
    slope = lambda t: torch.autograd.functional.jacobian(cliff, t)[0, 0, 0, 0]  # noqa: E731
    assert float(slope(flips.points[:1])) < 1e-9
    assert float(slope(found.points[:1])) == pytest.approx(15 / 4e-5, rel=1e-6)


def test_of_two_jumps_the_larger_within_reach_is_kept():
    steps = lambda t: cliff(t, 0.495) + 2 * cliff(t, 0.507) + 9 * cliff(t, 0.52)  # noqa: E731
    found = borders.steepest(steps, [[0.5, 0.5]], [[1.0, 0.0]])
    assert float(found.points[0, 0]) == pytest.approx(0.507, abs=1e-7)


def test_the_search_for_a_jump_stays_inside_the_slice():
    seen = []
    draw = lambda t: seen.append(t) or cliff(t, 1.001)  # noqa: E731
    borders.steepest(draw, [[0.995, 0.5]], [[1.0, 0.0]])
    assert float(torch.cat(seen).max()) == 1.0


@pytest.mark.parametrize(
    "points, options",
    [([0.5, 0.5], {}), ([[0.5, 0.5]] * 2, {}), ([[0.5, 0.5]], {"tolerance": 0.1})],
)
def test_jumps_need_points_with_directions_and_rising_lengths(points, options):
    with pytest.raises(ValueError, match="tolerance < width"):
        borders.steepest(cliff, points, [[1.0, 0.0]], **options)


def test_combined_labels_tell_combinations_apart_and_nothing_else():
    labels = np.array([[[0, 12], [1, 0]], [[0, 12], [0, 0]]])
    np.testing.assert_array_equal(borders.combined(labels), [[1, 2], [1, 0]])


def test_the_width_of_a_logistic_is_its_own():
    width = 0.02

    def log_odds(t):
        return (t[:, 0] - 0.4) * 2 * np.log(9) / width

    found = borders.crossings(lambda t: log_odds(t) > 0, [[0.1, 0.5]], [[0.9, 0.5]])
    assert borders.flip_width(log_odds, found, step=1e-3) == pytest.approx([width])
    assert torch.sigmoid(
        log_odds(torch.tensor([[0.39, 0.0], [0.41, 0.0]], dtype=torch.float64))
    ).tolist() == (pytest.approx([0.1, 0.9]))


def test_a_flip_that_is_not_there_is_infinitely_wide():
    found = borders.crossings(lambda t: t[:, 0] > 0.4, [[0.1, 0.5]], [[0.9, 0.5]])
    assert borders.flip_width(lambda t: torch.zeros(len(t)), found, step=1e-3) == [np.inf]


def test_each_crossing_reads_its_own_column():
    slopes = torch.tensor([10.0, 100.0], dtype=torch.float64)

    def log_odds(t):
        return (t[:, :1] - 0.4) * slopes

    found = borders.crossings(lambda t: t[:, 0] > 0.4, [[0.1, 0.5]] * 2, [[0.9, 0.5]] * 2)
    expected = 2 * np.log(9) / slopes.numpy()
    np.testing.assert_allclose(borders.flip_width(log_odds, found, step=1e-3), expected)


LABELS = np.array([[0, 0, 1], [0, 0, 1], [2, 0, 1]])


def test_border_pairs_are_the_neighbours_that_differ():
    pairs = borders.border_pairs(LABELS, most=99)
    found = {frozenset(map(tuple, pair.tolist())) for pair in pairs}
    assert found == {
        frozenset({(0, 1), (0, 2)}),
        frozenset({(1, 1), (1, 2)}),
        frozenset({(2, 1), (2, 2)}),
        frozenset({(1, 0), (2, 0)}),
        frozenset({(2, 0), (2, 1)}),
    }


def test_the_heaviest_pairs_come_first_and_keep_their_distance():
    labels, weights = np.zeros((6, 3)), np.zeros((6, 3))
    labels[:, 2] = 1
    weights[5, 2], weights[4, 2], weights[1, 2] = 9, 8, 7
    found = borders.border_pairs(labels, weights, most=2, apart=3)
    assert found.tolist() == [[[5, 1], [5, 2]], [[1, 1], [1, 2]]]
    assert borders.border_pairs(np.zeros((3, 3)), most=2).shape == (0, 2, 2)


def test_flips_on_a_mask_are_counted_by_pairs():
    mask = np.zeros((3, 3), bool)
    mask[:, 2] = True
    found = borders.flips_on(mask, LABELS)
    assert found == pytest.approx((3 / 5, 5 / 12, 5))
    both = borders.flips_on(mask, np.stack([LABELS, LABELS == 2], -1))
    assert both.share == pytest.approx(3 / 7) and both.count == 7
    assert np.isnan(borders.flips_on(mask, np.zeros((3, 3))).share)
    with pytest.raises(ValueError, match="one grid"):
        borders.flips_on(mask, LABELS[:2])


def test_the_error_of_a_share_is_binomial_for_scattered_flips_and_larger_for_borders():
    rng, side = np.random.default_rng(0), 60
    scattered = [
        (rng.random((side, side)) < 0.5, rng.random((side, side)) < 0.01) for _ in range(40)
    ]
    shares = [borders.flips_on(m, lab).share for m, lab in scattered]
    errors = [borders.flip_share_error(m, lab, blocks=6)[0] for m, lab in scattered]
    assert np.mean(errors) == pytest.approx(np.std(shares), rel=0.35)
    labels = np.indices((side, side))[0] > 29  # one straight border, on the mask to one half
    half = np.indices((side, side))[1] < 30
    binomial = (0.25 / borders.flips_on(half, labels).count) ** 0.5
    assert borders.flip_share_error(half, np.roll(labels, 5, 0), blocks=6)[0] > 2 * binomial


def test_the_error_of_a_share_needs_blocks_with_pairs():
    with pytest.raises(ValueError, match="blocks = 9"):
        borders.flip_share_error(np.zeros((8, 8)), np.zeros((8, 8)), blocks=9)
    assert borders.flip_share_error(np.zeros((8, 8)), np.zeros((8, 8)), blocks=2) == (0.0, 0)


def test_pairs_are_half_within_a_phase_and_half_across_two_and_of_like_length():
    regions = np.ones((41, 41), int)
    regions[21:] = 2
    regions[20] = 0  # the ridge between two halves of the square
    found = borders.phase_pairs(regions, 20, seed=3)
    same = (found.start[:, 0] < 0.5) == (found.end[:, 0] < 0.5)
    np.testing.assert_array_equal(found.within, same.numpy())
    assert found.within.sum() == found.across.sum() == 10
    size = (found.end - found.start).norm(dim=1)
    assert float(size.min()) > 0.15 and float(size.max()) < 0.45
    again = borders.phase_pairs(regions, 20, seed=3)
    assert torch.equal(again.start, found.start)


def test_pairs_are_filled_up_where_there_is_one_phase_and_refused_where_there_is_no_room():
    found = borders.phase_pairs(np.ones((9, 9), int), 6)
    assert len(found.start) == 6 and found.within.all() and not found.across.any()
    with pytest.raises(ValueError, match="n = 1"):
        borders.phase_pairs(np.ones((9, 9), int), 1)
    with pytest.raises(ValueError, match="lengths"):
        borders.phase_pairs(np.ones((9, 9), int), 4, lengths=(0.5, 0.2))
