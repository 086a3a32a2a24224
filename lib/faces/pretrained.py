"""Published networks that score images (CLIP, LPIPS, FID), for readers who hold their weights.

Nothing in the smoke, quick or full profile uses their weights, and none but those of `image_tower`
are fetched. CLIP needs transformers alone; `lpips` and `fid` need the optional extra `metrics`,
whose torchvision must be the same build (CPU or CUDA) as torch. Images are float32 in [-1, 1],
shape (n, 3, h, w).
"""

import importlib
from functools import lru_cache
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lib.diffusion import folders

NAME = "openai/clip-vit-large-patch14"
REVISION = "32bd64288804d66eefd0ccbe215aa642df71cc41"
MEAN = (0.48145466, 0.4578275, 0.40821073)
DEVIATION = (0.26862954, 0.26130258, 0.27577711)
BACKBONE = "alexnet-owt-7be5be79.pth"
EXTRA = "install it with `pip install -e .[metrics]`, torchvision in the same build as torch"


def clip_score(images: Tensor, texts: str | list[str], *, model: str | Path) -> Tensor:
    """100 cos(image, text) per image, (n,), by a published CLIP in the folder `model`.

    A transformers folder of a `CLIPModel` with its tokenizer, for instance clip-vit-large-patch14.
    One text for all images, or one for each.
    Raises ValueError for a folder that is no CLIP, other counts, or images outside [-1, 1].
    """
    images = _checked(images, "images")
    texts = [texts] * len(images) if isinstance(texts, str) else list(texts)
    if len(texts) != len(images):
        raise ValueError(f"{len(texts)} texts for {len(images)} images: give one, or one for each")
    network, tokenizer = clip(str(model))
    pixels = clip_pixels(images, network.config.vision_config.image_size)
    tokens = tokenizer(texts, padding=True, truncation=True, return_tensors="pt")
    with torch.no_grad():
        seen = network.to(images.device).get_image_features(pixel_values=pixels).pooler_output
        said = network.get_text_features(**tokens.to(images.device)).pooler_output
    return 100 * F.cosine_similarity(seen, said)


class ImageTower:
    """Images (n, 3, h, h) in [-1, 1] -> unit embeddings (n, F), by a frozen CLIP vision network."""

    def __init__(self, network: nn.Module) -> None:
        self.network = network.eval().requires_grad_(False)

    @property
    def weight_hash(self) -> str:
        """SHA-256 (16 hex digits) of all weights, by which a cache knows this network."""
        return folders.weight_hash(self.network.state_dict().items())

    @torch.no_grad()
    def __call__(self, images: Tensor) -> Tensor:
        """Embeddings of square images, clamped to [-1, 1]; raises ValueError for another shape."""
        if images.ndim != 4 or images.shape[1] != 3 or images.shape[2] != images.shape[3]:
            raise ValueError(
                f"images have shape {tuple(images.shape)}; expected square ones, (n, 3, h, h)"
            )
        images = images.to(self.network.device).float().clamp(-1, 1)
        pixels = clip_pixels(images, self.network.config.image_size)
        return F.normalize(self.network(pixels).image_embeds, dim=1)


def image_tower(
    name: str | Path | None = NAME, *, revision: str = REVISION, device: str | torch.device = "cpu"
) -> ImageTower:
    """The image tower of a published CLIP, for pictures that the kit's own CLIP cannot read.

    name: a hub id at `revision`, or a folder; None makes random weights of a small CLIP, to
    rehearse. F = 768 for ViT-L/14. Raises ValueError where the weights cannot be had.
    """
    from transformers import CLIPVisionModelWithProjection

    if name is None:
        return ImageTower(_small_tower().to(device))
    own = {} if Path(name).is_dir() else {"revision": revision}
    try:
        network = CLIPVisionModelWithProjection.from_pretrained(name, use_safetensors=True, **own)
    except (OSError, ValueError) as error:
        raise ValueError(
            f"CLIP {str(name)!r} cannot be loaded ({type(error).__name__}): give a folder with "
            f"config.json and model.safetensors, or go online once to fetch {NAME}"
        ) from error
    return ImageTower(network.to(device))


def _small_tower() -> nn.Module:
    from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection

    torch.manual_seed(0)
    sizes = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2}
    sizes |= {"num_attention_heads": 4, "patch_size": 32, "projection_dim": 32}
    return CLIPVisionModelWithProjection(CLIPVisionConfig(**sizes))


