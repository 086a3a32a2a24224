"""Networks of the published shapes with small numbers: folders that are written in a second."""

from pathlib import Path

from lib.diffusion import rehearsal

PIXEL_TINY = {
    "sample_size": 16,
    "block_out_channels": (8, 16),
    "layers_per_block": 1,
    "norm_num_groups": 4,
    "attn_norm_num_groups": 4,
    "attention_head_dim": 8,
}
LATENT_TINY = {
    "sample_size": 8,
    "block_out_channels": (8, 16),
    "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
    "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
    "layers_per_block": 1,
    "norm_num_groups": 4,
    "cross_attention_dim": 16,
    "attention_head_dim": 2,
}
AUTOENCODER_TINY = {
    "block_out_channels": (4, 8),
    "down_block_types": ("DownEncoderBlock2D",) * 2,
    "up_block_types": ("UpDecoderBlock2D",) * 2,
    "layers_per_block": 1,
    "norm_num_groups": 4,
    "sample_size": 16,
}
TEXT_TINY = {
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
}


def changes(kind: str) -> dict:
    """What a published configuration needs to be small, as `rehearsal.write_random` takes it."""
    if kind in rehearsal.TEXT:
        return {"unet": LATENT_TINY, "vae": AUTOENCODER_TINY, "text_encoder": TEXT_TINY}
    unet = rehearsal.PUBLISHED[kind]
    deepest = {
        "down_block_types": unet["down_block_types"][-2:],
        "up_block_types": unet["up_block_types"][:2],
    }
    return {"unet": PIXEL_TINY | deepest}


def write(kind: str, folder: Path, **options: object) -> Path:
    """Write the small folder of a kind; options as in `rehearsal.write_random`."""
    return rehearsal.write_random(kind, folder, changes=changes(kind), **options)
