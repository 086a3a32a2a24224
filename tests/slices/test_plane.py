"""Laws of slices: their latents, what is rendered on them and its derivatives."""

import numpy as np
import pytest
import torch

from lib import slices
from lib.diffusion import models, sampling
from lib.diffusion.mixture import mixture
from lib.kit.cache import cached
from lib.slices import relief
from lib.slices.plane import PIECE

RNG = np.random.default_rng(0)
FLOAT = {"dtype": torch.float64}


def some_points(n, seed=0):
    return torch.as_tensor(np.random.default_rng(seed).uniform(0.05, 0.95, (n, 2)))


def small_mixture(sigma=0.5, shift=0.0):
    means = torch.as_tensor(np.random.default_rng(1).standard_normal((3, 1, 3, 3))) + shift
    return mixture(means, sigma)


@pytest.fixture
def plane():
    return slices.Slice(small_mixture().noise(3, 4))


def test_latents_are_the_plane_divided_by_its_own_deviation():
    z = RNG.standard_normal((3, 2, 3, 3))
    t = np.array([[0.0, 0.0], [1.0, 0.0], [0.0, 1.0], [0.25, 0.75]])
    x = slices.Slice(torch.as_tensor(z)).latents(t).numpy()
    for row, (a, b) in zip(x, t, strict=True):
        expected = z[0] + a * (z[1] - z[0]) + b * (z[2] - z[0])
        np.testing.assert_allclose(row, expected / expected.std(ddof=1), rtol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_latents_have_unit_deviation_in_the_type_asked_for(dtype):
    x = slices.Slice(models.unit_normal((3, 4, 8, 8), 1)).latents(some_points(50), dtype=dtype)
    assert x.dtype == dtype and x.shape == (50, 4, 8, 8)
    assert float((x.flatten(1).std(1) - 1).abs().max()) < 20 * torch.finfo(dtype).eps


def test_single_precision_latents_are_the_double_ones_rounded_once(plane):
    t = some_points(20)
    exact = plane.latents(t, dtype=torch.float64)
    assert torch.equal(plane.latents(t, dtype=torch.float32), exact.float())


def test_coordinates_in_plain_lists_keep_double_precision(plane):
    t = torch.tensor([[0.1, 0.7]], dtype=torch.float64)
    exact = plane.latents(t, dtype=torch.float64)
    assert torch.equal(plane.latents([[0.1, 0.7]], dtype=torch.float64), exact)


def test_anchors_are_kept_apart_from_the_callers_tensor():
    z = torch.randn(3, 1, 3, 3, generator=torch.Generator().manual_seed(0))
    plane = slices.Slice(z)
    before = plane.latents([[0.3, 0.4]])
    z.zero_()
    assert torch.equal(before, plane.latents([[0.3, 0.4]]))


Z = torch.as_tensor(RNG.standard_normal((4, 2, 3, 3)))
NAN = torch.full((2, 3, 3), float("nan"), **FLOAT)
BAD_ANCHORS = [
    ([Z[0], Z[1], Z[2][:1]], "one shape"),
    (Z, "three latents"),
    (Z[:2], "three latents"),
    ([Z[0], Z[1], Z[0] + 0.3 * (Z[1] - Z[0])], "collinear"),
    ([Z[0], Z[0], Z[1]], "collinear"),
    ([Z[0], Z[1], 2 * Z[0]], "plane with 0"),
    ([Z[0], Z[1], NAN], "NaN"),
    (Z[:3, :1, :1, :1], "collinear"),
]


@pytest.mark.parametrize("anchors, message", BAD_ANCHORS)
def test_anchors_that_span_no_surface_are_refused(anchors, message):
    with pytest.raises(ValueError, match=message):
        slices.Slice(anchors)


@pytest.mark.parametrize(
    "t, message",
    [
        ([[0.5, 1.01]], r"t\[0\].*outside the slice"),
        ([[0.5, 0.5], [-1e-9, 0.5]], r"t\[1\].*outside"),
        ([[float("nan"), 0.5]], "outside"),
        ([0.5, 0.5], r"\(n, 2\)"),
        ([[0.1, 0.2, 0.3]], r"\(n, 2\)"),
        (torch.zeros(0, 2), "n >= 1"),
    ],
)
def test_coordinates_that_are_not_in_the_slice_are_refused(plane, t, message):
    with pytest.raises(ValueError, match=message):
        plane.latents(t)
    with pytest.raises(ValueError, match=message):
        slices.render(small_mixture(), plane, t, steps=2)


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64])
def test_resolution_is_the_step_at_which_a_number_format_tells_latents_apart(dtype):
    plane = slices.Slice(models.unit_normal((3, 4, 16, 16), 2).double())
    step = plane.resolution(dtype, (0.4, 0.3))
    start = plane.latents([[0.4, 0.3]], dtype=dtype)

    def moved(h):
        return float((plane.latents([[0.4 + h, 0.3]], dtype=dtype) != start).double().mean())

    assert moved(2 * step) > 0.7
    if dtype != torch.float64:  # where the coordinates are no finer than the latents
        assert moved(step / 100) < 0.1