def clip_pixels(images: Tensor, size: int) -> Tensor:
    """CLIP's own preprocessing of square images: bicubic to `size`, then its mean and deviation."""
    mean, deviation = (
        torch.tensor(v, device=images.device).view(3, 1, 1) for v in (MEAN, DEVIATION)
    )
    unit = F.interpolate(images / 2 + 0.5, size=(size, size), mode="bicubic", antialias=True)
    return (unit.clamp(0, 1) - mean) / deviation


def lpips(a: Tensor, b: Tensor) -> Tensor:
    """LPIPS of image pairs, (n,), with torchvision's AlexNet.

    Raises ValueError without the extra, without the backbone's weights in torch's hub cache, for
    unequal shapes, or images outside [-1, 1].
    """
    a, b = _checked(a, "a"), _checked(b, "b")
    if a.shape != b.shape:
        raise ValueError(f"a and b have shapes {tuple(a.shape)} and {tuple(b.shape)}, not one")
    weights = Path(torch.hub.get_dir()) / "checkpoints" / BACKBONE
    if not weights.is_file():
        raise ValueError(f"no weights of AlexNet: place {weights.name} in {weights.parent}")
    own = {"net_type": "alex"}
    metric = _torchmetrics("lpip").LearnedPerceptualImagePatchSimilarity(**own).to(a.device)
    with torch.no_grad():
        return torch.stack([metric(x[None], y[None]) for x, y in zip(a, b, strict=True)])


def fid(a: Tensor, b: Tensor, *, weights: str | Path) -> float:
    """Fréchet inception distance of two sets of images, 2048 features, without unit.

    weights: the file weights-inception-2015-12-05-6726825d.pth of torch-fidelity.
    Raises ValueError without the extra or the file, for fewer than two images in a set, or images
    outside [-1, 1].
    """
    a, b = _checked(a, "a"), _checked(b, "b")
    if min(len(a), len(b)) < 2:
        raise ValueError(f"a and b hold {len(a)} and {len(b)} images, expected at least 2 of each")
    if not Path(weights).is_file():
        raise ValueError(
            f"weights = {str(weights)!r} is no file: give that of the inception network"
        )
    metric = (
        _torchmetrics("fid")
        .FrechetInceptionDistance(normalize=True, feature_extractor_weights_path=str(weights))
        .to(a.device)
    )
    for images, real in ((a, True), (b, False)):
        for part in images.split(64):
            metric.update(part / 2 + 0.5, real=real)
    return float(metric.compute())


def _torchmetrics(module: str) -> ModuleType:
    """A module of torchmetrics.image, or the reason why it cannot be used."""
    try:
        found = importlib.import_module(f"torchmetrics.image.{module}")
        importlib.import_module("torchvision")
    except ImportError as error:
        raise ValueError(f"the extra `metrics` is not installed ({error}): {EXTRA}") from error
    except RuntimeError as error:  # torchvision's operators were built for another torch
        raise ValueError(f"torchvision does not fit torch ({error}): {EXTRA}") from error
    return found


@lru_cache(maxsize=1)
def clip(folder: str) -> tuple[nn.Module, Any]:
    """A published `CLIPModel` (float32, frozen) and its tokenizer; raises ValueError without."""
    from transformers import CLIPModel, CLIPTokenizer

    try:
        network = CLIPModel.from_pretrained(folder, dtype=torch.float32, local_files_only=True)
        tokenizer = CLIPTokenizer.from_pretrained(folder, local_files_only=True)
    except Exception as error:
        raise ValueError(
            f"model = {folder!r} cannot be read as a CLIP ({error}); give a transformers folder "
            "with safetensors and tokenizer"
        ) from error
    return network.requires_grad_(False).eval(), tokenizer


def _checked(images: Tensor, name: str) -> Tensor:
    images = torch.as_tensor(images)
    if images.ndim != 4 or images.shape[1] != 3 or not images.is_floating_point():
        raise ValueError(
            f"{name}: {images.dtype} of shape {tuple(images.shape)}, expected float32 (n, 3, h, w)"
        )
    if not bool(images.isfinite().all()) or float(images.abs().max()) > 1.001:
        raise ValueError(f"{name} leaves [-1, 1] or is not finite: clamp it")
    return images.float().clamp(-1, 1)
