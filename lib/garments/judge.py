"""Scores for generated garments: class and measured attributes, distance and Fréchet distance.

As among the faces, edits are scored by judge a, distances are those of judge b, and the two share
neither architecture, seed nor training photographs. Images are float32 in [−1, 1], (n, 1, 32, 32);
gradients flow to them. Captions of garments do not exist, hence no CLIP.
"""

import json
from functools import lru_cache
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lib.diffusion.models import real_numbers
from lib.garments import measures, photographs

MODELS = Path(__file__).resolve().parents[2] / "models"
KINDS = list(photographs.CLASSES)
CLASSES = {"kind": KINDS} | {name: list(m.names) for name, m in measures.TABLE.items()}
TOLERANCE = 1e-3  # rounding of a decoder that ends in a clamp


class Judge(nn.Module):
    """A small convolutional network with one head per attribute of `CLASSES`.

    Judge a: plain 3 × 3 convolutions, ReLU, a dense layer over positions. Judge b: 5 × 5 and
    residual convolutions, SiLU, the mean over positions.
    """

    def __init__(self, name: str) -> None:
        super().__init__()
        self.name = name
        dense = [nn.Flatten(), nn.Linear(64 * 16, 96), nn.ReLU(), nn.Dropout(0.3)]
        mean = [nn.AdaptiveAvgPool2d(1), nn.Flatten()]
        if name == "a":
            sizes = ((1, 24, 2), (24, 48, 1), (48, 64, 2), (64, 64, 2))
            stages = [_convolution(i, o, 3, stride, nn.ReLU) for i, o, stride in sizes]
        else:
            sizes = ((1, 24, 5), (24, 48, 3), (48, 96, 3))
            maps = [(_convolution(i, o, k, 2, nn.SiLU), _Residual(o)) for i, o, k in sizes]
            stages = [nn.Sequential(*pair) for pair in maps]
        self.stages = nn.ModuleList(stages)
        self.top = nn.Sequential(*(dense if name == "a" else mean))
        self.heads = nn.Linear(96, sum(map(len, CLASSES.values())))
        # Reference statistics of photographs, fixed after training.
        self.register_buffer("pair_distance", torch.ones(()))
        self.register_buffer("components", torch.eye(48, 96))
        self.register_buffer("total_variance", torch.ones(()))

    def layers(self, images: Tensor) -> list[Tensor]:
        """The feature maps (n, c, h, w) of every stage."""
        maps = [images]
        for stage in self.stages:
            maps.append(stage(maps[-1]))
        return maps[1:]

    def pooled(self, images: Tensor) -> Tensor:
        """The features that the heads read, (n, 96)."""
        return self.top(self.layers(images)[-1])

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """Logits per attribute, {attribute: (n, classes)}."""
        split = self.heads(self.pooled(images)).split([len(c) for c in CLASSES.values()], dim=1)
        return dict(zip(CLASSES, split, strict=True))


class _Residual(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.body = _convolution(width, width, 3, 1, nn.SiLU)

    def forward(self, h: Tensor) -> Tensor:
        return h + self.body(h)


def _convolution(inputs: int, outputs: int, kernel: int, stride: int, act: type) -> nn.Sequential:
    convolution = nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, bias=False)
    return nn.Sequential(convolution, nn.BatchNorm2d(outputs), act())


@lru_cache(maxsize=4)
def load(judge: str, *, device: torch.device | str = "cpu", models: Path = MODELS) -> Judge:
    """Judge "a" or "b" from its folder, float32, frozen, in evaluation mode.

    Raises ValueError for an unknown judge, or when its weights are missing or unreadable.
    """
    from safetensors.torch import load_file

    if judge not in ("a", "b"):
        raise ValueError(f"judge = {judge!r}, expected 'a' or 'b'")
    network, name = Judge(judge), f"garments-judge-{judge}"
    counters = {k: v for k, v in network.state_dict().items() if not v.is_floating_point()}
    try:
        weights = load_file(Path(models) / name / "model.safetensors")
        network.load_state_dict(counters | {k: v.float() for k, v in weights.items()})
    except Exception as error:
        raise ValueError(
            f"{name} cannot be read ({error}); restore the folder models/{name} or train it: "
            f"python -m lib.training.train {name}"
        ) from error
    return network.requires_grad_(False).eval().to(device)


