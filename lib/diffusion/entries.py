"""Which entries of a network's config.json the kit honours: one table, all others must be default.

Honoured means that samplers, taps and tangents give what the library's own network gives; a value
that they would pass over in silence is refused by its name before any weight is read.
"""

import inspect
from pathlib import Path
from typing import Any

ANY = None  # whatever the library itself takes
SILU = ("silu", "swish")
TIMES = ("default", "scale_shift")
SIZES = ("in_channels", "out_channels", "sample_size", "block_out_channels", "layers_per_block")
UNET = dict.fromkeys(
    (
        *SIZES,
        "time_embedding_dim",
        "freq_shift",
        "flip_sin_to_cos",
        "mid_block_scale_factor",
        "downsample_padding",
        "dropout",
        "attention_head_dim",
        "norm_num_groups",
        "norm_eps",
    ),
    ANY,
) | {"act_fn": SILU, "resnet_time_scale_shift": TIMES}
AUTOENCODER = dict.fromkeys(
    (*SIZES, "latent_channels", "norm_num_groups", "scaling_factor", "mid_block_add_attention"), ANY
) | {"act_fn": SILU, "force_upcast": ANY}  # the type is the one that `load` was asked for

# {class: {entry: the values honoured}}; of a sequence, each member is one of these values.
HONOURED: dict[str, dict[str, tuple | None]] = {
    "UNet2DModel": UNET
    | {
        "down_block_types": ("DownBlock2D", "AttnDownBlock2D", "ResnetDownsampleBlock2D"),
        "up_block_types": ("UpBlock2D", "AttnUpBlock2D", "ResnetUpsampleBlock2D"),
        "mid_block_type": ("UNetMidBlock2D", None),
        "downsample_type": ("conv", "resnet"),
        "upsample_type": ("conv", "resnet"),
        "attn_norm_num_groups": ANY,
        "add_attention": ANY,
        "num_class_embeds": ANY,
        "num_train_timesteps": ANY,  # unused by the one time embedding that is honoured
    },
    "UNet2DConditionModel": UNET
    | {
        "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D", "ResnetDownsampleBlock2D"),
        "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D", "ResnetUpsampleBlock2D"),
        "mid_block_type": ("UNetMidBlock2DCrossAttn", "UNetMidBlock2D", None),
        "only_cross_attention": ANY,
        "cross_attention_dim": ANY,
        "transformer_layers_per_block": ANY,
        "reverse_transformer_layers_per_block": ANY,
        "use_linear_projection": ANY,
        "upcast_attention": ANY,  # softmax in the type that `load` was asked for
        "conv_in_kernel": ANY,
        "conv_out_kernel": ANY,
    },
    "AutoencoderKL": AUTOENCODER
    | {
        "down_block_types": ("DownEncoderBlock2D",),
        "up_block_types": ("UpDecoderBlock2D",),
        "use_quant_conv": ANY,
        "use_post_quant_conv": ANY,
    },
    "VQModel": AUTOENCODER
    | {
        "down_block_types": ("DownEncoderBlock2D",),
        "up_block_types": ("UpDecoderBlock2D",),
        "num_vq_embeddings": ANY,
        "vq_embed_dim": ANY,
    },
}
UNETS = ("UNet2DModel", "UNet2DConditionModel")
AUTOENCODERS = ("AutoencoderKL", "VQModel")


def defaults(kind: str) -> dict[str, Any]:
    """The entries of a class of the pinned diffusers, and the value of each where none is given."""
    import diffusers

    parameters = inspect.signature(getattr(diffusers, kind).__init__).parameters
    return {name: p.default for name, p in parameters.items() if name != "self"}


def check(config: dict[str, Any], file: Path) -> None:
    """Raise ValueError, which names `file` and the entry, for a value that would be passed over.

    config: of a class in `HONOURED`. An entry that is neither honoured nor the library's is
    refused too, unless it says nothing (null or false).
    """
    kind = config["_class_name"]
    honoured, usual = HONOURED[kind], defaults(kind)
    for name, value in config.items():
        if name.startswith("_") or as_list(value) == as_list(usual.get(name)):
            continue
        if name not in usual and value is False:
            continue
        allowed = honoured.get(name, ())
        if allowed is not ANY and not all(v in allowed for v in as_list(value)):
            taken = ("no value" if v is None else repr(v) for v in allowed or (usual.get(name),))
            raise ValueError(
                f"{file}: {name} = {value!r} would not be honoured; the kit takes "
                f"{' or '.join(taken)} in a {kind}: choose another model"
            )


def as_list(value: Any) -> list:
    """The members of an entry that may be one value or several."""
    return list(value) if isinstance(value, list | tuple) else [value]
