"""The table of config entries: each honoured value does what the library does, others are named.

The second route is the library's own network, untouched, under torch.func.jvp in float64.
"""

import copy
import json

import diffusers
import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

from benchmarks import small
from lib import hspace
from lib.diffusion import entries, models, sampling, tangents

CROSS = ("CrossAttnDownBlock2D", "DownBlock2D"), ("UpBlock2D", "CrossAttnUpBlock2D")
RESNET = ("ResnetDownsampleBlock2D", "AttnDownBlock2D"), ("AttnUpBlock2D", "ResnetUpsampleBlock2D")
DEEP = {
    "block_out_channels": (4, 8, 8),
    "down_block_types": ("DownBlock2D", "AttnDownBlock2D", "DownBlock2D"),
    "up_block_types": ("UpBlock2D", "AttnUpBlock2D", "UpBlock2D"),
}
BASE = {
    "UNet2DModel": {
        "sample_size": 8,
        "block_out_channels": (4, 8),
        "down_block_types": ("DownBlock2D", "AttnDownBlock2D"),
        "up_block_types": ("AttnUpBlock2D", "UpBlock2D"),
        "layers_per_block": 1,
        "norm_num_groups": 2,
        "attention_head_dim": 4,
    },
    "UNet2DConditionModel": small.LATENT_TINY | {"block_out_channels": (4, 8)},
    "AutoencoderKL": small.AUTOENCODER_TINY | {"latent_channels": 3, "norm_num_groups": 2},
    "VQModel": small.AUTOENCODER_TINY | {"norm_num_groups": 2, "num_vq_embeddings": 8},
}


def types(down, up):
    return {"down_block_types": down, "up_block_types": up}