def metrics(judge: str) -> dict:
    """What was measured on the held-out photographs when the judge was trained."""
    path = MODELS / f"garments-judge-{judge}" / "metrics.json"
    return json.loads(path.read_text(encoding="utf-8"))


def _checked(images: Tensor) -> Tensor:
    images = real_numbers(images, "images")
    if images.shape[1:] != (1, 32, 32) or not images.is_floating_point():
        raise ValueError(
            f"images are {images.dtype} of shape {tuple(images.shape)}, expected float32 in "
            "[-1, 1] of shape (n, 1, 32, 32)"
        )
    largest = float(images.detach().abs().amax()) if images.numel() else 0.0
    if not largest <= 1.0 + TOLERANCE:
        raise ValueError(f"images reach {largest}, expected finite values in [-1, 1]; clamp them")
    return images.float()


def logits(images: Tensor, *, judge: str = "a") -> dict[str, Tensor]:
    """Logits of every attribute, {attribute: (n, classes)}; class names in `CLASSES`.

    Raises ValueError for images of another shape or outside [−1, 1], or an unknown judge.
    """
    images = _checked(images)
    return load(judge, device=images.device)(images)


def log_odds(logits: dict[str, Tensor], attribute: str, *names: str) -> Tensor:
    """log Σ_{j in names} exp z_j − log Σ_{j not in names} exp z_j for one attribute, (n,).

    Raises ValueError for an unknown attribute or class, or when no class is left on either side.
    """
    chosen = torch.tensor([name in names for name in CLASSES.get(attribute, [])])
    if not len(set(names)) == int(chosen.sum()) < len(chosen) or not names:
        raise ValueError(
            f"{attribute!r}, {names}: expected an attribute and some but not all of its classes "
            f"in {CLASSES}"
        )
    z = logits[attribute]
    return z[:, chosen].logsumexp(1) - z[:, ~chosen].logsumexp(1)


def distance(a: Tensor, b: Tensor) -> Tensor:
    """Σ over layers of the mean of |f_a − f_b|² over positions, unit features f of judge b, (n,).

    Over its mean for pairs of photographs: 0 for equal images, about 1 for unrelated ones. Raises
    ValueError for different shapes, or images that `logits` refuses.
    """
    a, b = _checked(a), _checked(b)
    if a.shape != b.shape:
        raise ValueError(f"a and b have shapes {tuple(a.shape)} and {tuple(b.shape)}, not one")
    network = load("b", device=a.device)
    pairs = zip(network.layers(a), network.layers(b.to(a.device)), strict=True)
    apart = [F.normalize(x, dim=1) - F.normalize(y, dim=1) for x, y in pairs]
    return sum(d.square().sum(1).mean((1, 2)) for d in apart) / network.pair_distance


@torch.no_grad()
def components(images: Tensor) -> Tensor:
    """48 principal components of judge b's pooled features over √(their variance), float64."""
    images = _checked(images)
    network = load("b", device=images.device)
    pooled = torch.cat([network.pooled(part) for part in images.split(256)]).double()
    return (pooled @ network.components.double().T / network.total_variance.double().sqrt()).cpu()


def frechet_of_components(x: Tensor, y: Tensor) -> float:
    """(|μ_x − μ_y|² + tr(Σ_x + Σ_y − 2 (Σ_x Σ_y)^{1/2})) / tr Σ of two equally large sets."""
    if len(x) < 2 or len(x) != len(y):
        raise ValueError(f"{len(x)} and {len(y)} images, expected equal counts of at least 2")
    gap = (x.mean(0) - y.mean(0)).square().sum()
    x, y = ((z - z.mean(0)) / (len(z) - 1) ** 0.5 for z in (x, y))
    # tr (Σ_x Σ_y)^{1/2} is the nuclear norm of X Yᵀ where Σ_x = XᵀX and Σ_y = YᵀY.
    roots = [torch.linalg.qr(z, mode="r").R for z in (x, y)]  # no more rows than columns
    overlap = torch.linalg.matrix_norm(roots[0] @ roots[1].T, "nuc")
    return float(gap + x.square().sum() + y.square().sum() - 2.0 * overlap)


def frechet(a: Tensor, b: Tensor) -> float:
    """`frechet_of_components` of images: the distance of two sets in judge b's eyes. Not an FID."""
    return frechet_of_components(components(a), components(b))
