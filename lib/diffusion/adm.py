"""Checkpoints of guided diffusion (ADM) and improved DDPM, rewritten as folders of a UNet2DModel.

Dhariwal and Nichol, "Diffusion Models Beat GANs on Image Synthesis" (2021), appendix; Nichol and
Dhariwal, "Improved Denoising Diffusion Probabilistic Models" (2021). A checkpoint is tensors alone:
its names tell depth, widths, attention and switches; heads, image size and noise are for the caller
to say, as the published flags do. `make convert ARGS="FILE FOLDER --image-size ..."`
"""

import argparse
import json
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from lib.diffusion import folders

State = dict[str, Tensor]
RESNET = {
    "in_layers.0": "norm1",
    "in_layers.2": "conv1",
    "emb_layers.1": "time_emb_proj",
    "out_layers.0": "norm2",
    "out_layers.3": "conv2",
    "skip_connection": "conv_shortcut",
}
ENDS = {
    "time_embed.0": "time_embedding.linear_1",
    "time_embed.2": "time_embedding.linear_2",
    "input_blocks.0.0": "conv_in",
    "out.0": "conv_norm_out",
    "out.2": "conv_out",
    "label_emb": "class_embedding",
    "middle_block.0": "mid_block.resnets.0",
    "middle_block.1": "mid_block.attentions.0",
    "middle_block.2": "mid_block.resnets.1",
}
DEPTH = {"input_blocks": 3, "output_blocks": 3, "label_emb": 1}  # of a layer's name; else 2
NEEDED = (
    "time_embed.0.weight",
    "input_blocks.0.0.weight",
    "middle_block.1.qkv.weight",
    "output_blocks.0.0.in_layers.0.weight",
    "out.2.bias",
)
SPACED = 1000  # the times that the networks were shown, whatever the number of noise levels


class Layout(NamedTuple):
    """What the names say: residual blocks a level, widths, which levels attend, how they resize."""

    layers: int
    widths: tuple[int, ...]
    attention: tuple[bool, ...]
    residual_resize: bool


def convert(
    file: str | Path,
    target: str | Path,
    *,
    image_size: int,
    heads: int | None = None,
    head_channels: int | None = None,
    new_attention_order: bool = False,
    noise_schedule: str = "linear",
    diffusion_steps: int = 1000,
) -> Path:
    """Write the folder `target` from a checkpoint `file` (.pt, or .safetensors); returns it.

    Arguments are the flags of the published scripts: image_size; num_heads or num_head_channels,
    one of the two; use_new_attention_order; noise_schedule, "linear" or "cosine"; diffusion_steps,
    1000 or more (of 4000, the 1000 levels whose times are whole are kept: the network was shown
    t 1000 / 4000). A pickle is opened with weights_only, so that no code runs; provenance.json
    keeps its SHA-256 and the flags. Raises ValueError for other networks, flags that do not fit
    the widths, and a switch that UNet2DModel cannot express, by name.
    """
    file, target = Path(file), Path(target)
    flags = {
        "image_size": image_size,
        "heads": heads,
        "head_channels": head_channels,
        "new_attention_order": new_attention_order,
        "noise_schedule": noise_schedule,
        "diffusion_steps": diffusion_steps,
    }
    scheduler = _scheduler(noise_schedule, diffusion_steps)
    state = _tensors(file)
    plan = layout(state)
    per_head = _head_channels(plan, heads, head_channels)
    network = _network(state, plan, per_head, image_size)
    _fill(network, renamed(state, plan, per_head, new_attention_order=new_attention_order))
    with folders.new_folder(target) as partial, folders.without_bars():
        network.save_pretrained(partial / "unet")
        scheduler.save_pretrained(partial / "scheduler")
        parts = {"scheduler": ["diffusers", "DDIMScheduler"], "unet": ["diffusers", "UNet2DModel"]}
        index = {"_class_name": "DDIMPipeline", **parts}
        (partial / "model_index.json").write_text(json.dumps(index, indent=1))
        record = {"source_sha256": {file.name: folders.file_hash(file)}, "flags": flags}
        (partial / "provenance.json").write_text(json.dumps(record, indent=1))
    return target


def _tensors(file: Path) -> State:
    """The named tensors of a checkpoint."""
    from safetensors.torch import load_file

    if not file.is_file():
        raise ValueError(f"{file} is not there; give the checkpoint's file")
    return load_file(file) if file.suffix == ".safetensors" else folders.unpickled(file)


