"""Laws of the closed-form mixture: score, flow, stretch, and the sampler that must follow them."""

import functools

import numpy as np
import pytest
import torch
from scipy.integrate import quad
from scipy.optimize import brentq
from scipy.stats import norm
from torch.distributions import Categorical, Independent, MixtureSameFamily, Normal

from lib import slices
from lib.diffusion import sampling
from lib.diffusion.mixture import (
    ddim_stretch,
    even_alphas,
    flow,
    flow_stretch,
    mixture,
    second_mode,
    total_stretch,
)
from lib.slices import relief

SIGMAS = [0.8, 0.5, 0.4, 0.3]
MEANS = torch.as_tensor(np.random.default_rng(3).standard_normal((3, 2, 2, 2)))
WEIGHTS = (0.2, 0.3, 0.5)


def bimodal(sigma, alphas=None, weights=None):
    return mixture(
        torch.tensor([-1.0, 1.0]).view(2, 1, 1, 1), sigma, weights=weights, alphas=alphas
    )


def along_line(x):
    return torch.as_tensor(x, dtype=torch.float64).view(-1, 1, 1, 1)


def density(alpha, sigma):
    """The noisy data's distribution, from a library of its own."""
    width = (alpha * sigma**2 + 1 - alpha) ** 0.5
    parts = Independent(Normal(alpha**0.5 * MEANS.flatten(1), width), 1)
    return MixtureSameFamily(Categorical(torch.tensor(WEIGHTS, dtype=torch.float64)), parts)


def quantile_flow(x, means, sigma, *, weights=None, alpha=0.0):
    """The flow of a mixture in one dimension without any ODE: values and slopes, each (n,).

    A monotone map keeps quantiles: y = F⁻¹(F_α(x)) with the distribution functions of the data and
    of the noisy data at `alpha` (0: pure noise), and dy/dx = p_α(x) / p(y).
    """
    means = np.asarray(means, dtype=float)
    shares = np.full(len(means), 1 / len(means)) if weights is None else np.asarray(weights)
    noisy = {"loc": alpha**0.5 * means, "scale": (alpha * sigma**2 + 1 - alpha) ** 0.5}
    low, high = means.min() - 40 * sigma, means.max() + 40 * sigma

    def inverse(v):
        # The smaller tail, because 1 − F loses all digits far to the right.
        tail = norm.cdf if norm.cdf(v, **noisy) @ shares < 0.5 else norm.sf
        target = np.log(tail(v, **noisy) @ shares)
        gap = lambda y: np.log(tail(y, means, sigma) @ shares + 1e-320) - target  # noqa: E731
        return brentq(gap, low, high, xtol=1e-14, rtol=1e-14)

    x = np.asarray(x, dtype=float)
    y = np.array([inverse(v) for v in x])
    density = norm.pdf(x[:, None], **noisy) @ shares
    return y, density / (norm.pdf(y[:, None], means, sigma) @ shares)


def stretch_rate(time, sigma, b):
    """Rate λ(t) at which the reverse flow stretches x = 0 between modes at −1 and 1.

    λ = b/2 + (b/2) (e^{−bt} − s²) / s⁴, s² = e^{−bt} σ² + 1 − e^{−bt} (Lobashev et al. 2025,
    Proposition 4.1, Eq. 26-28), for dX = −(b/2) X dt + √b dW.
    """
    decay = np.exp(-b * time)
    variance = decay * sigma**2 + 1 - decay
    return b / 2 * (1 + (decay - variance) / variance**2)


@pytest.mark.parametrize("t", [0, 300, 999])
def test_predicted_noise_is_the_score_of_the_noisy_data(t):
    generator = mixture(MEANS, 0.4, weights=[2, 3, 5])
    x = generator.noise(6, 0).requires_grad_()
    alpha = generator.alpha(t)
    log_density = density(alpha, 0.4).log_prob(x.flatten(1)).sum()
    (score,) = torch.autograd.grad(log_density, x)
    expected = -((1 - alpha) ** 0.5) * score
    torch.testing.assert_close(generator.epsilon(x.detach(), t), expected, rtol=1e-10, atol=1e-12)


POINTS = np.array([-3.0, -0.7, 0.0, 0.1, 1.5])


@functools.cache
def flow_and_slope(sigma, weights):
    """The flow at `POINTS` by Runge-Kutta with its forward derivative, and its first alpha."""
    generator = bimodal(sigma, even_alphas(10, sigma, last=1e-9), weights)
    x = along_line(POINTS)
    pair = torch.func.jvp(lambda p: flow(generator, p, steps=100), (x,), (torch.ones_like(x),))
    return *(part.flatten().numpy() for part in pair), generator.alpha(9)


