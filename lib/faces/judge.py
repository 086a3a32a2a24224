"""Scores for generated faces: attributes, distances and agreement with a text.

Scores of edits use judge a; schedules and distances use judge b; no edit is optimised against
either. The kit's CLIP is a third network. The three share no weights and no data seed.
Images are float32 in [−1, 1], shape (n, 3, h, w), square and of any size; gradients flow to them.
"""

import json
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lib.diffusion.models import real_numbers
from lib.faces import captions

MODELS = Path(__file__).resolve().parents[2] / "models"
TOLERANCE = 1e-3  # rounding of a decoder that ends in a clamp


class Judge(nn.Module):
    """A small convolutional network with one head per attribute, {attribute: class names}.

    Judge a reads 32 px with ReLU and a dense layer over positions; judge b reads 64 px with
    residual blocks, SiLU and average pooling. Other sizes are resized.
    """

    def __init__(self, name: str, classes: dict[str, list[str]]) -> None:
        super().__init__()
        self.name, self.classes = name, classes
        self.size, stages, top, width = _ARCHITECTURES[name]()
        self.stages, self.top = nn.ModuleList(stages), top
        self.heads = nn.Linear(width, sum(map(len, classes.values())))
        # Reference statistics of rendered faces, fixed after training.
        self.register_buffer("pair_distance", torch.ones(()))
        self.register_buffer("components", torch.eye(64, width))
        self.register_buffer("total_variance", torch.ones(()))

    def layers(self, images: Tensor) -> list[Tensor]:
        """The feature maps (n, c, h, w) of every stage."""
        h, maps = resize(images, self.size), []
        for stage in self.stages:
            h = stage(h)
            maps.append(h)
        return maps

    def pooled(self, images: Tensor) -> Tensor:
        """The features that the heads read, (n, width)."""
        return self.top(self.layers(images)[-1])

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """Logits per attribute, {attribute: (n, classes)}."""
        sizes = [len(names) for names in self.classes.values()]
        split = self.heads(self.pooled(images)).split(sizes, dim=1)
        return dict(zip(self.classes, split, strict=True))


def _convolution(
    inputs: int, outputs: int, kernel: int, stride: int, activation: type[nn.Module]
) -> nn.Sequential:
    convolution = nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, bias=False)
    return nn.Sequential(convolution, nn.BatchNorm2d(outputs), activation())


class _Residual(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            _convolution(width, width, 3, 1, nn.SiLU),
            nn.Conv2d(width, width, 3, 1, 1, bias=False),
            nn.BatchNorm2d(width),
        )

    def forward(self, h: Tensor) -> Tensor:
        return F.silu(h + self.body(h))


def _architecture_a() -> tuple[int, list[nn.Module], nn.Module, int]:
    """Image size, stages, what pools them, and the width of what the heads read."""
    stages = [
        _convolution(3, 32, 3, 1, nn.ReLU),
        _convolution(32, 64, 3, 2, nn.ReLU),
        _convolution(64, 128, 3, 2, nn.ReLU),
        _convolution(128, 128, 3, 1, nn.ReLU),
        _convolution(128, 128, 3, 2, nn.ReLU),
    ]
    return 32, stages, nn.Sequential(nn.Flatten(), nn.Linear(2048, 128), nn.ReLU()), 128


def _architecture_b() -> tuple[int, list[nn.Module], nn.Module, int]:
    stages = [
        _convolution(3, 32, 5, 2, nn.SiLU),
        nn.Sequential(_convolution(32, 64, 3, 2, nn.SiLU), _Residual(64)),
        nn.Sequential(_convolution(64, 128, 3, 2, nn.SiLU), _Residual(128)),
    ]
    return 64, stages, nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten()), 128


_ARCHITECTURES = {"a": _architecture_a, "b": _architecture_b}


def resize(images: Tensor, size: int) -> Tensor:
    """Square images of another size: area averages down, bilinear interpolation up."""
    if images.shape[-2:] == (size, size):
        return images
    if images.shape[-1] > size:
        return F.adaptive_avg_pool2d(images, size)
    return F.interpolate(images, size=(size, size), mode="bilinear", align_corners=False)


@lru_cache(maxsize=4)
def load(judge: str, *, device: torch.device | str = "cpu", models: Path = MODELS) -> Judge:
    """Judge "a" or "b" from its folder, float32, frozen, in evaluation mode.

    Raises ValueError for an unknown judge, or when its weights are missing or unreadable.
    """
    from safetensors.torch import load_file

    if judge not in _ARCHITECTURES:
        raise ValueError(f"judge = {judge!r}, expected one of {sorted(_ARCHITECTURES)}.")
    folder = Path(models) / f"judge-{judge}"
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        network = Judge(judge, config["classes"])
        counters = {k: v for k, v in network.state_dict().items() if not v.is_floating_point()}
        weights = load_file(folder / "model.safetensors")
        network.load_state_dict(counters | {k: v.float() for k, v in weights.items()})
    except Exception as error:
        raise ValueError(
            f"judge {judge!r} cannot be read from {folder.name}/ ({error}); "
            f"restore the folder or train it: python -m lib.training.train judge-{judge}."
        ) from error
    return network.requires_grad_(False).eval().to(device)


