"""Stretches, neighbour differences, ridges and phases against maps that are known."""

import numpy as np
import pytest
import torch

from lib import slices
from lib.slices import relief

RNG = np.random.default_rng(0)


def test_stretch_is_the_largest_singular_value_of_the_jacobian():
    jacobian = torch.as_tensor(RNG.standard_normal((4, 3, 7, 2)))
    expected = torch.linalg.matrix_norm(jacobian, ord=2)
    np.testing.assert_allclose(relief.stretch(jacobian.mT @ jacobian), expected, rtol=1e-12)


def test_neighbour_differences_of_a_linear_map_give_the_exact_trace():
    jacobian = RNG.standard_normal((5, 2))
    values = slices.grid(9).numpy() @ jacobian.T
    found = relief.neighbour_trace(values.reshape(9, 9, 5), 1 / 8)
    np.testing.assert_allclose(found, (jacobian**2).sum(), rtol=1e-10)


def test_neighbour_differences_average_both_sides_of_a_point():
    found = relief.neighbour_trace(torch.tensor([[0.0, 0.0, 3.0]] * 2), 0.5)
    np.testing.assert_allclose(found, [[0, 18, 36]] * 2)


def test_the_surface_of_a_linear_map_has_its_metric():
    jacobian = torch.as_tensor(RNG.standard_normal((5, 2)))
    values = (slices.grid(9) @ jacobian.mT).reshape(9, 9, 5)
    axes, g = relief.surface_metric(values, refine=2)
    assert [len(axis) for axis in axes] == [17, 17] and axes[0][-1] == 1
    torch.testing.assert_close(g, (jacobian.mT @ jacobian).expand(17, 17, 2, 2))


def test_the_metric_of_the_surface_is_the_square_of_its_differences():
    values = RNG.standard_normal((6, 7, 4))
    axes, g = relief.surface_metric(values, refine=500)
    assert float(torch.linalg.eigvalsh(g[::100, ::100]).min()) > 0
    length = float(g[1000, :, 1, 1].sqrt().mean())  # of the image of a line of the slice
    ends = np.linalg.norm(values[2, -1] - values[2, 0])  # at a row of nodes, near them
    assert length > 0.5 * ends


@pytest.mark.parametrize("angle", [0.0, 0.5, np.pi / 4])
def test_a_border_costs_the_same_wherever_it_is_crossed(angle):
    side = (slices.grid(33) - 0.5) @ torch.tensor([np.cos(angle), np.sin(angle)]).double()
    axes, g = relief.surface_metric((side > 0).double().reshape(33, 33, 1))
    costs = np.trapezoid(g[..., 0, 0].sqrt(), axes[0], axis=0)[24:-24]  # ways along the first axis
    np.testing.assert_allclose(costs, 1, atol=0.01)


@pytest.fixture
def two_phases():
    """Stretch 1 in and around a disc, 10 on its rim and on a line that cuts a corner off."""
    i, j = np.indices((60, 50))
    rim = np.abs(np.hypot(i - 30, j - 25) - 12) < 1.5
    return np.where(rim | (i + j == 12), 10.0, 1.0)


def test_phases_are_the_regions_between_ridges_by_falling_area(two_phases):
    labels = relief.phases(two_phases)
    assert labels.max() == 3 and (labels[two_phases > 1] == 0).all()
    assert labels[59, 49] == 1 and labels[30, 25] == 2 and labels[0, 0] == 3
    assert [int((labels == k).sum()) for k in (2, 3)] == [
        int((np.hypot(*(np.indices((60, 50)) - [[[30]], [[25]]])) <= 10.5).sum()),
        12 * 13 // 2,
    ]


def test_phases_too_small_to_matter_are_left_out(two_phases):
    labels = relief.phases(two_phases, smallest=100)
    assert labels.max() == 2 and labels[0, 0] == 0
    every = relief.phases(two_phases, smallest=0)  # a ridge is no phase, however small one may be
    np.testing.assert_array_equal(every, relief.phases(two_phases, smallest=1))


def test_ridges_do_not_depend_on_the_scale_and_a_map_without_borders_has_none(two_phases):
    np.testing.assert_array_equal(relief.ridges(two_phases), two_phases > 1)
    np.testing.assert_array_equal(relief.ridges(7 * two_phases), two_phases > 1)
    smooth = 1 + 0.5 * torch.sin(5 * slices.grid(40)[:, 0]).view(40, 40)
    assert not relief.ridges(smooth).any() and relief.phases(smooth).min() == 1


def test_ridges_are_measured_against_the_median_not_the_mean():
    stretches = np.ones((10, 10))
    stretches[0], stretches[1] = 1000.0, 4.0
    assert relief.ridges(stretches)[:2].all() and not relief.ridges(stretches)[2:].any()


def test_the_edge_of_the_slice_counts_as_a_border_of_its_phases():
    assert relief.centres(np.ones((9, 15), int)).tolist()[0][0] == 4


def test_the_centre_of_a_phase_is_its_innermost_point(two_phases):
    middle = relief.centres(relief.phases(two_phases))
    assert middle.shape == (3, 2)
    assert middle[1].tolist() == [30, 25]
    assert relief.phases(two_phases)[tuple(middle[2])] == 3 and middle[2].max() <= 5