@pytest.mark.parametrize("sigma, weights", [*((s, None) for s in SIGMAS), (0.8, (0.1, 0.9))])
def test_flow_keeps_quantiles(sigma, weights):
    y, slope, alpha = flow_and_slope(sigma, weights)
    exact, exact_slope = quantile_flow(POINTS, [-1, 1], sigma, weights=weights, alpha=alpha)
    np.testing.assert_allclose(y, exact, atol=1e-4)
    np.testing.assert_allclose(slope, exact_slope, rtol=1e-3)


@pytest.mark.parametrize("sigma", SIGMAS)
def test_stretch_between_the_modes_is_that_of_the_proposition(sigma):
    slope = flow_and_slope(sigma, None)[1][2]
    assert slope == pytest.approx(sigma * np.exp(1 / (2 * sigma**2)), rel=1e-3)
    assert total_stretch(sigma) == pytest.approx(sigma * np.exp(1 / (2 * sigma**2)), rel=1e-12)


def test_slope_of_the_quantile_map_is_its_derivative():
    x = np.linspace(-4, 4, 17)
    h = 1e-5
    y, slope = quantile_flow(x, [-1, 0.5, 2], 0.3, weights=[0.2, 0.3, 0.5])
    up, down = (
        quantile_flow(x + s, [-1, 0.5, 2], 0.3, weights=[0.2, 0.3, 0.5])[0] for s in (h, -h)
    )
    np.testing.assert_allclose((up - down) / (2 * h), slope, rtol=1e-5)
    assert (np.diff(y) > 0).all()


STEPS = {0.8: (25, 50, 75, 100), 0.5: (25, 50, 75, 100), 0.4: (50, 75, 100, 150)}


@pytest.mark.parametrize("sigma", SIGMAS)
def test_stretch_of_the_sampler_extrapolates_to_that_of_the_proposition(sigma):
    """Its logarithm is a power series in 1 / steps, whose value at 0 is that of the flow."""
    zero = along_line([0.0])

    def log_stretch(steps):
        generator = bimodal(sigma, even_alphas(steps, sigma))
        run = {"steps": steps, "differentiable": True}
        pair = torch.func.jvp(
            lambda x: sampling.ddim(generator, x, **run), (zero,), (torch.ones_like(zero),)
        )
        return float(pair[1].log())

    steps = np.array(STEPS.get(sigma, (25, 50, 75, 100, 150, 200)))
    series = np.polyfit(1 / steps, [log_stretch(int(n)) for n in steps], len(steps) - 1)
    assert np.exp(series[-1]) == pytest.approx(sigma * np.exp(1 / (2 * sigma**2)), rel=1e-3)
    assert abs(series[-2]) > 1  # the error is of first order


@pytest.mark.parametrize("b", [1.0, 0.3])
@pytest.mark.parametrize("sigma", [*SIGMAS, 0.2])
def test_rates_add_up_to_the_total_stretch(sigma, b):
    total, _ = quad(lambda t: stretch_rate(t, sigma, b), 0, 80 / b, limit=400, epsabs=1e-10)
    assert total == pytest.approx(np.log(total_stretch(sigma)), abs=1e-6)


@pytest.mark.parametrize("t", [0.0, 0.1, 1.0, 4.0])
def test_rate_is_the_slope_of_the_reverse_flows_velocity(t):
    """v = (b/2) (x + ∇ log p) with ∇ log p = −ε / √(1 − α), differentiated by the machine."""
    sigma, b = 0.4, 0.7
    alpha = float(np.exp(-b * max(t, 1e-9)))
    denoiser = bimodal(sigma).unet

    def velocity(x):
        return b / 2 * (x - denoiser.noise(x, alpha) / (1 - alpha) ** 0.5)

    zero = along_line([0.0])
    _, slope = torch.func.jvp(velocity, (zero,), (torch.ones_like(zero),))
    assert stretch_rate(t, sigma, b) == pytest.approx(float(slope), rel=1e-6)


def test_across_the_line_of_the_means_the_flow_only_shrinks():
    generator = mixture(torch.tensor([[-1.0, 0.0], [1.0, 0.0]]).view(2, 1, 1, 2), 0.3)
    x = generator.noise(5, 0)
    alpha = generator.alpha(999)
    shrink = 0.3 / (alpha * 0.09 + 1 - alpha) ** 0.5
    y = flow(generator, x)
    torch.testing.assert_close(y[..., 1], shrink * x[..., 1], rtol=1e-5, atol=1e-6)
    along, _ = quantile_flow(x[..., 0].flatten(), [-1, 1], 0.3, alpha=alpha)
    np.testing.assert_allclose(y[..., 0].flatten(), along, atol=1e-4)


