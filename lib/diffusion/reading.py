"""A diffusers folder as the parts of a `Generator`: only what its index names, or a clear no."""

import warnings
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from lib.diffusion import entries, folders

ONLY_USED_ELSEWHERE = ("safety_checker", "feature_extractor")  # neither makes an image
AUTOENCODER_FOLDERS = ("vae", "vqvae")
NEEDED_BY_TEXT = ("tokenizer", "text_encoder")
ALMOST_ZERO = 2.0**-24  # the alpha of a zero terminal SNR, as the library's Euler samplers take it
FIRST_MENDED = (0, 9)  # the version from which on a text model's sample_size is what it says


def read(folder: Path, dtype: torch.dtype) -> dict[str, Any]:
    """The parts of a diffusers folder, as the arguments of `models.Generator`.

    Classes come from our own table, never from the folder. Raises ValueError for a folder without
    an index, another kind of model, an entry that would not be honoured (`entries.HONOURED`), a
    part that is missing or unknown, and unreadable weights.
    """
    import diffusers

    inner = folder / "unet" if (folder / "unet").is_dir() else folder
    names = _part_names(folder)
    config = _network_config(inner, entries.UNETS, folder)
    kind = config["_class_name"]
    unet = _network(getattr(diffusers, kind), inner, dtype)
    parts = {
        "unet": unet,
        "latent_shape": _latent_shape(config, unet, folder),
        "classes": config.get("num_class_embeds"),
        **_schedule(folder),
    }
    if kind == "UNet2DConditionModel":
        parts |= _text_parts(folder, unet, dtype)
    for name in names & set(AUTOENCODER_FOLDERS):
        parts["autoencoder"] = _autoencoder(folder / name, dtype, parts["latent_shape"][0])
    return parts


def _part_names(folder: Path) -> set[str]:
    """The parts that model_index.json names; without one, the folders that are there.

    A bare network answers for itself, unless the index beside it names an autoencoder: its latents
    would pass for images.
    """
    index = folder / "model_index.json"
    if not index.is_file():
        beside = _named(folder.parent / "model_index.json") & set(AUTOENCODER_FOLDERS)
        if beside:
            raise ValueError(
                f"{folder} makes latents for {' and '.join(beside)} beside it; give the folder of "
                f"the whole pipeline, {folder.parent}"
            )
        return {name for name in AUTOENCODER_FOLDERS if (folder / name).is_dir()}
    names = _named(index)
    for name in sorted(names - {"unet", "scheduler", *AUTOENCODER_FOLDERS, *NEEDED_BY_TEXT}):
        raise ValueError(
            f"{index} names the part {name}, which the kit does not know; it takes a unet with a "
            "scheduler, a vae or vqvae, and a tokenizer with a text_encoder"
        )
    for name in sorted(names):
        _demand(folder, name)
    return names


def _demand(folder: Path, name: str) -> None:
    """Raise ValueError for a part that is not there, or has a broken JSON file."""
    if not (folder / name).is_dir():
        raise ValueError(f"{folder} has no {name}; give the folder of the whole pipeline")
    for file in sorted((folder / name).glob("*.json")):
        folders.read_json(file)


def _named(index: Path) -> set[str]:
    """Parts with a class in a model_index.json, but for those that make no image."""
    if not index.is_file():
        return set()
    entries_of = folders.read_json(index).items()
    found = {name for name, value in entries_of if isinstance(value, list) and value[-1]}
    return found - set(ONLY_USED_ELSEWHERE)


def _network_config(inner: Path, kinds: tuple[str, ...], folder: Path) -> dict[str, Any]:
    """The checked config.json of a network of one of the kinds."""
    file = inner / "config.json"
    if not file.is_file():
        raise ValueError(
            f"{folder} has no index: neither model_index.json with a unet folder, nor the "
            "config.json of a UNet2DModel; save it with save_pretrained"
        )
    config = folders.read_json(file)
    if config.get("_class_name") not in kinds:
        raise ValueError(
            f"{inner} holds a {config.get('_class_name')}; the kit takes a {' or '.join(kinds)}"
        )
    entries.check(config, file)
    return config


