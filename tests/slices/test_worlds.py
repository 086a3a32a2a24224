"""Worlds of known geometry against the solver of geodesics and elementary geometry."""

import numpy as np
import pytest
import torch

from lib.geometry import geodesics, metric
from lib.slices import grid, relief, worlds

START = torch.tensor([[0.2, 0.2], [0.3, 0.7]], dtype=torch.float64)
END = torch.tensor([[0.7, 0.6], [0.8, 0.2]], dtype=torch.float64)


def test_detours_of_a_wall_are_those_of_the_unfolded_plane():
    world = worlds.Wall(0.0, 0.0)  # at α = 0.5
    move = (END - START).abs() * 40
    straight = move.norm(dim=1) + 15
    bent = ((move[:, 0] + 15) ** 2 + move[:, 1] ** 2).sqrt()
    np.testing.assert_allclose(world.detour(START, END), straight / bent - 1)
    assert world.detour(START, START + 0.1) == pytest.approx([0, 0], abs=1e-12)


@pytest.mark.parametrize("angle", [0.5, 1.1])
def test_the_surface_finds_the_detour_of_an_oblique_wall_but_no_cheap_gap(angle):
    world = worlds.Wall(angle, 0.05)
    axes, g = relief.surface_metric(world.images(grid(33)).unflatten(0, (33, 33)))
    table = metric.from_grid(axes, g)
    path = geodesics.geodesic(table, START, END, points=32, global_check=33)
    true = world.detour(START, END)
    assert (path.detour.numpy() < true + 0.01).all()
    assert path.detour.mean() > 0.3 * true.mean()  # its border is two cells wide


def test_detours_of_a_globe_are_those_of_great_circles():
    world = worlds.Globe()
    t = torch.tensor([[1.0, 0.1], [0.0, 0.1]], dtype=torch.float64)
    other = torch.tensor([[1.0, 0.5], [0.0, 0.5]], dtype=torch.float64)
    on_parallel, chord = 2 * np.cos(1.2), 2 * np.cos(1.2) * np.sin(1.0)
    expected = [on_parallel / (2 * np.arcsin(chord / 2)) - 1, 0]  # the equator is a great circle
    np.testing.assert_allclose(world.detour(t, other), expected, atol=1e-6)