def test_grid_runs_through_beta_first():
    t = slices.grid(3, low=(0.0, 0.5), high=(1.0, 0.7)).reshape(3, 3, 2)
    assert t[2, 0].tolist() == [1.0, 0.5] and t[0, 2].tolist() == pytest.approx([0.0, 0.7])
    assert t[1, 2].tolist() == pytest.approx([0.5, 0.7])


def test_render_is_the_sampler_run_on_the_latents(pixel):
    plane, t = slices.Slice(pixel.noise(3, 1)), some_points(3)
    images = slices.render(pixel, plane, t, steps=3)
    assert torch.equal(images, sampling.ddim(pixel, plane.latents(t), steps=3))
    means = slices.render(pixel, plane, t, steps=3, features=lambda x: x.mean((2, 3)))
    torch.testing.assert_close(means, images.mean((2, 3)))


def test_render_computes_in_the_type_asked_for(pixel):
    plane, t = slices.Slice(pixel.noise(3, 1)), some_points(2)
    single = slices.render(pixel, plane, t, steps=3)
    double = slices.render(pixel, plane, t, steps=3, dtype=torch.float64)
    assert single.dtype == torch.float32 and double.dtype == torch.float64
    assert pixel.dtype == torch.float32
    gap = float((single - double).abs().max())
    assert 0 < gap < 1e-4


def test_a_text_model_is_rendered_with_prompt_and_guidance(latent):
    plane, t = slices.Slice(latent.noise(3, 1)), some_points(2)
    run = {"steps": 2, "prompt": "ab cd", "guidance": 3.0, "negative": "ef"}
    expected = sampling.ddim(latent, plane.latents(t), **run)
    assert torch.equal(slices.render(latent, plane, t, **run), expected)
    plain = slices.render(latent, plane, t, **{**run, "guidance": 1.0})
    assert float((plain - expected).abs().max()) > 1e-4


def test_an_image_does_not_depend_on_the_points_rendered_with_it(pixel):
    generator = pixel.to(torch.float64)
    plane, t = slices.Slice(generator.noise(3, 1)), some_points(PIECE + 6)
    together = slices.render(generator, plane, t, steps=2)
    rows = [PIECE + 5, 3, PIECE - 1]
    alone = torch.cat([slices.render(generator, plane, t[[i]], steps=2) for i in rows])
    torch.testing.assert_close(together[rows], alone, rtol=0, atol=1e-12)


def test_stochastic_noise_belongs_to_the_row_not_to_the_piece():
    generator = small_mixture()
    plane, t = slices.Slice(generator.noise(3, 1)), some_points(PIECE + 6)
    run = {"steps": 4, "eta": 1.0, "seed": 5}
    together = slices.render(generator, plane, t, **run)
    expected = sampling.ddim(generator, plane.latents(t), **run)
    torch.testing.assert_close(together, expected, rtol=0, atol=1e-12)


def counted(monkeypatch, fail_at=None):
    """Count sampler runs; the one numbered `fail_at` is interrupted."""
    runs, ddim = [], sampling.ddim

    def counting(*arguments, **options):
        runs.append(len(arguments[1]))
        if len(runs) == fail_at:
            raise KeyboardInterrupt
        return ddim(*arguments, **options)

    monkeypatch.setattr(sampling, "ddim", counting)
    return runs


@pytest.fixture
def empty_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("KIT_CACHE", str(tmp_path / "cache"))


@pytest.mark.parametrize("eta", [0.0, 0.5])
def test_a_resumed_run_equals_an_uninterrupted_one(empty_cache, monkeypatch, plane, eta):
    generator, t = small_mixture(), some_points(3 * PIECE - 5)
    run = {"steps": 3, "eta": eta}
    whole = slices.render(generator, plane, t, **run)
    with monkeypatch.context() as patch:
        counted(patch, fail_at=3)
        with pytest.raises(KeyboardInterrupt):
            slices.render(generator, plane, t, cache=cached, **run)
    runs = counted(monkeypatch)
    assert torch.equal(slices.render(generator, plane, t, cache=cached, **run), whole)
    assert runs == [PIECE - 5]
    slices.render(small_mixture(), plane, t, cache=cached, **run)
    assert len(runs) == 1