def test_the_sampler_converges_to_the_flow():
    sigma = 0.5
    errors = []
    for steps in (50, 100, 200):
        generator = mixture(MEANS, sigma, weights=WEIGHTS, alphas=even_alphas(steps, sigma))
        x = generator.noise(8, 1)
        gap = sampling.ddim(generator, x, steps=steps) - flow(generator, x)
        errors.append(float(gap.norm() / x.norm()))
    assert errors[2] < 0.01
    assert errors[0] / errors[1] == pytest.approx(2, rel=0.15)
    assert errors[1] / errors[2] == pytest.approx(2, rel=0.15)


def test_samples_have_the_weights_of_the_modes():
    generator = mixture(10 * MEANS, 0.3, weights=WEIGHTS)
    y = flow(generator, generator.noise(2000, 0), steps=60).flatten(1)
    nearest = torch.cdist(y, 10 * MEANS.flatten(1)).min(1)
    shares = torch.bincount(nearest.indices, minlength=3) / len(y)
    np.testing.assert_allclose(shares, WEIGHTS, atol=4 * (0.25 / 2000) ** 0.5)
    spread = float(nearest.values.square().mean() / MEANS[0].numel()) ** 0.5
    assert spread == pytest.approx(0.3, rel=0.05)


def test_ridges_of_the_exact_stretch_separate_the_modes_of_a_slice():
    means = 3 * torch.as_tensor(np.random.default_rng(5).standard_normal((3, 1, 3, 3)))
    generator, side = mixture(means, 0.5), 32
    plane = slices.Slice(means)
    t = slices.grid(side)

    def f(s):
        return flow(generator, plane.latents(s), steps=40)

    pairs = [torch.func.jvp(f, (t,), (e.expand(len(t), 2),)) for e in torch.eye(2).double()]
    jacobian = torch.stack([tangent.flatten(1) for _, tangent in pairs], -1)
    stretches = relief.stretch(jacobian.mT @ jacobian).reshape(side, side)
    labels = relief.phases(stretches)
    modes = torch.cdist(pairs[0][0].flatten(1), means.flatten(1)).argmin(1).view(side, side).numpy()
    assert labels.max() == len(np.unique(modes)) == 3
    for k in (1, 2, 3):
        assert len(np.unique(modes[labels == k])) == 1


def test_weights_that_differ_have_different_hashes():
    base = {"means": MEANS, "sigma": 0.4}
    variants = [{}, {"sigma": 0.41}, {"means": MEANS + 1e-9}, {"weights": WEIGHTS}]
    variants += [{"alphas": even_alphas(100, 0.4)}]
    hashes = [mixture(**{**base, **v}).weight_hash for v in variants]
    assert len(set(hashes)) == len(variants)


def test_weights_are_shares_in_double_precision():
    parts = [mixture(MEANS, 0.4, weights=w).unet.log_weights for w in (WEIGHTS, [2, 3, 5])]
    torch.testing.assert_close(*parts, rtol=1e-15, atol=0)
    assert float(parts[0].exp().sum()) == pytest.approx(1, abs=1e-15)


def test_stretches_of_the_flow_and_of_the_sampler_near_the_closed_form():
    assert flow_stretch(0.4) == pytest.approx(total_stretch(0.4), rel=1e-3)
    by_steps = [ddim_stretch(0.4, steps=k) for k in (10, 50, 400)]
    assert by_steps == sorted(by_steps) and by_steps[-1] < total_stretch(0.4)
    assert by_steps[-1] == pytest.approx(total_stretch(0.4), rel=0.1)


def test_latents_flow_to_the_mode_on_their_side():
    means = torch.tensor([-1.0, 1.0]).view(2, 1, 1, 1).double()
    latents = torch.tensor([-1.2, -0.1, 0.1, 1.2]).view(4, 1, 1, 1).double()
    assert second_mode(means, 0.3, latents).tolist() == [False, False, True, True]


def test_even_alphas_fall_from_almost_one_to_the_last():
    alphas = even_alphas(500, 0.4, last=1e-4)
    assert alphas.shape == (500,) and bool((alphas.diff() < 0).all())
    assert float(alphas[-1]) == pytest.approx(1e-4) and float(alphas[0]) > 0.999


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda: mixture(MEANS[0], 0.4), r"\(k, c, h, w\)"),
        (lambda: mixture(MEANS * float("nan"), 0.4), "finite"),
        (lambda: mixture(MEANS, 0.0), "sigma = 0.0"),
        (lambda: mixture(MEANS, float("nan")), "sigma = nan"),
        (lambda: mixture(MEANS, 0.4, weights=[1, 2]), "3 positive"),
        (lambda: mixture(MEANS, 0.4, weights=[1, 0, 2]), "3 positive"),
        (lambda: even_alphas(0, 0.4), "steps = 0"),
        (lambda: total_stretch(-1.0), "sigma = -1.0"),
    ],
)
def test_what_is_no_mixture_is_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_flow_of_another_model_is_refused(gaussian):
    with pytest.raises(ValueError, match="no mixture"):
        flow(gaussian, gaussian.noise(1, 0))
