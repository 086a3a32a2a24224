"""Laws of box counting, zooms and noise floors."""

import numpy as np
import pytest
import torch

from lib import slices
from lib.diffusion import models
from lib.diffusion.mixture import flow, mixture
from lib.slices import fractal

POINTS = torch.tensor([[0.2, 0.3], [0.5, 0.6], [0.7, 0.4]], dtype=torch.float64)
ROW, COLUMN = np.indices((513, 513)) / 512


@pytest.mark.parametrize("angle", np.linspace(0, np.pi, 9))
def test_the_border_of_a_half_plane_has_dimension_one(angle):
    half = (ROW - 0.47) * np.cos(angle) + (COLUMN - 0.52) * np.sin(angle) > 0
    found = fractal.box_counting(fractal.border(half))
    assert found.dimension == pytest.approx(1, abs=0.05)


def test_a_straight_row_has_dimension_one_exactly():
    mask = np.zeros((512, 512), bool)
    mask[100] = True
    found = fractal.box_counting(mask)
    assert found.dimension == pytest.approx(1, abs=1e-12) and found.standard_error < 1e-12
    np.testing.assert_array_equal(found.counts, 512 // found.sizes)


@pytest.mark.parametrize("side", [500, 512])
def test_the_sierpinski_triangle_has_its_dimension(side):
    i, j = np.indices((side, side))
    found = fractal.box_counting((i & j) == 0)
    assert found.dimension == pytest.approx(np.log(3) / np.log(2), abs=0.05)


def test_a_disc_has_dimension_two_and_its_rim_one():
    disc = np.hypot(ROW - 0.5, COLUMN - 0.5) < 0.4
    assert fractal.box_counting(disc).dimension == pytest.approx(2, abs=0.05)
    assert fractal.box_counting(fractal.border(disc)).dimension == pytest.approx(1, abs=0.05)


def test_the_window_of_scales_is_the_one_asked_for():
    found = fractal.box_counting(ROW > COLUMN, smallest=2, largest=20)
    assert found.sizes.tolist() == [2, 4, 8, 16]


def test_the_standard_error_is_that_of_a_least_squares_slope():
    found = fractal.box_counting(fractal.border(np.hypot(ROW - 0.5, COLUMN - 0.5) < 0.3))
    x, y = np.log(found.sizes), np.log(found.counts)
    (slope, _), covariance = np.polyfit(x, y, 1, cov=True)
    assert found.dimension == pytest.approx(-slope)
    assert found.standard_error == pytest.approx(covariance[0, 0] ** 0.5)


@pytest.mark.parametrize(
    "mask, options, message",
    [
        (np.zeros((64, 64)), {}, "0 cells"),
        (np.ones(64), {}, "2-D"),
        (np.ones((64, 64)), {"smallest": 8, "largest": 16}, "three"),
        (np.ones((64, 64)), {"smallest": 0}, "three"),
    ],
)
def test_a_set_without_a_slope_is_refused(mask, options, message):
    with pytest.raises(ValueError, match=message):
        fractal.box_counting(mask, **options)


def test_the_error_of_a_small_box_count_is_that_of_straight_lines():
    mean, spread = fractal.line_spread(21, draws=60)
    assert mean == pytest.approx(1, abs=3 * spread) and 0.01 < spread < 0.3
    fine = fractal.line_spread(257, draws=20)
    assert fine[0] == pytest.approx(1, abs=0.05) and fine[1] < spread
    many = [fractal.line_spread(17, lines=k, draws=100, largest=4)[0] for k in (1, 2, 4)]
    assert many == sorted(many) and many[-1] > 1.15  # so few boxes: lines look like a fractal


@pytest.mark.parametrize("dimension", [1.0, np.log(4) / np.log(3), 1.5])
def test_windows_on_curves_read_less_than_their_dimension_and_a_line_reads_one(dimension):
    read = fractal.readings(65, dimension, largest=16, draws=8)
    assert len(read) == 8 and read.mean() + 0.03 >= 1 and read.mean() < dimension + 0.03
    assert read.mean() > 1 + 0.7 * (dimension - 1)


def test_a_koch_curve_is_the_snowflake_at_its_own_dimension():
    masks = [fractal.border(fractal.koch(129, np.log(4) / np.log(3), seed=k)) for k in range(3)]
    found = [fractal.box_counting(m, smallest=2, largest=32).dimension for m in masks]
    assert np.mean(found) == pytest.approx(1.262, abs=0.08)


def test_the_share_above_a_bound_grows_with_the_windows_and_needs_their_spread():
    values = np.random.default_rng(0).normal(1.15, 0.05, 4000)
    few, many = (fractal.share_above(values, 1.1, windows=n) for n in (4, 40))
    assert few < many and many > 0.99
    assert fractal.share_above(values, 1.2, windows=8) < 0.01
    assert fractal.share_above([1.3, 1.3], 1.1, windows=3) == 1


def test_border_cells_are_those_with_two_labels():
    labels = np.array([[0, 0, 0, 2], [0, 0, 0, 2], [0, 0, 0, 2], [1, 0, 0, 2]])
    np.testing.assert_array_equal(fractal.border(labels), [[0, 0, 1], [0, 0, 1], [1, 0, 1]])


def test_a_traced_window_is_the_full_one_at_a_part_of_its_cost():
    drawn = []

    def stripes(t):
        drawn.append(len(t))
        return (t.norm(dim=1) > 0.5).long() + 2 * (t[:, 1] > 0.83).long()

    traced = fractal.traced(stripes, (0.5, 0.5), 1.0, 7)
    full = stripes(slices.grid(129)).reshape(129, 129)
    np.testing.assert_array_equal(traced, full)
    assert sum(drawn[:-1]) < 129**2 / 5


def test_windows_are_labelled_in_the_order_of_the_grid_and_stay_inside_the_slice():
    seen = []
    found = fractal.traced(lambda t: seen.append(t) or t[:, 0] > 0.3, (0.3, 0.01), 0.1, 4)
    np.testing.assert_array_equal(found, np.indices((17, 17))[0] > 8)
    t = torch.cat(seen)
    assert t.amin(0).tolist() == pytest.approx([0.25, 0.0])
    assert t.amax(0).tolist() == pytest.approx([0.35, 0.1])


def test_a_window_below_the_number_format_is_refused_with_the_smallest_useful_one():
    plane = slices.Slice(models.unit_normal((3, 4, 16, 16), 0))
    step = plane.resolution(torch.float32)
    with pytest.raises(ValueError, match=f"smallest useful window is {33 * step:.3g}.*float64"):
        fractal.traced(torch.norm, (0.5, 0.5), 1e-7, 5, resolution=step)
    fractal.check_window(32.001 * step, 32, step)
    with pytest.raises(ValueError, match="below the number format"):
        fractal.check_window(31.999 * step, 32, step)


def test_the_border_of_a_mixture_is_no_fractal():
    means = 3 * torch.as_tensor(np.random.default_rng(5).standard_normal((3, 1, 3, 3)))
    generator, plane = mixture(means, 0.5), slices.Slice(means)

    def classify(t):
        images = flow(generator, plane.latents(t), steps=30)
        return torch.cdist(images.flatten(1), means.flatten(1)).argmin(1)

    whole = fractal.traced(classify, (0.5, 0.5), 1.0, 6)
    cells = np.argwhere(fractal.border(whole))
    middle = cells[np.abs(cells - 32).max(1).argmin()] / 64
    for edge in (0.3, 0.1):
        found = fractal.box_counting(fractal.border(fractal.traced(classify, middle, edge, 6)))
        assert found.dimension == pytest.approx(1, abs=0.08)


def test_a_deterministic_function_has_no_noise():
    t = torch.rand(5, 2, generator=torch.Generator().manual_seed(0))
    assert not fractal.noise_floor(lambda s: s.sin(), t).any()


def test_the_noise_floor_sees_the_size_of_the_batch_and_the_place_in_it():
    t = torch.zeros(9, 2, dtype=torch.float64)
    by_size = fractal.noise_floor(lambda s: s + 1e-3 * len(s), t, repeats=3)
    np.testing.assert_allclose(by_size, 2e-3 * 2**0.5)
    both_ways = {1: 0.0, 2: 1e-3, 3: -1e-3}
    found = fractal.noise_floor(lambda s: s[:, :1] + both_ways[len(s)], t, repeats=3)
    np.testing.assert_allclose(found[:8], 2e-3)  # the ninth has no pair

    def by_place(s):
        return s[:, :1] + 1e-3 * torch.arange(len(s)).view(-1, 1)

    found = fractal.noise_floor(by_place, t, repeats=3)
    np.testing.assert_allclose(found[:6], [0, 1e-3, 2e-3, 1e-3, 1e-3, 2e-3])


def test_one_repeat_shows_no_noise_and_is_refused():
    with pytest.raises(ValueError, match="repeats = 1"):
        fractal.noise_floor(torch.sin, torch.zeros(2, 2), repeats=1)


def test_difference_slopes_of_a_linear_map_are_exact():
    jacobian = torch.as_tensor(np.random.default_rng(0).standard_normal((5, 2)))
    t, distances = POINTS, [1e-1, 1e-3]
    found = fractal.difference_slopes(lambda s: s @ jacobian.T, t, (3.0, 4.0), distances)
    expected = float((jacobian @ torch.tensor([0.6, 0.8], dtype=torch.float64)).norm())
    assert found.shape == (3, 2)
    np.testing.assert_allclose(found, expected, rtol=1e-10)


def test_difference_slopes_straddle_the_point_at_the_distance_asked_for():
    seen = []
    fractal.difference_slopes(lambda s: seen.append(s) or s, [[0.5, 0.4]], (3.0, 4.0), [0.1])
    torch.testing.assert_close(
        seen[0], torch.tensor([[0.47, 0.36], [0.53, 0.44]], dtype=torch.float64)
    )


def test_difference_slopes_saturate_at_the_derivative_of_a_steep_border():
    width = 1e-4
    t, distances = (
        torch.tensor([[0.5, 0.2], [0.6, 0.2]], dtype=torch.float64),
        10.0 ** -np.arange(1, 8),
    )
    found = fractal.difference_slopes(
        lambda s: torch.tanh((s[:, 0] - 0.5) / width), t, (1.0, 0.0), distances
    )
    np.testing.assert_allclose(found[0, :2], 2 / distances[:2], rtol=1e-6)
    assert found[0, -1] == pytest.approx(1 / width, rel=1e-4)
    assert found[1, 2:].max() == 0


@pytest.mark.parametrize("distances", [[0.1, 0.0], [-0.1], [1e-18]])
def test_distances_that_vanish_are_refused(distances):
    with pytest.raises(ValueError, match="distances"):
        fractal.difference_slopes(torch.norm, POINTS, (1.0, 0.0), distances)