SHARED = {
    "in_channels": [{"in_channels": 2, "out_channels": 2}],
    "out_channels": [{"out_channels": 6}],
    "sample_size": [{"sample_size": (4, 8)}],
    "block_out_channels": [{"block_out_channels": (8, 8)}],
    "layers_per_block": [{"layers_per_block": 2}],
    "time_embedding_dim": [{"time_embedding_dim": 24}],
    "freq_shift": [{"freq_shift": 1}],
    "flip_sin_to_cos": [{"flip_sin_to_cos": False}],
    "mid_block_scale_factor": [{"mid_block_scale_factor": 1.4}],
    "downsample_padding": [{"downsample_padding": 0}],
    "dropout": [{"dropout": 0.3}],
    "attention_head_dim": [{"attention_head_dim": 2}],
    "norm_num_groups": [{"norm_num_groups": 4}],
    "norm_eps": [{"norm_eps": 0.1}],
    "act_fn": [{"act_fn": "swish"}],
    "resnet_time_scale_shift": [{"resnet_time_scale_shift": "scale_shift"}],
}
ENCODED = {
    "in_channels": [{"in_channels": 1, "out_channels": 1}],
    "out_channels": [{"in_channels": 2, "out_channels": 2}],
    "sample_size": [{"sample_size": 7}],
    "block_out_channels": [
        {"block_out_channels": (4,), **types(("DownEncoderBlock2D",), ("UpDecoderBlock2D",))}
    ],
    "layers_per_block": [{"layers_per_block": 2}],
    "down_block_types": [{"down_block_types": ("DownEncoderBlock2D",) * 2}],
    "up_block_types": [{"up_block_types": ("UpDecoderBlock2D",) * 2}],
    "norm_num_groups": [{"norm_num_groups": 4}],
    "act_fn": [{"act_fn": "swish"}],
    "scaling_factor": [{"scaling_factor": 0.7}],
    "mid_block_add_attention": [{"mid_block_add_attention": False}],
    "force_upcast": [{"force_upcast": True}, {"force_upcast": False}],
}
VARIANTS = {
    "UNet2DModel": SHARED
    | {
        "attention_head_dim": [{"attention_head_dim": None}, {"attention_head_dim": 2}],
        "down_block_types": [types(*RESNET), DEEP],
        "up_block_types": [types(RESNET[0][::-1], RESNET[1][::-1])],
        "mid_block_type": [{"mid_block_type": None}],
        "downsample_type": [{"downsample_type": "resnet"} | DEEP],
        "upsample_type": [{"upsample_type": "resnet"}],
        "attn_norm_num_groups": [
            {"attn_norm_num_groups": 4, "resnet_time_scale_shift": "scale_shift"}
        ],
        "add_attention": [{"add_attention": False}],
        "num_class_embeds": [{"num_class_embeds": 3}],
        "num_train_timesteps": [{"num_train_timesteps": 7}],
    },
    "UNet2DConditionModel": SHARED
    | {
        "in_channels": [{"in_channels": 2, "out_channels": 2}],
        "out_channels": [{"out_channels": 8}],
        "attention_head_dim": [{"attention_head_dim": (1, 4)}],
        "down_block_types": [
            types(("ResnetDownsampleBlock2D", "CrossAttnDownBlock2D"), CROSS[1]),
            types(CROSS[0][::-1], CROSS[1]),
        ],
        "up_block_types": [types(CROSS[0], ("CrossAttnUpBlock2D", "ResnetUpsampleBlock2D"))],
        "mid_block_type": [{"mid_block_type": None}, {"mid_block_type": "UNetMidBlock2D"}],
        "only_cross_attention": [{"only_cross_attention": True}],
        "cross_attention_dim": [{"cross_attention_dim": (16, 16)}],
        "layers_per_block": [{"layers_per_block": (2, 1)}],
        "transformer_layers_per_block": [{"transformer_layers_per_block": (2, 1)}],
        "reverse_transformer_layers_per_block": [
            {
                "transformer_layers_per_block": ((2,), (1,)),
                "reverse_transformer_layers_per_block": ((1, 1), (2, 1)),
            }
        ],
        "use_linear_projection": [{"use_linear_projection": True}],
        "upcast_attention": [{"upcast_attention": True}],
        "conv_in_kernel": [{"conv_in_kernel": 5}],
        "conv_out_kernel": [{"conv_out_kernel": 1}],
    },
    "AutoencoderKL": ENCODED
    | {
        "latent_channels": [{"latent_channels": 3}],
        "use_quant_conv": [{"use_quant_conv": False}],
        "use_post_quant_conv": [{"use_post_quant_conv": False}],
    },
    "VQModel": ENCODED
    | {
        "latent_channels": [{"latent_channels": 5, "vq_embed_dim": 3}],
        "num_vq_embeddings": [{"num_vq_embeddings": 5}],
        "vq_embed_dim": [{"vq_embed_dim": 3, "latent_channels": 2}],
    },
}


def cases(kinds):
    for kind in kinds:
        for entry, variants in VARIANTS[kind].items():
            for i, change in enumerate(variants):
                yield pytest.param(kind, change, id=f"{kind}-{entry}-{i}")


def written(network, folder):
    """All weights random, so that no norm, bias or last layer is trivial."""
    draw = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for p in network.parameters():
            p.add_(0.1 * torch.randn(p.shape, generator=draw))
    network.save_pretrained(folder)
    return in_order(network.double().eval().requires_grad_(False))


def in_order(network):
    """The network, which group norm's own forward rule in torch fails on with other strides."""
    for part in network.modules():
        if isinstance(part, torch.nn.GroupNorm):
            part.register_forward_pre_hook(in_one_piece)
    return network


def in_one_piece(module, args):
    return (args[0].clone(memory_format=torch.contiguous_format),)


def pipeline(root, kind, change, tiny):
    """A folder with one network of the class, as changed, and that network in float64."""
    torch.manual_seed(0)
    network = getattr(diffusers, kind)(**BASE[kind] | change)
    if kind in entries.AUTOENCODERS:
        stock = written(network, root / "vqvae")
        diffusers.UNet2DModel(**BASE["UNet2DModel"]).save_pretrained(root / "unet")
        parts = {"unet": "UNet2DModel", "scheduler": "DDIMScheduler", "vqvae": kind}
    else:
        stock = written(network, root / "unet")
        parts = {"unet": kind, "scheduler": "DDIMScheduler"}
    text = kind == "UNet2DConditionModel"
    for name in ("scheduler", "tokenizer", "text_encoder") if text else ("scheduler",):
        (root / name).symlink_to(tiny["sd-1.5"] / name)
        parts.setdefault(name, "CLIP")
    index = {name: ["library", found] for name, found in parts.items()}
    (root / "model_index.json").write_text(json.dumps(index))
    return root, stock


