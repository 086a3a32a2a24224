"""Shortest paths on the graph of a grid: a global route to distances under a tensor metric."""

import itertools
import math

import numpy as np
import torch
from scipy.sparse import csr_array
from scipy.sparse.csgraph import dijkstra
from torch import Tensor

from lib.geometry.boxes import as_box
from lib.geometry.checks import Metric, Values
from lib.geometry.lengths import as_ends, in_double, measure, panels

MOST_EDGES = 4_000_000
EDGE_SCAN = 2  # fewest panels of an edge


def graph_distance(
    metric: Metric,
    start: Values,
    end: Values,
    *,
    box: Values,
    resolution: int = 48,
    reach: int = 3,
    points: int = 64,
) -> tuple[Tensor, Tensor]:
    """Shortest paths on a grid graph under a tensor metric, a global check of geodesics.

    Dijkstra on resolution^d nodes, each joined to all nodes at coprime offsets up to `reach` per
    axis; an edge weighs the length of its straight segment by adaptive quadrature. End points join
    their nearest node. The result is measured again as one continuous polyline, so it is the length
    of a curve: an upper bound, high by a few per cent for the limited directions, more where the
    metric is very anisotropic. Edges that meet a place where the metric is infinite or not positive
    are left out.

    metric: (n, d) -> (n, d, d). start, end: (b, d), inside the box (2, d). points: of the paths.
    Returns lengths (b,), and paths (b, points, d), equally spaced in coordinates.
    Raises ValueError for resolution <= reach, points < 2, shapes that do not match, more than four
    million edges, or end points that no edges of finite length join (says which).
    """
    start, end = as_ends(start, end)
    if resolution <= reach or points < 2:
        raise ValueError(
            f"resolution = {resolution}, reach = {reach}, points = {points}; expected resolution > "
            "reach, points >= 2"
        )
    box = as_box(box).to(start)
    metric = in_double(metric, start[:1])
    axes = [torch.linspace(*side.tolist(), resolution).to(start) for side in box.T]
    nodes = torch.cartesian_prod(*axes).reshape(-1, len(axes))
    first, last = (_nearest(t, box, resolution) for t in (start, end))
    routes = _routes(_grid_graph(metric, nodes, resolution, reach), first, last)
    length, paths = [], []
    for k, route in enumerate(routes):
        curve = torch.cat([start[k : k + 1], nodes[route], end[k : k + 1]])
        length.append(
            measure(metric, curve[None], strict=False)[0]
            if route
            else start.new_full((1,), torch.inf)
        )
        paths.append(_equal_spacing(curve, points))
    length = torch.cat(length)
    _check_joined(length, start, end, resolution)
    return length, torch.stack(paths)


def _routes(graph: csr_array, first: np.ndarray, last: np.ndarray) -> list[list[int]]:
    """Nodes of the shortest way from first to last, none where there is no way."""
    sources, row = np.unique(first, return_inverse=True)
    routes: list[list[int]] = [[] for _ in first]
    for block in np.array_split(np.arange(len(sources)), max(1, len(sources) // 128)):
        before = dijkstra(graph, indices=sources[block], return_predecessors=True)[1]
        for pair in np.flatnonzero(np.isin(row, block)):
            routes[pair] = _trace(before[row[pair] - block[0]], first[pair], last[pair])
    return routes


def _check_joined(length: Tensor, start: Tensor, end: Tensor, resolution: int) -> None:
    lost = (~torch.isfinite(length)).nonzero()[:, 0]
    if len(lost):
        k = int(lost[0])
        raise ValueError(
            f"no way of finite length from start[{k}] = {start[k].tolist()} to end[{k}] = "
            f"{end[k].tolist()} on {resolution} nodes per axis ({len(lost)} of {len(length)}): the "
            "metric is infinite or not positive between them; take ends on one side of that "
            "wall, or a higher resolution that finds a gap in it"
        )


def _grid_graph(metric: Metric, nodes: Tensor, resolution: int, reach: int) -> csr_array:
    """Undirected weighted graph of the grid, each edge stored in both directions."""
    d = nodes.shape[1]
    offsets = [
        offset for offset in itertools.product(range(-reach, reach + 1), repeat=d)
        if math.gcd(*offset) == 1 and offset > (0,) * d
    ]  # fmt: skip
    if len(offsets) * len(nodes) > MOST_EDGES:
        raise ValueError(
            f"resolution = {resolution} and reach = {reach} in {d} dimensions make "
            f"{len(offsets) * len(nodes):,} edges; give a resolution up to "
            f"{int((MOST_EDGES / len(offsets)) ** (1 / d))}"
        )
    index = np.arange(len(nodes)).reshape([resolution] * d)
    tails, heads, weights = [], [], []
    for offset in offsets:
        inside = [slice(max(0, -k), resolution - max(0, k)) for k in offset]
        shifted = [slice(max(0, k), resolution - max(0, -k)) for k in offset]
        tails.append(index[tuple(inside)].ravel())
        heads.append(index[tuple(shifted)].ravel())
        edges = torch.stack([nodes[tails[-1]], nodes[heads[-1]]], 1)
        with torch.no_grad():
            found = panels(metric, edges, scan=EDGE_SCAN, tolerance=1e-3)
        weights.append(found.curve_length(edges).cpu().numpy())
    tail, head, weight = (np.concatenate(a) for a in (tails, heads, weights))
    finite = np.isfinite(weight)
    tail, head, weight = tail[finite], head[finite], weight[finite]
    both = np.concatenate([tail, head]), np.concatenate([head, tail])
    return csr_array((np.concatenate([weight, weight]), both), shape=(len(nodes),) * 2)


def _nearest(t: Tensor, box: Tensor, resolution: int) -> np.ndarray:
    """Flat index of the grid node nearest to each point."""
    unit = (t - box[0]) / (box[1] - box[0])
    steps = (unit * (resolution - 1)).round().long().clamp(0, resolution - 1).cpu().numpy()
    return np.ravel_multi_index(steps.T, [resolution] * t.shape[1])


def _trace(before: np.ndarray, first: int, last: int) -> list[int]:
    """Nodes from first to last by walking the predecessors back; none where there is no way."""
    route = [last]
    while route[-1] != first:
        if before[route[-1]] < 0:
            return []
        route.append(before[route[-1]])
    return route[::-1]


def _equal_spacing(curve: Tensor, points: int) -> Tensor:
    """One polyline (k, d) at equally spaced coordinate length, ends kept exactly."""
    x = curve.detach().cpu().double().numpy()
    along = np.append(0, np.linalg.norm(np.diff(x, axis=0), axis=1).cumsum())
    at = np.linspace(0, along[-1], points)
    result = torch.from_numpy(np.stack([np.interp(at, along, c) for c in x.T], 1)).to(curve)
    return torch.cat([curve[:1], result[1:-1], curve[-1:]])
