"""Gaussian mixtures as diffusion models: score, flow and stretch in closed form.

The smooth control of every study: phases and borders are known, and no border is fractal.
Data are Σ_k w_k N(μ_k, σ² I); at a time of cumulative product α the noisy data are
Σ_k w_k N(√α μ_k, s² I) with s² = α σ² + 1 − α.
"""

from collections.abc import Callable, Sequence
from math import asinh, cosh, exp, sinh, sqrt

import numpy as np
import torch
from torch import Tensor, nn

from lib.diffusion import sampling
from lib.diffusion.models import Generator

SMALLEST_ALPHA = 1e-5


class MixtureDenoiser(nn.Module):
    """The exact noise prediction of a mixture, in place of a U-Net.

    means: (k, c, h, w); sigma: scalar; weights: (k,); alphas: (T,).
    """

    def __init__(self, means: Tensor, sigma: Tensor, weights: Tensor, alphas: Tensor) -> None:
        super().__init__()
        parts = {"means": means, "sigma": sigma, "log_weights": weights.log(), "alphas": alphas}
        for name, value in parts.items():  # parameters, so that the weight hash knows them
            setattr(self, name, nn.Parameter(value, requires_grad=False))

    def forward(self, x: Tensor, t: Tensor, return_dict: bool = False) -> tuple[Tensor]:
        """Noise (n, c, h, w) at training times t (n,); same contract as the library's U-Nets."""
        return (self.noise(x, self.alphas[t].view(-1, 1)),)

    def noise(self, x: Tensor, alpha: Tensor | float) -> Tensor:
        """ε = −√(1 − α) ∇ log p = √(1 − α) (x − √α Σ_k p(k | x) μ_k) / s²; alpha: number or (n, 1).

        p(k | x) ∝ w_k exp(√α (⟨x, μ_k⟩ − √α |μ_k|² / 2) / s²).
        """
        variance = alpha * self.sigma.item() ** 2 + 1 - alpha
        flat, means, root = x.flatten(1), self.means.flatten(1), alpha**0.5
        inner = flat @ means.T - root * means.square().sum(1) / 2
        share = (self.log_weights + root / variance * inner).softmax(1)
        noise = (1 - alpha) ** 0.5 / variance * (flat - root * (share @ means))
        return noise.reshape(x.shape)


def mixture(
    means: Tensor,
    sigma: float,
    *,
    weights: Sequence[float] | None = None,
    alphas: Tensor | None = None,
    dtype: torch.dtype = torch.float64,
) -> Generator:
    """A `Generator` of Σ_k w_k N(μ_k, σ² I), which every sampler of the kit can run.

    means: (k, c, h, w). weights: (k,), positive, equal by default, normalised here. alphas: (T,)
    falling cumulative products; by default those of 1000 steps of DDPM (Ho et al. 2020).
    dtype: of the network and so of latents; alphas stay in float64.
    Raises ValueError for means of another shape or not finite, sigma not above zero, and weights
    that do not fit.
    """
    means = torch.as_tensor(means, dtype=torch.float64)
    if means.ndim != 4 or len(means) == 0 or not bool(means.isfinite().all()):
        raise ValueError(f"means have shape {tuple(means.shape)}; expected finite (k, c, h, w)")
    _check_sigma(sigma)
    shares = torch.as_tensor(weights or [1.0] * len(means), dtype=torch.float64)
    if shares.shape != (len(means),) or not bool((shares > 0).all() and shares.isfinite().all()):
        raise ValueError(f"weights = {weights}; expected {len(means)} positive numbers")
    if alphas is None:
        alphas = torch.cumprod(1 - torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64), 0)
    width = torch.tensor(sigma, dtype=torch.float64)
    denoiser = MixtureDenoiser(means, width, shares / shares.sum(), alphas.double())
    denoiser.to(means.device, dtype)
    return Generator(denoiser, alphas, means.shape[1:], source=f"mixture of {len(means)}")


def even_alphas(steps: int, sigma: float, *, last: float = SMALLEST_ALPHA) -> Tensor:
    """Cumulative products (steps,) on which DDIM errs by O(1 / steps) with a small constant.

    √(1/α_j − 1) = σ sinh(j u), j = 1 … steps, u such that the last α is `last`: even where the
    noise is below σ, geometric above. Raises ValueError for steps < 1 or sigma not above zero.
    """
    _check_sigma(sigma)
    if steps < 1:
        raise ValueError(f"steps = {steps}; expected at least 1")
    u = torch.linspace(0, asinh(sqrt(1 / last - 1) / sigma), steps + 1, dtype=torch.float64)
    return 1 / (1 + (sigma * u[1:].sinh()).square())