def layout(state: State) -> Layout:
    """The network that a checkpoint's names describe.

    A level has n residual blocks, n + 1 on the way up, whose last resizes: the places of the
    resizing layers give n. Raises ValueError, which names the switch, for other networks.
    """
    for name in NEEDED:
        if name not in state:
            raise ValueError(
                f"no {name} in the checkpoint: it is no denoiser of guided or improved diffusion "
                "(a classifier of theirs is none); the DDPM files of CelebA-HQ and LSUN "
                "(temb.dense.0) are in `folders.HUB`"
            )
    before, after = state["input_blocks.0.0.weight"].shape[1], len(state["out.2.bias"])
    if before not in (1, 3) or after not in (before, 2 * before):
        raise ValueError(
            f"in_channels = {before}, out_channels = {after}: the kit takes denoisers of grey or "
            "colour images; an upsampler sees a second image beside its own"
        )
    count = _blocks(state, "output_blocks")
    ups = [i for i in range(count) if _resizer(state, i) is not None]
    layers = ups[0] if ups else count - 1
    levels = count // (layers + 1)
    if _blocks(state, "input_blocks") != count or ups != [
        (i + 1) * (layers + 1) - 1 for i in range(levels - 1)
    ]:
        raise ValueError(
            "conv_resample = False, or levels of different depth: blocks without their resizing "
            "layer cannot be told apart; UNet2DModel has a convolution or a residual block there"
        )
    firsts = [1 + level * (layers + 1) for level in range(levels)]
    widths = tuple(len(state[f"input_blocks.{i}.0.in_layers.2.bias"]) for i in firsts)
    base = state["time_embed.0.weight"].shape[1]
    if not base == len(state["input_blocks.0.0.bias"]) == widths[0]:
        raise ValueError(
            f"first width {base} of the time embedding, {widths[0]} of the first level: "
            "UNet2DModel has one for both; this leaves out networks whose channel_mult does not "
            "begin with 1 (512x512_diffusion.pt of guided diffusion)"
        )
    attention = tuple(f"input_blocks.{i}.1.qkv.weight" in state for i in firsts)
    down = f"input_blocks.{layers + 1}.0"
    return Layout(layers, widths, attention, f"{down}.in_layers.0.weight" in state)


def _blocks(state: State, part: str) -> int:
    return len({name.split(".")[1] for name in state if name.startswith(f"{part}.")})


def _resizer(state: State, block: int) -> str | None:
    """Prefix of the layer of an output block that doubles the resolution."""
    for place in ("1", "2"):
        prefix = f"output_blocks.{block}.{place}"
        if f"{prefix}.conv.weight" in state or f"{prefix}.in_layers.0.weight" in state:
            return prefix
    return None