def test_a_cache_never_hands_out_another_models_or_settings_result(empty_cache, latent):
    first, other = small_mixture(), slices.Slice(small_mixture().noise(3, 5))
    plane, t, u = slices.Slice(first.noise(3, 4)), some_points(3), some_points(3, seed=1)
    calls = [
        (first, plane, t, {"steps": 3}),
        (small_mixture(sigma=0.4), plane, t, {"steps": 3}),
        (small_mixture(shift=0.1), plane, t, {"steps": 3}),
        (first, other, t, {"steps": 3}),
        (first, plane, u, {"steps": 3}),
        (first, plane, t, {"steps": 4}),
        (first, plane, t, {"steps": 3, "dtype": torch.float32}),
        (first, plane, t, {"steps": 3, "eta": 0.5}),
        (first, plane, t, {"steps": 3, "eta": 0.5, "seed": 1}),
        (first, plane, t, {"steps": 3, "stop": 500}),
        (first, plane, t, {"steps": 3, "features": lambda x: 2 * x}),
        (first, plane, t, {"steps": 3, "features": lambda x: 3 * x}),
    ]
    drawn = slices.Slice(latent.noise(3, 4))
    calls += [
        (latent, drawn, t, {"steps": 2, "prompt": prompt, "guidance": guidance})
        for prompt in ("ab", "cd")
        for guidance in (1.0, 2.0)
    ]
    fresh = [slices.render(*call[:3], **call[3]) for call in calls]
    for a in range(len(calls)):
        same = [fresh[a].shape == b.shape and torch.equal(fresh[a], b) for b in fresh[:a]]
        assert not any(same)
    for _ in range(2):
        for (*what, options), expected in zip(calls, fresh, strict=True):
            assert torch.equal(slices.render(*what, cache=cached, **options), expected)


def test_options_that_make_no_sense_are_refused(plane):
    generator, t = small_mixture(), some_points(2)
    with pytest.raises(ValueError, match="cache = 'folder'.*cached"):
        slices.render(generator, plane, t, steps=2, cache="folder")
    with pytest.raises(ValueError, match="float16.*float32 or torch.float64"):
        slices.render(generator, plane, t, steps=2, dtype=torch.float16)
    with pytest.raises(ValueError, match=r"latents have shape.*\(n, 1, 3, 3\)"):
        slices.render(generator, slices.Slice(Z[:3]), t, steps=2)


@pytest.fixture(scope="module")
def differentiable(pixel):
    """The tiny pixel model in single and double precision, with forward-mode rules."""
    double = pixel.to(torch.float64)
    models.make_differentiable(double.unet)
    return double.to(torch.float32), double


def directional(generator, plane, t, v):
    return torch.func.jvp(_images(generator, plane), (t,), (v,))[1]


def _images(generator, plane):
    return lambda s: slices.render(generator, plane, s, steps=4, differentiable=True)


@pytest.mark.parametrize("direction", [(1.0, 0.0), (0.0, 1.0)])
def test_forward_derivative_of_the_sampler_equals_central_differences(differentiable, direction):
    _, generator = differentiable
    plane, t = slices.Slice(generator.noise(3, 1)), some_points(2)
    v = torch.tensor(direction, **FLOAT).expand(2, 2)
    exact, f, h = directional(generator, plane, t, v), _images(generator, plane), 1e-4
    with torch.no_grad():
        difference = (f(t + h / 2 * v) - f(t - h / 2 * v)) / h
    assert float(exact.norm()) > 1
    assert float((exact - difference).norm() / exact.norm()) < 1e-6


def test_single_precision_derivatives_beat_the_best_single_precision_difference(differentiable):
    single, double = differentiable
    plane, t = slices.Slice(double.noise(3, 1)), some_points(2)
    v = torch.tensor([[1.0, 0.0]], **FLOAT).expand(2, 2)
    exact, f = directional(double, plane, t, v), _images(single, plane)
    forward = float((directional(single, plane, t, v) - exact).norm())
    with torch.no_grad():
        steps = 10.0 ** np.arange(-4, -0.9, 0.5)
        differences = [(f(t + h / 2 * v) - f(t - h / 2 * v)) / h for h in steps]
    best = min(float((d - exact).norm()) for d in differences)
    assert 100 * forward < best


def test_neighbour_differences_tend_to_the_trace_of_the_pullback(plane):
    generator, side = small_mixture(), 21
    low, high = (0.3, 0.4), (0.35, 0.45)
    t = slices.grid(side, low=low, high=high)
    images = slices.render(generator, plane, t, steps=5)
    found = relief.neighbour_trace(images.reshape(side, side, -1), 0.05 / (side - 1))

    def f(s):
        return slices.render(generator, plane, s, steps=5, differentiable=True)

    sides = [torch.func.jvp(f, (t,), (e.expand(len(t), 2),))[1] for e in torch.eye(2, **FLOAT)]
    exact = sum(j.flatten(1).square().sum(1) for j in sides).view(side, side)
    inside = np.s_[1:-1, 1:-1]
    np.testing.assert_allclose(found[inside], exact[inside], rtol=2e-3)