def metrics(judge: str) -> dict:
    """What was measured on held-out faces when the judge was trained: `metrics.json`."""
    load(judge)
    return json.loads((MODELS / f"judge-{judge}" / "metrics.json").read_text(encoding="utf-8"))


def _checked(images: Tensor, name: str = "images") -> Tensor:
    images = real_numbers(images, name)
    if images.ndim != 4 or images.shape[1] != 3 or images.shape[2] != images.shape[3]:
        raise ValueError(
            f"{name} has shape {tuple(images.shape)}, expected (n, 3, size, size) with RGB images; "
            "grey garments have judges of their own, lib.garments.judge, and no captions."
        )
    if not images.is_floating_point():
        raise ValueError(f"{name} has type {images.dtype}, expected float32 in [-1, 1].")
    largest = images.detach().abs().amax().item() if images.numel() else 0.0
    if not largest <= 1.0 + TOLERANCE:
        raise ValueError(f"{name} reaches {largest}, expected finite values in [-1, 1]; clamp it.")
    return images.float()


def logits(images: Tensor, *, judge: str = "a") -> dict[str, Tensor]:
    """Logits of every judged attribute, {attribute: (n, classes)}; class names in `classes`.

    An attribute below 95% held-out accuracy is not judged and has no entry.
    Raises ValueError for images of another shape or outside [−1, 1], or an unknown judge.
    """
    images = _checked(images)
    return load(judge, device=images.device)(images)


def attributes(images: Tensor, *, judge: str = "a") -> dict[str, Tensor]:
    """Class probabilities of every judged attribute, {attribute: (n, classes)}: softmax of logits.
    Raises ValueError as `logits`.
    """
    return {name: z.softmax(dim=1) for name, z in logits(images, judge=judge).items()}


def classes(*, judge: str = "a") -> dict[str, list[str]]:
    """The class names of every judged attribute, in the order of the logits."""
    return load(judge).classes


def log_odds(logits: dict[str, Tensor], attribute: str, *names: str) -> Tensor:
    """ℓ = log Σ_{j in names} exp z_j − log Σ_{j not in names} exp z_j for one attribute, (n,).
    Raises ValueError for an unknown attribute or class, or when no class is left on either side.
    """
    known = classes()
    if attribute not in known or attribute not in logits:
        raise ValueError(f"attribute = {attribute!r}, expected one of {sorted(logits)}.")
    chosen = [name in names for name in known[attribute]]
    if sum(chosen) != len(set(names)) or all(chosen) or not any(chosen):
        raise ValueError(f"names = {names}, expected some but not all of {known[attribute]}.")
    chosen, z = torch.tensor(chosen, device=logits[attribute].device), logits[attribute]
    return z[:, chosen].logsumexp(dim=1) - z[:, ~chosen].logsumexp(dim=1)


def features(images: Tensor) -> Tensor:
    """Pooled features of judge b, (n, 128), the space of the Fréchet distance.
    Raises ValueError as `logits`.
    """
    images = _checked(images)
    return load("b", device=images.device).pooled(images)


def raw_distance(network: Judge, a: Tensor, b: Tensor) -> Tensor:
    """Σ over layers of the mean over positions of |f_a − f_b|², (n,): not yet normalised.

    f: feature maps divided by their norm over channels at every position.
    """
    unit = lambda f: f * (f.square().sum(1, keepdim=True) + 1e-10).rsqrt()  # noqa: E731
    pairs = zip(network.layers(a), network.layers(b), strict=True)
    return sum((unit(x) - unit(y)).square().sum(1).mean((1, 2)) for x, y in pairs)


def distance(a: Tensor, b: Tensor) -> Tensor:
    """Perceptual distance of image pairs, (n,): 0 for equal images, about 1 for unrelated faces.

        d(a, b) = Σ_layers mean_positions |f_a − f_b|² / mean over random pairs of faces

    with unit-normalised features f of judge b.
    Raises ValueError for different shapes, or images that `logits` refuses.
    """
    a, b = _checked(a, "a"), _checked(b, "b")
    if a.shape != b.shape:
        raise ValueError(f"a and b have shapes {tuple(a.shape)} and {tuple(b.shape)}, not one.")
    network = load("b", device=a.device)
    return raw_distance(network, a, b.to(a.device)) / network.pair_distance


def frechet(a: Tensor, b: Tensor) -> float:
    """Fréchet distance of two equally large sets of images, float64, without unit.

        FD = (|μ_a − μ_b|² + tr(Σ_a + Σ_b − 2 (Σ_a Σ_b)^{1/2})) / tr Σ

    over 64 fixed principal components of judge b's pooled features; tr Σ is their variance over
    rendered faces. Not an FID.
    Raises ValueError for fewer than two images, unequal counts, or images that `logits` refuses.
    """
    if len(a) < 2 or len(a) != len(b):
        raise ValueError(
            f"a and b hold {len(a)} and {len(b)} images, expected equal counts of at least 2."
        )
    return frechet_of_components(components(a, "a"), components(b, "b"))


