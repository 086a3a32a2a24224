import pytest
import torch

from lib.diffusion import patterns, sampling


def density(model, x, alpha, prompt):
    """log p of noisy images (n, size²), by the full covariance matrix and a plain sum."""
    size = model.latent_shape[-1]
    grid = torch.arange(size).double()
    kernel = (-((grid[:, None] - grid) ** 2) / 50).exp()
    field = patterns.SMOOTH**2 * torch.kron(kernel, kernel)
    clean = field + patterns.WHITE**2 * torch.eye(size**2).double()
    covariance = alpha * clean + (1 - alpha) * torch.eye(size**2).double()
    terms = []
    for k in patterns.PROMPTS[prompt]:
        a, b = patterns.SIGNS[k]
        mean = patterns.COARSE * a * model.coarse + patterns.FINE * b * model.fine
        normal = torch.distributions.MultivariateNormal(alpha**0.5 * mean.flatten(), covariance)
        terms.append(normal.log_prob(x))
    return torch.stack(terms).logsumexp(0)


@pytest.mark.parametrize("prompt", ["", "left", "down"])
@pytest.mark.parametrize("t", [50, 400, 900])
def test_the_noise_is_the_slope_of_the_density(prompt, t):
    model = patterns.Patterns(6)
    x = model.noise(3, 1).flatten(1).requires_grad_()
    alpha = model.alpha(t)
    slope = torch.autograd.grad(density(model, x, alpha, prompt).sum(), x)[0]
    found = model.epsilon(x.detach().view(3, 1, 6, 6), t, prompt=prompt).flatten(1)
    assert torch.allclose(found, -((1 - alpha) ** 0.5) * slope, atol=1e-8)


def test_samples_obey_their_prompts_and_show_both_signs_without_one():
    model = patterns.Patterns(16)
    noise = model.noise(24, 0)
    for prompt, pattern, sign in (
        ("left", model.coarse, 1),
        ("right", model.coarse, -1),
        ("up", model.fine, 1),
        ("down", model.fine, -1),
    ):
        images = sampling.ddim(model, noise, steps=30, prompt=prompt)
        assert bool((model.signs(images, pattern) == sign).all())
    free = sampling.ddim(model, noise, steps=30)
    assert 4 <= int((model.signs(free, model.coarse) > 0).sum()) <= 20


def test_an_unknown_prompt_or_guidance_is_refused():
    model = patterns.Patterns(8)
    x = model.noise(2, 0)
    with pytest.raises(ValueError, match="'middle'"):
        model.epsilon(x, 10, prompt="middle")
    with pytest.raises(ValueError, match="for 2 latents"):
        model.epsilon(x, 10, prompt=["left"])
    with pytest.raises(ValueError, match="guidance = 2"):
        model.epsilon(x, 10, guidance=2.0)
