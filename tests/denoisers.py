"""Denoisers with closed forms, for tests of every room that samples."""

import torch

from lib.diffusion import models


class Gaussian(models.Generator):
    """Exact denoiser of data N(mean, spread^2): epsilon and its trajectories are closed forms."""

    def __init__(self, latent_shape=(1, 4, 4), mean=0.3, spread=0.5, residual=None, **options):
        network = torch.nn.Linear(1, 1, dtype=torch.float64)
        betas = torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64)
        super().__init__(network, torch.cumprod(1 - betas, 0), latent_shape, **options)
        self.mean, self.spread, self.residual = mean, spread, residual

    def variance(self, t):
        a = torch.as_tensor(self.alpha(t), dtype=torch.float64)
        return a * self.spread**2 + 1 - a

    def centre(self, t):
        return self.mean * self.alpha(t) ** 0.5

    def epsilon(self, x, t, *, prompt=None, guidance=1.0, negative=""):
        self._refuse_text(prompt, guidance)
        return (1 - self.alpha(t)) ** 0.5 * (x - self.centre(t)) / self.variance(t)


class Denoiser(torch.nn.Module):
    """A tiny U-Net's answer scaled down, on top of a Gaussian's: bounded images, real layers."""

    def __init__(self, unet, alphas):
        super().__init__()
        self.unet, self.config = unet, unet.config
        self.register_buffer("alphas", alphas.float())

    def forward(self, x, t, return_dict=False, **states):
        a = self.alphas[t].view(-1, 1, 1, 1)
        exact = (1 - a).sqrt() * x / (1 - 0.75 * a)
        return (exact + 0.1 * (1 - a).sqrt() * self.unet(x, t, return_dict=False, **states)[0],)
