"""A classifier of faces that has seen noise, for the guidance that h-space is compared with.

Dhariwal and Nichol 2021. It reads x_t and its noise level, and has no part in any score.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from lib.faces import attributes, avatars


class NoisyClassifier(nn.Module):
    """log p(y | x_t) of every head from a noisy face and its time, for classifier guidance."""

    def __init__(self, heads: dict[str, int], *, width: int = 32) -> None:
        super().__init__()
        self.heads, self.config = heads, {"heads": heads, "width": width}
        self.time = nn.Sequential(nn.Linear(1, 4 * width), nn.SiLU())
        self.inside = nn.Sequential(
            nn.Conv2d(3, width, 3, 1, 1), nn.GroupNorm(8, width), nn.SiLU(),
            nn.Conv2d(width, 2 * width, 3, 2, 1), nn.GroupNorm(8, 2 * width), nn.SiLU(),
            nn.Conv2d(2 * width, 4 * width, 3, 2, 1), nn.GroupNorm(8, 4 * width), nn.SiLU(),
        )  # fmt: skip
        self.after = nn.Sequential(
            nn.Conv2d(4 * width, 4 * width, 3, 2, 1), nn.SiLU(), nn.Flatten(),
            nn.Linear(16 * 4 * width, 128), nn.SiLU(), nn.Linear(128, sum(heads.values())),
        )  # fmt: skip

    def forward(self, x: Tensor, level: Tensor) -> dict[str, Tensor]:
        """Logits per head; x (n, 3, 32, 32) at noise level sqrt(1 − α_t), (n,)."""
        h = self.inside(x) + self.time(level[:, None])[:, :, None, None]
        return dict(zip(self.heads, self.after(h).split(list(self.heads.values()), 1), strict=True))


def train_classifier(
    alphas: Tensor, *, updates: int, batch: int = 64, rate: float = 2e-3, seed: int = 5
) -> NoisyClassifier:
    """A noise-aware classifier of rendered faces, for one noise schedule, (T,) products."""
    faces = avatars.load("train", min(60_000, updates * batch), pink=False)
    labels = {k: torch.from_numpy(v).long() for k, v in faces.labels.items() if k != "eyes"}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = NoisyClassifier({k: len(avatars.CLASSES[k]) for k in labels})
    optimiser = torch.optim.AdamW(network.parameters(), rate)
    decay = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, updates)
    rng = torch.Generator().manual_seed(seed)
    for _ in range(updates):
        rows = torch.randint(len(faces.images), (batch,), generator=rng).sort().values
        clean = avatars.to_float(faces.images[rows.numpy()])
        alpha = alphas[torch.randint(len(alphas), (batch,), generator=rng)].float()
        noise = torch.randn(clean.shape, generator=rng)
        signal, level = (a.view(-1, 1, 1, 1) for a in (alpha.sqrt(), (1 - alpha).sqrt()))
        logits = network(signal * clean + level * noise, level.flatten())
        own = {k: v[rows] for k, v in labels.items()}
        loss = sum(
            functional.cross_entropy(logits[k], own[k], ignore_index=avatars.UNDEFINED)
            for k in labels
        )
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        decay.step()
    return network.eval().requires_grad_(False)


@dataclass(frozen=True, eq=False)
class ClassGradient:
    """The function (x, t) -> ∇_x log p(attribute | x_t) for `baselines.guide`.

    alphas: (T,) cumulative products of the schedule that the network was trained for.
    """

    network: NoisyClassifier
    alphas: Tensor
    name: str

    def __call__(self, x: Tensor, t: int) -> Tensor:
        """Gradient of the shape of x, (n, 3, 32, 32), at one training time."""
        attribute = attributes.named(self.name)
        classes = list(avatars.CLASSES[attribute.head])
        chosen = [classes.index(c) for c in attribute.classes]
        with torch.enable_grad():
            point = x.detach().float().requires_grad_(True)
            level = (1 - self.alphas[t]).sqrt().to(point).expand(len(point))
            logits = self.network.to(point.device)(point, level)[attribute.head]
            value = logits.log_softmax(1)[:, chosen].logsumexp(1).sum()
            return torch.autograd.grad(value, point)[0].to(x)