def directions(x):
    draw = torch.Generator().manual_seed(2)
    return [torch.randn(x.shape, generator=draw, dtype=torch.float64) for _ in range(2)]


def assert_derivatives(generator, draw, x, **options):
    """`pushforward` equals forward mode of `draw`, the library's own network."""
    moves = directions(x)
    images, found = tangents.pushforward(generator, x, moves, steps=2, **options)
    for dx, ours in zip(moves, found, strict=True):
        with sdpa_kernel(SDPBackend.MATH):
            value, theirs = torch.func.jvp(draw, (x,), (dx,))
        torch.testing.assert_close(images, value, atol=1e-9, rtol=1e-9)
        assert float(theirs.abs().max()) > 1e-3
        torch.testing.assert_close(ours, theirs, atol=1e-9, rtol=1e-8)


@pytest.mark.parametrize(("kind", "change"), list(cases(entries.UNETS)))
def test_honoured_entries_of_a_unet_give_what_the_library_gives(kind, change, tiny, tmp_path):
    root, stock = pipeline(tmp_path, kind, change, tiny)
    generator = models.load(root, device="cpu", dtype=torch.float64)
    x, given, own = generator.noise(2, 0), {}, {}
    if kind == "UNet2DConditionModel":
        given, own["prompt"] = {"encoder_hidden_states": generator.embed("a face", 2)}, "a face"
    if "num_class_embeds" in change:
        given, own["class_labels"] = {"class_labels": torch.tensor([2, 0])}, [2, 0]
    channels = x.shape[1]

    def predict(y, t):
        return stock(y, t, return_dict=False, **given)[0][:, :channels]

    for t in (0, 700):
        torch.testing.assert_close(
            generator.epsilon(x, t, **own), predict(x, t), atol=1e-12, rtol=1e-10
        )

    def draw(y):
        for t, t_next in ((999, 0), (0, -1)):
            a, b = (1.0 if s < 0 else float(generator.alphas[s]) for s in (t, t_next))
            eps = predict(y, t)
            y = b**0.5 * (y - (1 - a) ** 0.5 * eps) / a**0.5 + (1 - b) ** 0.5 * eps
        return y

    twin = _without_decoder(generator)
    assert_derivatives(twin, draw, x, **own)
    _assert_taps(twin, stock, x, own, predict)


def _without_decoder(generator):
    generator.autoencoder = None
    return generator


def _assert_taps(generator, stock, x, own, predict):
    """h is the library's mid-block output, and shifting it is shifting it there."""
    if stock.mid_block is None:
        with pytest.raises(ValueError, match="no mid_block"), hspace.capture(generator):
            raise AssertionError
        return
    seen = []
    handle = stock.mid_block.register_forward_hook(lambda m, a, h: seen.append(h) or h + 0.5)
    shifted = predict(x, 300)
    handle.remove()
    with hspace.capture(generator) as h:
        generator.epsilon(x, 300, **own)
    torch.testing.assert_close(h[300], seen[0], atol=1e-11, rtol=1e-9)
    with hspace.inject(generator, lambda h, t: torch.full_like(h, 0.5)):
        found = generator.epsilon(x, 300, **own)
    torch.testing.assert_close(found, shifted, atol=1e-11, rtol=1e-9)