def flow(generator: Generator, latents: Tensor, *, steps: int = 200) -> Tensor:
    """The probability-flow map of a mixture from its noisiest time to data, (n, c, h, w).

    Solves dy/dρ = ε, y = x/√α, ρ = √(1/α − 1), the ODE that DDIM discretises (Song, Meng and
    Ermon 2021, Eq. 14), by classical Runge-Kutta on ρ = σ sinh u; error O(steps⁻⁴). Works under
    torch.func, so that its Jacobian is exact. Raises ValueError for a generator that is no mixture.
    """
    denoiser = generator.unet
    if not isinstance(denoiser, MixtureDenoiser):
        raise ValueError(f"{generator.source or 'this model'} is no mixture; use sampling.ddim")
    if steps < 1 or torch.as_tensor(latents).shape[1:] != generator.latent_shape:
        raise ValueError(
            f"latents {tuple(torch.as_tensor(latents).shape)}, steps = {steps}; expected "
            f"(n, {', '.join(map(str, generator.latent_shape))}) and at least one step"
        )
    sigma, alpha = float(denoiser.sigma), generator.alpha(len(generator.alphas) - 1)
    x = torch.as_tensor(latents).to(generator.device, generator.dtype)

    def slope(y: Tensor, u: float) -> Tensor:
        level = 1 / (1 + (sigma * sinh(u)) ** 2)
        return sigma * cosh(u) * denoiser.noise(y * sqrt(level), level)

    u = np.linspace(asinh(sqrt(1 / alpha - 1) / sigma), 0, steps + 1)
    y, h = x / sqrt(alpha), float(u[1] - u[0])
    for start in u[:-1].tolist():
        first = slope(y, start)
        second = slope(y + h / 2 * first, start + h / 2)
        third = slope(y + h / 2 * second, start + h / 2)
        y = y + h / 6 * (first + 2 * second + 2 * third + slope(y + h * third, start + h))
    return y


def total_stretch(sigma: float) -> float:
    """exp ∫₀^∞ λ dt = φ(0) / p₀(0) = σ exp(1 / (2 σ²)): the slope of the whole flow at x = 0.

    Finite for every σ > 0, because a monotone flow keeps quantiles.
    """
    _check_sigma(sigma)
    if sigma < 0.027:
        raise ValueError(f"sigma = {sigma}: below 0.027 the stretch exceeds the range of float64")
    return sigma * exp(1 / (2 * sigma**2))


def flow_stretch(sigma: float, *, steps: int = 80) -> float:
    """`total_stretch` of two modes at ±1, by forward mode through `flow` on even steps."""
    return _stretch(sigma, even_alphas(100, sigma), lambda two, x: flow(two, x, steps=steps))


def ddim_stretch(sigma: float, *, steps: int) -> float:
    """The same by DDIM on the schedule of DDPM, the sampler of the images."""

    def draw(two: Generator, x: Tensor) -> Tensor:
        return sampling.ddim(two, x, steps=steps, differentiable=True)

    return _stretch(sigma, None, draw)


def _stretch(sigma: float, alphas: Tensor | None, draw: Callable) -> float:
    """Slope at 0 of a map between noise and the two modes."""
    two = mixture(torch.tensor([-1.0, 1.0]).view(2, 1, 1, 1), sigma, alphas=alphas)
    zero = torch.zeros(1, 1, 1, 1, dtype=torch.float64)
    return float(torch.func.jvp(lambda x: draw(two, x), (zero,), (torch.ones_like(zero),))[1])


def second_mode(means: Tensor, sigma: float, latents: Tensor, *, steps: int = 20) -> Tensor:
    """Whether latents flow to the second of two modes (2, c, h, w), (n,), in their own format."""
    drawn = flow(mixture(means, sigma, dtype=latents.dtype), latents, steps=steps)
    apart = (means[1] - means[0]).to(drawn)
    return (drawn * apart).sum((1, 2, 3)) > float(means.square().sum((1, 2, 3)).diff()) / 2


def _check_sigma(sigma: float) -> None:
    if not 0 < sigma < float("inf"):
        raise ValueError(f"sigma = {sigma}; expected a finite width above zero")