def _head_channels(plan: Layout, heads: int | None, head_channels: int | None) -> int:
    """The one width of a head that UNet2DModel has at all levels."""
    if (heads is None) == (head_channels is None):
        raise ValueError(
            f"heads = {heads}, head_channels = {head_channels}: give one of the two, num_heads or "
            "num_head_channels of the published flags"
        )
    pairs = zip(plan.widths, plan.attention, strict=True)
    wide = {width for width, attends in pairs if attends} | {plan.widths[-1]}
    if heads is not None and len({width // heads for width in wide}) > 1:
        raise ValueError(
            f"heads = {heads} at the widths {sorted(wide)}: UNet2DModel has one width of a head at "
            "all levels; this leaves out networks with num_heads (128x128_diffusion.pt of guided, "
            "ImageNet 64 of improved diffusion), not those with num_head_channels"
        )
    found = head_channels or max(wide) // heads
    if any(width % found for width in wide):
        raise ValueError(f"heads of {found} channels do not divide the widths {sorted(wide)}")
    return found


def _network(state: State, plan: Layout, per_head: int, image_size: int) -> nn.Module:
    """An empty UNet2DModel of that layout."""
    from diffusers import UNet2DModel

    kinds = ("ResnetDownsampleBlock2D", "ResnetUpsampleBlock2D")
    down, up = kinds if plan.residual_resize else ("DownBlock2D", "UpBlock2D")
    resize = "resnet" if plan.residual_resize else "conv"
    first = state["input_blocks.1.0.emb_layers.1.bias"]
    classes = state.get("label_emb.weight")
    with torch.device("meta"):
        return UNet2DModel(
            sample_size=image_size,
            in_channels=state["input_blocks.0.0.weight"].shape[1],
            out_channels=len(state["out.2.bias"]),
            block_out_channels=plan.widths,
            layers_per_block=plan.layers,
            down_block_types=["AttnDownBlock2D" if a else down for a in plan.attention],
            up_block_types=["AttnUpBlock2D" if a else up for a in plan.attention[::-1]],
            downsample_type=resize,
            upsample_type=resize,
            resnet_time_scale_shift="scale_shift" if len(first) > plan.widths[0] else "default",
            attention_head_dim=per_head,
            attn_norm_num_groups=32,
            num_class_embeds=None if classes is None else len(classes),
        )


def renamed(
    state: State, plan: Layout, per_head: int, *, new_attention_order: bool = False
) -> State:
    """The tensors under the library's names.

    The rows of qkv are, head after head, q, k and v of that head; in the new order, q of all heads,
    then k, then v.
    """
    prefixes, found = _prefixes(state, plan), {}
    for name, value in state.items():
        parts = name.split(".")
        depth = DEPTH.get(parts[0], 2)
        old, rest = ".".join(parts[:depth]), ".".join(parts[depth:])
        if old not in prefixes:
            raise ValueError(f"{name} has no place in a UNet2DModel; the network has another form")
        found |= _placed(prefixes[old], rest, value, per_head, new_attention_order)
    return found


def _prefixes(state: State, plan: Layout) -> dict[str, str]:
    """{layer of the checkpoint: layer of a UNet2DModel}."""
    found = dict(ENDS)
    step = plan.layers + 1
    for i in range(len(plan.widths) * step):
        level, j = divmod(i, step)
        own = "downsamplers.0" if j == plan.layers else f"resnets.{j}"
        found[f"input_blocks.{i + 1}.0"] = f"down_blocks.{level}.{own}"
        found[f"input_blocks.{i + 1}.1"] = f"down_blocks.{level}.attentions.{j}"
        found[f"output_blocks.{i}.0"] = f"up_blocks.{level}.resnets.{j}"
        found[f"output_blocks.{i}.1"] = f"up_blocks.{level}.attentions.{j}"
        if (resizer := _resizer(state, i)) is not None:
            found[resizer] = f"up_blocks.{level}.upsamplers.0"
    return found


def _placed(
    prefix: str, rest: str, value: Tensor, per_head: int, new_attention_order: bool
) -> State:
    """One tensor of a layer under the names of its counterpart."""
    layer, _, kind = rest.rpartition(".")
    if layer == "qkv":
        flat = value.flatten(1) if value.ndim > 1 else value
        width = len(flat) // 3
        shape = (3, width // per_head, per_head) if new_attention_order else (-1, 3, per_head)
        rows = torch.arange(len(flat)).view(shape)
        chosen = rows if new_attention_order else rows.transpose(0, 1)
        names = (f"{prefix}.to_{part}.{kind}" for part in "qkv")
        return {name: flat[own.flatten()] for name, own in zip(names, chosen, strict=True)}
    if layer == "proj_out":
        return {f"{prefix}.to_out.0.{kind}": value.flatten(1) if value.ndim > 1 else value}
    others = {"": "", "norm": "group_norm", "op": "conv", "conv": "conv"}
    inner = RESNET.get(layer, others.get(layer, layer))
    return {".".join(filter(None, (prefix, inner, kind))): value}


def _fill(network: nn.Module, state: State) -> None:
    """Give the network its tensors; a name or a shape that does not fit is an error."""
    try:
        network.load_state_dict(state, assign=True)
    except RuntimeError as error:
        raise ValueError(
            f"the checkpoint is no network of that form ({str(error).splitlines()[1].strip()}); "
            "attention must be at all residual blocks of a level or at none"
        ) from error


def _scheduler(noise_schedule: str, steps: int) -> Any:
    """The 1000 noise levels that belong to whole times."""
    from diffusers import DDIMScheduler

    kinds = {"linear": "linear", "cosine": "squaredcos_cap_v2"}
    if noise_schedule not in kinds or steps < SPACED or steps % SPACED:
        raise ValueError(
            f"noise_schedule = {noise_schedule!r}, diffusion_steps = {steps}: choose 'linear' or "
            "'cosine', and 1000 or a multiple of it"
        )
    scale = SPACED / steps
    options = {
        "beta_schedule": kinds[noise_schedule],
        "num_train_timesteps": steps,
        "beta_start": 1e-4 * scale,
        "beta_end": 0.02 * scale,
    }
    safe = {"clip_sample": False, "set_alpha_to_one": True}
    if steps == SPACED:
        return DDIMScheduler(**options, **safe)
    alphas = torch.cumprod(1 - DDIMScheduler(**options).betas.double(), 0)[:: steps // SPACED]
    ratios = alphas / torch.cat([torch.ones(1, dtype=alphas.dtype), alphas[:-1]])
    return DDIMScheduler(trained_betas=(1 - ratios).tolist(), **safe)


def main(arguments: list[str] | None = None) -> None:
    """Convert one checkpoint from the command line."""
    parser = argparse.ArgumentParser(prog="convert", description=__doc__)
    parser.add_argument("file")
    parser.add_argument("target")
    parser.add_argument("--image-size", type=int, required=True)
    parser.add_argument("--heads", type=int)
    parser.add_argument("--head-channels", type=int)
    parser.add_argument("--new-attention-order", action="store_true")
    parser.add_argument("--noise-schedule", default="linear")
    parser.add_argument("--diffusion-steps", type=int, default=SPACED)
    try:
        print(convert(**vars(parser.parse_args(arguments))))
    except ValueError as error:
        parser.exit(1, f"{error}\n")


if __name__ == "__main__":
    main()
