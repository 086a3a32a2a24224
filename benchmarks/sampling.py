"""Images per second: the batched sampler against a loop over single images, same kit, same seeds.

The loop is the published scripts' way: one image at a time, its prompts encoded for it alone.
"""

import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch

from benchmarks import small
from lib.diffusion import models, sampling

IMAGES, STEPS, REPEATS = 64, 4, 3
TOKENS = 24  # as many as the kit's captions need
PROMPT = {"prompt": "a person with glasses", "guidance": 3.0}


def pixel_model(device: str) -> models.Generator:
    from diffusers import UNet2DModel

    unet = UNet2DModel(
        sample_size=32,
        block_out_channels=(32, 64, 128),
        layers_per_block=1,
        down_block_types=("DownBlock2D", "DownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "UpBlock2D", "UpBlock2D"),
        norm_num_groups=8,
    )
    alphas = torch.cumprod(1 - torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64), 0)
    return models.Generator(unet.eval().requires_grad_(False).to(device), alphas, (3, 32, 32))


def text_model(device: str) -> models.Generator:
    from diffusers import UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel

    with tempfile.TemporaryDirectory() as folder:
        tiny = small.write("sd-1.5", Path(folder) / "tiny")
        generator = models.load(tiny, device=device)
    unet = UNet2DConditionModel(
        sample_size=16,
        block_out_channels=(32, 64, 64),
        layers_per_block=1,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        cross_attention_dim=128,
        attention_head_dim=2,
        norm_num_groups=8,
    )
    text = CLIPTextConfig(
        hidden_size=128, intermediate_size=256, num_hidden_layers=2, num_attention_heads=4
    )
    generator.unet = unet.eval().requires_grad_(False).to(device)
    generator.text_encoder = CLIPTextModel(text).eval().requires_grad_(False).to(device)
    generator.latent_shape = (4, 16, 16)
    generator.tokenizer.model_max_length = TOKENS
    return generator


def seconds(run: Callable[[], object]) -> float:
    begin = time.perf_counter()
    run()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - begin


def speed_up(generator: models.Generator, **text) -> float:
    """Time of the loop over time of the batch, each the best of a few interleaved repeats."""
    noise = generator.noise(IMAGES, 0)

    def loop() -> None:
        for row in noise.split(1):
            generator._embeddings.clear()
            sampling.ddim(generator, row, steps=STEPS, **text)

    def batch() -> None:
        generator._embeddings.clear()
        sampling.ddim(generator, noise, steps=STEPS, **text)

    batch()
    times = [(seconds(loop), seconds(batch)) for _ in range(REPEATS)]
    return min(t for t, _ in times) / min(t for _, t in times)


def main() -> list[dict]:
    """One row for the pixel model and one for the text model."""
    gpu = torch.cuda.is_available()
    device = "cuda" if gpu else "cpu"
    rows = []
    for name, generator, text, target in (
        ("pixel model, 32 px", pixel_model(device), {}, 1.5),
        ("text model, 4 x 16 x 16", text_model(device), PROMPT, 3.0),
    ):
        target = 20.0 if gpu else target
        measured = speed_up(generator, **text)
        rows.append(
            {
                "claim": f"sampling, {name}: images/s batched against one by one",
                "measured": measured,
                "unit": "times",
                "target": f">= {target}",
                "holds": measured >= target,
            }
        )
    return rows
