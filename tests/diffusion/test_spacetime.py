"""Spacetime of a mixture whose posterior is known, and the leading directions of a sampler."""

import torch

from lib.diffusion import models, sampling, spacetime, tangents

F64 = torch.float64


def test_the_gradient_of_the_potential_is_the_posterior_moment():
    """Against a sum over a fine grid of x_0."""
    means, weights = torch.tensor([[-1.0], [2.0]], dtype=F64), torch.tensor([0.3, 0.7], dtype=F64)
    psi = spacetime.mixture_potential(means, 0.5, weights)
    eta = spacetime.natural(torch.tensor([[0.4, 0.2], [-1.0, -1.0]], dtype=F64))
    mu = torch.func.grad(lambda e: psi(e).sum())(eta)
    x = torch.linspace(-8, 10, 40001, dtype=F64)
    prior = (weights * torch.exp(-((x[:, None] - means[:, 0]) ** 2) / (2 * 0.25))).sum(1)
    tilt = prior * torch.exp(eta[:, :1] * x + eta[:, 1:] * x**2)
    moments = [(tilt * x**k).sum(1) / tilt.sum(1) for k in (1, 2)]
    torch.testing.assert_close(mu, torch.stack(moments, 1), rtol=1e-9, atol=1e-9)


def test_energy_bounds_the_length_from_above_and_tends_to_it():
    a, b = torch.tensor([[-1.0, 0.5], [1.5, 1.0]], dtype=F64)
    psi = spacetime.mixture_potential(torch.zeros(1, 1, dtype=F64), 1e3, torch.ones(1).double())
    eta = spacetime.natural(spacetime.semicircle(a, b, 400))
    mu = torch.func.grad(lambda e: psi(e).sum())(eta)
    found = float((2 * spacetime.energy(eta, mu)).sqrt())
    assert 0 < found / spacetime.gaussian_length(a, b) - 1 < 1e-3


def test_expectations_of_a_network_are_those_of_autograd():
    model = models.load("avatars-ddpm", differentiable=True)
    plain = models.load("avatars-ddpm")
    t = torch.tensor([300])
    alpha = float(plain.alphas[300])
    point = torch.cat([plain.noise(1, 0).flatten(1) / alpha**0.5, torch.zeros(1, 1)], 1).double()
    probe = torch.randn(2, 3072, generator=torch.Generator().manual_seed(0)).sign().double()
    mu = spacetime.expectations(plain, point, t, probe)
    x = plain.noise(1, 0)
    eps, first = torch.func.jvp(
        lambda z: model.epsilon(z, 300), (x,), (probe[:1].float().view_as(x),)
    )
    second = torch.func.jvp(lambda z: model.epsilon(z, 300), (x,), (probe[1:].float().view_as(x),))[
        1
    ]
    trace = float((torch.cat([first, second]).flatten(1) * probe).sum() / 2)
    clean = sampling.predicted(x, eps, alpha).flatten().double()
    spread = (1 - alpha) / alpha * (3072 - (1 - alpha) ** 0.5 * trace)
    torch.testing.assert_close(mu[0, :-1], clean, rtol=1e-4, atol=1e-4)
    assert abs(float(mu[0, -1] - clean.square().sum()) - spread) < 1e-2 * abs(spread)


def test_leading_directions_are_those_of_the_whole_jacobian():
    model = models.load("avatars-ddpm", dtype=F64)
    latent = model.noise(1, 0)
    U, S, V = tangents.top_directions(model, latent, 2, steps=1, rounds=4)
    moved = tangents.pushforward(model, latent, [V[:, :1].T.reshape(latent.shape)], steps=1)[1][0]
    torch.testing.assert_close(moved.flatten(), S[0] * U[:, 0], rtol=1e-6, atol=1e-6)
    other = tangents.top_directions(model, latent, 2, steps=1, rounds=4, seed=1)[1]
    torch.testing.assert_close(other[:1], S[:1], rtol=1e-3, atol=0)
