"""Boxes, their cells and the points spread over them."""

import numpy as np
import pytest
import torch

from lib.geometry import boxes

F64 = torch.float64
BOX = torch.tensor([[-2.0, -1.0], [2.0, 3.0]], dtype=F64)


def test_cells_are_indexed_first_coordinate_first():
    grid = torch.stack(torch.meshgrid(*[torch.arange(3)] * 2, indexing="ij"), -1)
    torch.testing.assert_close(boxes.cells(3).view(3, 3, 2), (grid.double() + 0.5) / 3)


@pytest.mark.parametrize("d", [1, 2, 3])
def test_the_grid_of_a_box_holds_the_centres_of_equal_cells(d):
    box = np.array([[-2.0, -1.0, 10.0], [2.0, 3.0, 11.0]])[:, :d]
    axes = [low + (high - low) * (np.arange(4) + 0.5) / 4 for low, high in box.T]
    exact = np.stack(np.meshgrid(*axes, indexing="ij"), -1).reshape(-1, d)
    np.testing.assert_allclose(boxes.box_grid(box, 4), exact, rtol=1e-14)
    torch.testing.assert_close(boxes.centres(box, 4), torch.from_numpy(exact))


def test_uniform_points_fill_the_box_and_follow_the_seed():
    t = boxes.uniform_box(BOX, 4000, 3)
    assert np.array_equal(t, boxes.uniform_box(BOX, 4000, 3))
    assert not np.array_equal(t, boxes.uniform_box(BOX, 4000, 4))
    u = boxes.unit_square(t, BOX)
    assert u.min() >= 0 and u.max() <= 1
    assert (u.mean(0) - 0.5).abs().max() < 5 * (12 * 4000) ** -0.5


@pytest.mark.parametrize("corner", [0, 1])
def test_a_corner_that_went_through_single_precision_belongs_to_the_box(corner):
    box = np.array([[0.1, 0.1], [0.7, 0.7]])
    for t, of in ((box, box.astype(np.float32)), (box.astype(np.float32), box)):
        moved, kept = boxes.in_box(t[corner : corner + 1], of)
        assert (moved >= kept[0]).all() and (moved <= kept[1]).all() and moved.dtype == F64
        assert (moved - torch.from_numpy(box[corner])).abs().max() < 1e-7
    with pytest.raises(ValueError, match="1 rows of t lie outside the box"):
        boxes.in_box([[0.1 - 1e-6, 0.5]], box)


@pytest.mark.parametrize(
    ("t", "box", "message"),
    [
        ([[0.5, 0.5]], [[1.0, 1.0], [0.0, 0.0]], "lower corner first"),
        ([[0.5, 0.5]], [[0.0], [1.0]], r"t of shape \(1, 2\)"),
        ([[0.5, 0.5]], [0.0, 1.0], "box="),
        ([[0.5, 0.5]], [[0.0, 0.0], [1.0, np.inf]], "box has 1 entries"),
        ([[0.5, np.nan]], [[0.0, 0.0], [1.0, 1.0]], "t has 1 entries"),
        ([[0.5, 2.0]], [[0.0, 0.0], [1.0, 1.0]], r"the first at t=\[0.5, 2.0\]"),
        ([[0.5]], [[0.0], [1.0]], "two parameters"),
    ],
)
def test_what_is_no_box_or_lies_outside_is_refused(t, box, message):
    with pytest.raises(ValueError, match=message):
        boxes.unit_square(t, box)