@pytest.mark.parametrize(("kind", "change"), list(cases(entries.AUTOENCODERS)))
def test_honoured_entries_of_an_autoencoder_give_what_the_library_gives(
    kind, change, tiny, tmp_path
):
    root, stock = pipeline(tmp_path, kind, change, tiny)
    generator = models.load(root, device="cpu", dtype=torch.float64)
    x, scale = generator.noise(2, 0), stock.config.scaling_factor
    images = stock.decode(x / scale).sample
    assert tuple(images.shape[1:]) == generator.image_shape
    torch.testing.assert_close(generator.decode(x), images, atol=1e-12, rtol=1e-10)
    pictures = images.clamp(-1, 1)
    found = stock.encode(pictures)
    latents = found.latents if kind == "VQModel" else found.latent_dist.mean
    torch.testing.assert_close(generator.encode(pictures), scale * latents, atol=1e-12, rtol=1e-10)
    if kind == "VQModel":
        with pytest.raises(ValueError, match="VQModel draws images that are piecewise constant"):
            tangents.pushforward(generator, x, [x], steps=2)
        with pytest.raises(ValueError, match="piecewise constant"):
            models.load(root, device="cpu", differentiable=True)
        return
    unet = in_order(copy.deepcopy(generator.unet))

    def draw(y):
        for t, t_next in ((999, 0), (0, -1)):
            step = generator.alpha(t), generator.alpha(t_next)
            y = sampling.update(y, unet(y, t, return_dict=False)[0], *step)
        return stock.decode(y / scale, return_dict=False)[0]

    assert_derivatives(generator, draw, x)


REFUSED = {  # entries whose default is no number or flag that a test could change by itself
    "time_embedding_type": "fourier",
    "norm_type": "spatial",
    "attention_type": "gated",
    "resnet_out_scale_factor": 1.4,
    "addition_embed_type_num_heads": 8,
}
WRONG = {  # of honoured entries, the values that are not
    "act_fn": "mish",
    "resnet_time_scale_shift": "spatial",
    "down_block_types": ["DownBlock2D", "SkipDownBlock2D"],
    "up_block_types": ["SkipUpBlock2D", "UpBlock2D"],
    "mid_block_type": "UNetMidBlock2DSimpleCrossAttn",
    "downsample_type": "fir",
    "upsample_type": "fir",
}


def refused():
    for kind, honoured in entries.HONOURED.items():
        for entry, usual in entries.defaults(kind).items():
            if entry not in honoured:
                other = not usual if isinstance(usual, bool) else 7 if usual is None else None
                yield pytest.param(kind, entry, REFUSED.get(entry, other), id=f"{kind}-{entry}")
            elif honoured[entry] is not entries.ANY:
                yield pytest.param(kind, entry, WRONG[entry], id=f"{kind}-{entry}-value")


@pytest.mark.parametrize(("kind", "entry", "value"), list(refused()))
def test_every_other_entry_is_refused_by_its_name(kind, entry, value, tmp_path):
    file, usual = tmp_path / "config.json", entries.defaults(kind).get(entry)
    assert value is not None and value != usual
    entries.check({"_class_name": kind, **BASE[kind], entry: usual}, file)
    with pytest.raises(ValueError, match=rf"config.json: {entry} = .*would not be honoured"):
        entries.check({"_class_name": kind, **BASE[kind], entry: value}, file)


def test_every_honoured_entry_is_the_librarys_and_is_compared_with_it():
    for kind, honoured in entries.HONOURED.items():
        assert set(honoured) <= set(entries.defaults(kind))
        assert set(honoured) == set(VARIANTS[kind])
        for entry, variants in VARIANTS[kind].items():
            assert all(entry in change for change in variants)


def test_entries_of_another_version_are_refused_where_they_say_something(tmp_path):
    config = {"_class_name": "UNet2DModel", **BASE["UNet2DModel"], "_diffusers_version": "0.1"}
    for silent in (None, False):
        entries.check(config | {"brand_new": silent}, tmp_path / "config.json")
    with pytest.raises(ValueError, match="brand_new = 3"):
        entries.check(config | {"brand_new": 3}, tmp_path / "config.json")


def test_a_refused_entry_is_named_when_the_folder_is_loaded(tiny, tmp_path):
    root, _ = pipeline(tmp_path, "UNet2DConditionModel", {"time_cond_proj_dim": 8}, tiny)
    with pytest.raises(ValueError, match="time_cond_proj_dim = 8"):
        models.load(root)
