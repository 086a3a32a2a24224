"""A diffusion model in closed form with two attributes and prompts: the exact control of edits.

Images are a smooth random field plus a coarse pattern (left against right half) and a fine one (a
checkerboard), each of random sign: a mixture of four Gaussians, whose denoiser is known. Nothing is
trained, so what an edit can and cannot do here is a law and not a fault of a network.
"""

import itertools
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from lib.diffusion.models import Generator

COARSE, FINE, SMOOTH, WHITE = 0.6, 0.12, 0.3, 0.05
SIGNS = tuple(itertools.product((-1, 1), (-1, 1)))  # of the coarse and the fine pattern
PROMPTS = {  # which of the four images a prompt allows
    "": (0, 1, 2, 3),
    "left": (2, 3),
    "right": (0, 1),
    "up": (1, 3),
    "down": (0, 2),
}


class Patterns(Generator):
    """x0 = a COARSE coarse + b FINE fine + field, signs a, b = ±1 at random, (1, size, size).

    The field has variance SMOOTH² with correlations exp(-r² / (2 length²)), plus WHITE² per pixel.
    Prompts: "left", "right" fix a = +1, -1; "up", "down" fix b; "" leaves both open. float64, with
    the linear betas of DDPM. Attributes `coarse`, `fine`: the patterns (size, size), entries ±1.
    """

    def __init__(self, size: int = 32, *, length: float = 5.0) -> None:
        betas = torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64)
        network = nn.Linear(1, 1, dtype=torch.float64)  # gives the class its device and type
        super().__init__(network, torch.cumprod(1 - betas, 0), (1, size, size), source="patterns")
        ones, grid = torch.ones(size).double(), torch.arange(size).double()
        half, alternating = 1 - 2 * (grid >= size / 2).double(), 1 - 2 * (grid % 2)
        self.coarse, self.fine = torch.outer(ones, half), torch.outer(alternating, alternating)
        kernel = (-((grid[:, None] - grid) ** 2) / (2 * length**2)).exp()
        level, self._axes = torch.linalg.eigh(kernel)
        self._variance = SMOOTH**2 * torch.outer(level, level) + WHITE**2
        means = [COARSE * a * self.coarse + FINE * b * self.fine for a, b in SIGNS]
        self._means = self._turn(torch.stack(means))

    def signs(self, images: Tensor, pattern: Tensor) -> Tensor:
        """Sign of a pattern in images (n, 1, size, size), (n,)."""
        return (images * pattern).mean((1, 2, 3)).sign()

    def epsilon(
        self,
        x: Tensor,
        t: int,
        *,
        prompt: str | Sequence[str] | None = None,
        guidance: float = 1.0,
        negative: str = "",
    ) -> Tensor:
        """ε = √(1 - α) Σ_k p(k | x) C_t⁻¹ (x - √α μ_k), (n, 1, size, size).

        Raises ValueError for an unknown prompt, another number of prompts, or guidance.
        """
        allowed, alpha = self._allowed(prompt, len(x)), self.alpha(t)
        if guidance != 1.0:
            raise ValueError(f"guidance = {guidance}: the exact model follows its prompt; leave 1")
        total = alpha * self._variance + 1 - alpha
        off = self._turn(x) - alpha**0.5 * self._means
        share = (allowed - (off.square() / total).sum((-2, -1)) / 2).softmax(-1)
        pull = (share[..., None, None] * off / total).sum(1, keepdim=True)
        return (1 - alpha) ** 0.5 * self._axes @ pull @ self._axes.mT

    def _turn(self, x: Tensor) -> Tensor:
        """Coordinates in which the field's covariance is diagonal."""
        return self._axes.mT @ x @ self._axes

    def _allowed(self, prompt: str | Sequence[str] | None, n: int) -> Tensor:
        """0 for the images that each prompt allows, -inf for the others, (n, 4)."""
        prompts = [prompt or ""] * n if prompt is None or isinstance(prompt, str) else list(prompt)
        unknown = [text for text in prompts if text not in PROMPTS]
        if unknown or len(prompts) != n:
            raise ValueError(
                f"prompts {prompts[:3]} for {n} latents: give one, or {n}, of {PROMPTS}"
            )
        rows = torch.full((n, len(SIGNS)), -torch.inf, dtype=torch.float64)
        for row, text in zip(rows, prompts, strict=True):
            row[list(PROMPTS[text])] = 0
        return rows
