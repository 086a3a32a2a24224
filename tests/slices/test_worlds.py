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
    np.testing.assert_allclose(world.detour(START, END), straight / bent - 1, atol=2e-3)
    assert world.detour(START, START + 0.1) == pytest.approx([0, 0], abs=1e-9)


@pytest.mark.parametrize("width", [0.02, 0.2])
def test_the_metric_of_a_wall_is_that_of_its_images(width):
    world, t = worlds.Wall(0.4, 0.05, width=width), grid(5)
    J = torch.func.vmap(torch.func.jacrev(world.images))(t)
    torch.testing.assert_close(world.metric(t), J.mT @ J)


def test_a_soft_wall_is_a_hessian_and_its_detour_that_of_the_solver():
    world = worlds.Wall(0.9, 0.0, jump=20.0, width=0.06)
    axes = [np.linspace(0, 1, 65)] * 2
    table = metric.from_grid(axes, world.metric(grid(65)).unflatten(0, (65, 65)))
    assert float(metric.hessianity_defect(table, grid(9)).median()) < 0.02
    path = geodesics.geodesic(table, START, END, points=64, global_check=33)
    np.testing.assert_allclose(path.detour.numpy(), world.detour(START, END), atol=2e-3)


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