def _latent_shape(config: dict, unet: nn.Module, folder: Path) -> tuple[int, ...]:
    size, channels = unet.config.sample_size, unet.config.in_channels
    if unet.config.out_channels not in (channels, 2 * channels):
        raise ValueError(
            f"{folder} maps {channels} channels to {unet.config.out_channels}; the kit takes as "
            "many, or twice as many for a learned sigma (no inpainting or upscaling models)"
        )
    if size is None:
        raise ValueError(f"{folder}: the U-Net's config.json has no sample_size; write it there")
    if _understated(config):
        size = 64
    return (channels, *((size, size) if isinstance(size, int) else size))


def _understated(config: dict) -> bool:
    """Whether the library reads the sample_size of a text model as 64, whatever is written."""
    numbers = config.get("_diffusers_version", "99").split(".")[:2]
    version = tuple(int(number) if number.isdigit() else 0 for number in numbers)
    size, text = config.get("sample_size"), config["_class_name"] == "UNet2DConditionModel"
    return text and isinstance(size, int) and size < 64 and version < FIRST_MENDED


def _text_parts(folder: Path, unet: nn.Module, dtype: torch.dtype) -> dict[str, Any]:
    """Tokenizer and text encoder, and the words of the captions where these are listed."""
    from transformers import CLIPTextModel, CLIPTokenizer

    for name in NEEDED_BY_TEXT:
        _demand(folder, name)
    config = folders.read_json(folder / "text_encoder" / "config.json")
    if config.get("model_type") not in ("clip_text_model", "clip"):
        raise ValueError(
            f"{folder / 'text_encoder'} holds a {config.get('model_type')}; the kit takes the text "
            "half of CLIP (clip_text_model)"
        )
    encoder = _network(CLIPTextModel, folder / "text_encoder", dtype)
    widths = set(entries.as_list(unet.config.cross_attention_dim))
    if widths != {encoder.config.hidden_size}:
        raise ValueError(
            f"{folder}: the text encoder gives {encoder.config.hidden_size} numbers a token, the "
            f"U-Net takes {widths}; fetch both from the same place"
        )
    tokenizer = CLIPTokenizer.from_pretrained(folder / "tokenizer")
    longest = encoder.config.max_position_embeddings  # a tokenizer may leave its limit open
    tokenizer.model_max_length = min(tokenizer.model_max_length, longest)
    words = folder / "tokenizer" / folders.WORDS
    known = {"words": folders.read_json(words)} if words.is_file() else {}
    return {"tokenizer": tokenizer, "text_encoder": encoder, **known}


def _autoencoder(folder: Path, dtype: torch.dtype, channels: int) -> nn.Module:
    import diffusers

    config = _network_config(folder, entries.AUTOENCODERS, folder)
    network = _network(getattr(diffusers, config["_class_name"]), folder, dtype)
    quantised = config["_class_name"] == "VQModel"
    own = (config.get("vq_embed_dim") if quantised else None) or network.config.latent_channels
    if own != channels:
        raise ValueError(
            f"{folder} takes latents of {own} channels, the U-Net makes {channels}; fetch both "
            "from the same place"
        )
    if quantised and "scaling_factor" not in config:
        # Older than the entry: latents were trained unscaled, and the library's default is KL's.
        warnings.warn(f"{folder}: no scaling_factor, latents are not scaled", stacklevel=4)
        network.register_to_config(scaling_factor=1.0)
    return network


