"""The image tower of a published CLIP, for models whose pictures the kit's own CLIP cannot read."""

import hashlib
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

NAME = "openai/clip-vit-large-patch14"
REVISION = "32bd64288804d66eefd0ccbe215aa642df71cc41"
MEAN = (0.48145466, 0.4578275, 0.40821073)
DEVIATION = (0.26862954, 0.26130258, 0.27577711)


class ImageTower:
    """Images (n, 3, h, h) in [−1, 1] -> unit embeddings (n, F), by a frozen CLIP vision network."""

    def __init__(self, network: nn.Module) -> None:
        self.network = network.eval().requires_grad_(False)

    @property
    def weight_hash(self) -> str:
        """SHA-256 (16 hex digits) of all weights, by which a cache knows this network."""
        digest = hashlib.sha256()
        for name, value in self.network.state_dict().items():
            digest.update(f"{name}{value.dtype}{tuple(value.shape)}".encode())
            digest.update(value.cpu().contiguous().view(-1).view(torch.uint8).numpy())
        return digest.hexdigest()[:16]

    @torch.no_grad()
    def __call__(self, images: Tensor) -> Tensor:
        """Embeddings of square images; raises ValueError for another shape."""
        if images.ndim != 4 or images.shape[1] != 3 or images.shape[2] != images.shape[3]:
            raise ValueError(
                f"images have shape {tuple(images.shape)}; expected square ones, (n, 3, h, h)"
            )
        device, size = self.network.device, self.network.config.image_size
        mean, deviation = (torch.tensor(v, device=device).view(3, 1, 1) for v in (MEAN, DEVIATION))
        x = (images.to(device).float().clamp(-1, 1) + 1) / 2
        x = F.interpolate(x, (size, size), mode="bicubic", antialias=True).clamp(0, 1)
        return F.normalize(self.network((x - mean) / deviation).image_embeds, dim=1)


def load(name: str | Path | None = NAME, *, revision: str = REVISION, device="cpu") -> ImageTower:
    """The image tower of a published CLIP; F = 768 for ViT-L/14.

    name: a hub id at `revision`, or a folder; None makes random weights of a small CLIP, to
    rehearse. Raises ValueError where the weights cannot be had.
    """
    return ImageTower(_network(name, revision).to(device))


def _network(name: str | Path | None, revision: str):
    from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection

    if name is None:
        torch.manual_seed(0)
        sizes = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2}
        sizes |= {"num_attention_heads": 4, "patch_size": 32, "projection_dim": 32}
        return CLIPVisionModelWithProjection(CLIPVisionConfig(**sizes))
    own = {} if Path(name).is_dir() else {"revision": revision}
    try:
        return CLIPVisionModelWithProjection.from_pretrained(name, use_safetensors=True, **own)
    except (OSError, ValueError) as error:
        raise ValueError(
            f"CLIP {str(name)!r} cannot be loaded ({type(error).__name__}): give a folder with "
            f"config.json and model.safetensors, or go online once to fetch {NAME}"
        ) from error