def frechet_of_components(x: Tensor, y: Tensor) -> float:
    """`frechet` from the components (n, 64) of two equally large sets, as `components` gives them.

    Resampling a set needs its network pass only once this way.
    """
    gap = (x.mean(0) - y.mean(0)).square().sum()
    x, y = ((z - z.mean(0)) / (len(z) - 1) ** 0.5 for z in (x, y))
    # tr (Σ_a Σ_b)^{1/2} is the nuclear norm of X Yᵀ where Σ_a = XᵀX and Σ_b = YᵀY.
    roots = [torch.linalg.qr(z, mode="r").R for z in (x, y)]  # no more rows than columns
    overlap = torch.linalg.matrix_norm(roots[0] @ roots[1].T, "nuc")
    spread = x.square().sum() + y.square().sum() - 2.0 * overlap
    return float((gap + spread) / load("b").total_variance.double())


@torch.no_grad()
def components(images: Tensor, name: str = "images") -> Tensor:
    """The 64 principal components of judge b's pooled features that `frechet` uses, float64.
    Raises ValueError, which calls the images `name`, for what `logits` refuses.
    """
    images = _checked(images, name)
    network = load("b", device=images.device)
    pooled = torch.cat([network.pooled(part) for part in images.split(256)]).double().cpu()
    return pooled @ network.components.double().cpu().T


def clip_similarity(images: Tensor, text: str | list[str]) -> Tensor:
    """Cosine between kit-CLIP embeddings of images and text: (n,) for a text, (n, m) for a list.
    Raises ValueError for a word outside the grammar, a text too long, or images as in `logits`.
    """
    texts = [text] if isinstance(text, str) else list(text)
    embedded = embed_images(images)
    cosine = embedded @ embed_texts(texts, device=embedded.device).T
    return cosine[:, 0] if isinstance(text, str) else cosine


def directional_similarity(
    before: Tensor, after: Tensor, text_before: str, text_after: str
) -> Tensor:
    """cos(ΔI, ΔT) per image pair, (n,): does the edit move as the texts do?

    ΔI and ΔT are differences of unit kit-CLIP embeddings. Where nothing changes it is 0.
    Raises ValueError for different shapes, equal texts, or what `clip_similarity` refuses.
    """
    before, after = _checked(before, "before"), _checked(after, "after")
    if before.shape != after.shape:
        raise ValueError(
            f"before and after have shapes {tuple(before.shape)} and {tuple(after.shape)}, not one."
        )
    if text_before == text_after:
        raise ValueError(f"text_before and text_after are both {text_after!r}, no direction.")
    change = embed_images(after) - embed_images(before)
    start, end = embed_texts([text_before, text_after], device=after.device)
    return F.cosine_similarity(change, (end - start)[None], dim=1)


def embed_images(images: Tensor) -> Tensor:
    """Unit kit-CLIP embeddings of images, (n, 96).
    Raises ValueError for images that `logits` refuses.
    """
    images = _checked(images)
    return image_features(clip(device=images.device)[0], images)


def image_features(network: nn.Module, images: Tensor) -> Tensor:
    """Unit embeddings (n, 96) of images by a `CLIPModel` of the kit's kind."""
    pixels = resize(images, network.config.vision_config.image_size)
    return F.normalize(network.get_image_features(pixel_values=pixels).pooler_output, dim=1)


def embed_texts(texts: list[str], *, device: torch.device | str = "cpu") -> Tensor:
    """Unit kit-CLIP embeddings of texts, (m, 96).
    Raises ValueError for a word outside the grammar or a text too long.
    """
    if not texts:
        raise ValueError("no text at all: give one, or a list of them")
    captions.check(texts)
    network, tokenizer = clip(device=device)
    tokens = tokenizer(texts, padding=True, return_tensors="pt").to(device)
    return F.normalize(network.get_text_features(**tokens).pooler_output, dim=1)


@lru_cache(maxsize=4)
def clip(*, device: torch.device | str = "cpu", models: Path = MODELS) -> tuple[nn.Module, Any]:
    """The kit's `CLIPModel` (frozen, float32, plain-softmax attention) and its tokenizer.

    Raises ValueError when the folder is missing or unreadable.
    """
    from transformers import CLIPModel, CLIPTokenizer

    folder, own = Path(models) / "clip", {"attn_implementation": "eager", "dtype": torch.float32}
    try:
        network = CLIPModel.from_pretrained(folder, local_files_only=True, **own)
        tokenizer = CLIPTokenizer.from_pretrained(folder, local_files_only=True)
    except Exception as error:
        raise ValueError(
            f"the kit's CLIP cannot be read from {folder.name}/ ({error}); "
            "restore the folder or train it: python -m lib.training.train clip."
        ) from error
    return network.requires_grad_(False).eval().to(device), tokenizer