def _schedule(folder: Path) -> dict[str, Any]:
    """Alphas and output head of a folder, whatever the class of its scheduler.

    Betas are the float32 values of the training code; their product is taken in float64. A zero
    terminal SNR ends at alpha = 2^-24 with a v head, which says there what the clean image is; an
    ε head does not, and is refused.
    """
    from diffusers import DDPMScheduler

    places = (folder / "scheduler", folder, folder.parent / "scheduler")
    files = [p / "scheduler_config.json" for p in places]
    found = next((file for file in files if file.is_file()), None)
    if found is None:
        warnings.warn(
            f"{folder} has no scheduler_config.json: taking linear betas 1e-4 ... 0.02, T = 1000",
            stacklevel=4,
        )
    config = folders.read_json(found) if found else {"beta_start": 1e-4}
    if "beta_start" not in config and config.get("trained_betas") is None:
        raise ValueError(
            f"{found} describes {config.get('_class_name')} without betas; only "
            "variance-preserving models can be sampled by DDIM"
        )
    try:
        scheduler = DDPMScheduler.from_config(config)
    except NotImplementedError as error:
        raise ValueError(f"{found}: {error}; the kit knows linear, scaled and cosine betas") from (
            error
        )
    prediction = scheduler.config.prediction_type
    return {
        "alphas": _ended(torch.cumprod(1 - scheduler.betas.double(), 0), prediction, found),
        "prediction": prediction,
    }


def _ended(alphas: Tensor, prediction: str, file: Path | None) -> Tensor:
    if float(alphas[-1]) > 0 or not bool((alphas[:-1] > 0).all()):
        return alphas  # others than the last are the Generator's to refuse
    if prediction != "v_prediction":
        raise ValueError(
            f"{file}: zero terminal SNR, alpha = 0 at the last time, where a predicted noise says "
            "nothing of the image; use a v_prediction model, or, if it was trained without, write "
            "rescale_betas_zero_snr = false"
        )
    alphas[-1] = ALMOST_ZERO
    return alphas


def _network(kind: Any, folder: Path, dtype: torch.dtype) -> nn.Module:
    """One network from safetensors; incomplete files and missing weights are errors."""
    variant = _checked_files(folder)
    try:
        with folders.without_bars():
            model, report = kind.from_pretrained(
                folder,
                dtype=dtype,
                variant=variant,
                output_loading_info=True,
                local_files_only=True,
                use_safetensors=True,
            )
    except OSError as error:
        files = ", ".join(file.name for file in sorted(folder.glob("*.safetensors")))
        raise ValueError(
            f"{folder} holds {files}, where the library looks for "
            "diffusion_pytorch_model.safetensors (a text encoder's is model.safetensors): rename it"
        ) from error
    except RuntimeError as error:  # transformers alone raises it for shapes, torch for memory
        if "mismatched_sizes" not in str(error):
            raise
        raise ValueError(
            f"{folder}: weights of another shape than config.json says; fetch both from the same "
            "place"
        ) from error
    if report["missing_keys"] or report["mismatched_keys"]:
        wrong = [*report["missing_keys"], *report["mismatched_keys"]]
        raise ValueError(
            f"{folder}: weights missing or of the wrong shape for config.json ({wrong[0]} and "
            f"{len(wrong) - 1} more); fetch weights and config from the same place"
        )
    return model


def _checked_files(folder: Path) -> str | None:
    """Raise ValueError for weights that are absent, cut or lack a piece; their variant, if any."""
    from safetensors import SafetensorError, safe_open

    files = sorted(folder.glob("*.safetensors"))
    if not files:
        for path in sorted(folder.iterdir()):
            folders.refuse_pickle(path)
        raise ValueError(f"{folder} holds no weights; expected a .safetensors file")
    for file in files:
        try:
            with safe_open(file, framework="pt"):
                pass
        except SafetensorError as error:
            raise ValueError(f"{file} is truncated or damaged: fetch or write it again") from error
    half = all(".fp16" in file.name for file in files)
    for index in sorted(folder.glob("*.safetensors.index*.json")):
        pieces = set(folders.read_json(index)["weight_map"].values())
        for piece in sorted(pieces - {file.name for file in files}):
            if half == (".fp16" in index.name):
                raise ValueError(
                    f"{folder} lacks {piece}, one of the {len(pieces)} pieces that {index.name} "
                    "names: fetch it again"
                )
    return "fp16" if half else None
