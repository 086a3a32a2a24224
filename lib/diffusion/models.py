"""One interface to any diffusion model: pixel or latent, with or without text, any output head.

`load` finds the weights and returns a `Generator`, the only object that samplers and edits meet.
The notation is that of DDIM (Song et al. 2021): alpha_t is the cumulative product of 1 - beta.
"""

import copy
import math
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from lib.diffusion import folders, reading
from lib.diffusion.differentiable import make_differentiable
from lib.diffusion.prompts import check

IMAGE_LIMIT = 1.25  # a sampler overshoots [-1, 1] a little; pixels in 0..255 do not hide below this


def unit_normal(shape: Sequence[int], *key: int) -> Tensor:
    """One float32 standard normal tensor whose values depend on `shape` and `key` alone.

    Each sample owns a CPU generator, so a draw never depends on the batch or the device. All keys
    are integers in [0, 2^32); raises ValueError otherwise.
    """
    if any(not 0 <= int(k) < 2**32 for k in key):
        raise ValueError(
            f"seed and indices {key} must lie in 0 ... 2^32 - 1; choose a smaller seed"
        )
    generator = np.random.default_rng([int(k) for k in key])
    return torch.from_numpy(generator.standard_normal(tuple(shape), dtype=np.float32))


def real_numbers(values: object, name: str) -> Tensor:
    """The values as a tensor; raises ValueError, which calls them `name`, unless they are real."""
    try:
        found = torch.as_tensor(values)
    except (TypeError, ValueError, RuntimeError) as error:
        found = error
    if isinstance(found, Exception) or found.is_complex():
        raise ValueError(
            f"{name}: a {type(values).__name__} of these values is no tensor of real numbers; give "
            "one of shape (n, c, h, w), an array or lists (a picture: its pixels, channels first)"
        )
    return found


class Generator:
    """A diffusion model as the samplers see it: noise in, predicted noise out.

    unet: the denoiser; alphas: (T,) float64 cumulative products on the CPU; latent_shape:
    (channels, height, width) of what the denoiser sees; source and revision: where the weights
    come from (revision is the commit of a hub repository, else None). With a text encoder the
    model takes prompts, of `words` alone where the captions had no others; with `classes` it takes
    labels 0 ... classes - 1; with an autoencoder the latents are not pixels.
    """

    def __init__(
        self,
        unet: nn.Module,
        alphas: Tensor,
        latent_shape: Sequence[int],
        *,
        prediction: str = "epsilon",
        autoencoder: nn.Module | None = None,
        tokenizer: Any = None,
        words: Collection[str] | None = None,
        text_encoder: nn.Module | None = None,
        classes: int | None = None,
        source: str = "",
        revision: str | None = None,
    ) -> None:
        if prediction not in ("epsilon", "v_prediction"):
            raise ValueError(
                f"prediction type {prediction!r} is not supported; 'epsilon' and 'v_prediction' are"
            )
        self.unet, self.autoencoder, self.text_encoder = unet, autoencoder, text_encoder
        self.tokenizer, self.words, self.prediction = tokenizer, words, prediction
        self.classes = classes
        self.alphas = alphas.detach().to("cpu", torch.float64)
        if not bool((self.alphas > 0).all() and (self.alphas < 1).all()):
            low, high = float(self.alphas.min()), float(self.alphas.max())
            raise ValueError(
                f"alphas reach {low:.3g} ... {high:.3g}; they must lie strictly between 0, pure "
                "noise without signal (zero SNR), and 1, no noise: change the betas of the schedule"
            )
        self.latent_shape = tuple(int(s) for s in latent_shape)
        self.source, self.revision = source, revision
        self._embeddings: dict[str, Tensor] = {}
        self._hash: tuple[tuple, str] | None = None

    @property
    def device(self) -> torch.device:
        """Where the network lives."""
        return next(self.unet.parameters()).device

    @property
    def dtype(self) -> torch.dtype:
        """The type of latents and images: float32, or float64 for a float64 network.

        A half-precision network computes in its own type and answers in float32.
        """
        own = next(self.unet.parameters()).dtype
        return own if own == torch.float64 else torch.float32

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(channels, height, width) of an image, read off the autoencoder's strides."""
        if self.autoencoder is None:
            return self.latent_shape
        config = self.autoencoder.config
        factor = 2 ** (len(config.block_out_channels) - 1)
        return (config.in_channels, *(factor * s for s in self.latent_shape[1:]))

    @property
    def weight_hash(self) -> str:
        """SHA-256 (16 hex digits) of all weights, the noise schedule and the output head."""
        state = [(n, v) for part in self._parts() for n, v in part.state_dict().items()]
        stamp = tuple((v.data_ptr(), v._version) for _, v in state)
        if self._hash is None or self._hash[0] != stamp:
            notes = self.prediction, str(self.alphas.tolist())
            self._hash = stamp, folders.weight_hash(state, *notes)
        return self._hash[1]

    def alpha(self, t: int) -> float:
        """Cumulative product at training time t; 1 for t < 0, the clean image."""
        return 1.0 if t < 0 else float(self.alphas[t])

    def noise(self, n: int, seed: int, *, first: int = 0) -> Tensor:
        """n latents of pure noise, (n, *latent_shape); row i depends on (seed, first + i) alone."""
        if not all(hasattr(k, "__index__") for k in (n, seed, first)):
            raise ValueError(
                f"n = {n!r}, seed = {seed!r}, first = {first!r}: give whole numbers, noise(4, "
                "seed=0)"
            )
        if n < 1:
            raise ValueError(f"n = {n}: ask for at least one latent")
        rows = [unit_normal(self.latent_shape, seed, first + i) for i in range(n)]
        return torch.stack(rows).to(self.device, self.dtype)

    def epsilon(
        self,
        x: Tensor,
        t: int | Tensor,
        *,
        prompt: str | Sequence[str] | None = None,
        guidance: float = 1.0,
        negative: str = "",
        class_labels: int | Sequence[int] | Tensor | None = None,
    ) -> Tensor:
        """Predicted noise for latents x (n, c, h, w) at training time t, one value or (n,).

        v heads give sqrt(alpha) v + sqrt(1 - alpha) x; of a learned-sigma head the first half is
        used. With guidance g the answer is eps_neg + g (eps_prompt - eps_neg) (Ho and Salimans
        2022) from one call on 2n rows, the `negative` rows first. `prompt=None` is the empty
        prompt. class_labels: one class for all rows or one for each, for a model of classes, and
        for no other. Raises ValueError for a time outside the schedule, a prompt that is too long,
        a prompt or guidance for a model without text, a guidance that is not finite, and labels
        that are missing, out of range or not taken.
        """
        if not math.isfinite(guidance):
            raise ValueError(f"guidance = {guidance}: choose a finite number, 1 for none")
        t, labels = self._times(t, x), self._labels(class_labels, x)
        if self.text_encoder is None:
            self._refuse_text(prompt, guidance)
            return self._noise_of(self._network(x, t, **labels), x, t)
        context = self.embed(prompt, len(x))
        if guidance == 1.0:
            return self._noise_of(self._network(x, t, encoder_hidden_states=context), x, t)
        context = torch.cat([self.embed(negative, len(x)), context])
        twice = torch.cat([x, x]), torch.cat([t, t])
        output = self._network(*twice, encoder_hidden_states=context)
        without, given = output.chunk(2)
        return self._noise_of(without + guidance * (given - without), x, t)

    def embed(self, prompt: str | Sequence[str] | None, n: int) -> Tensor:
        """Text states (n, tokens, width); each distinct prompt is encoded once and kept.

        Raises ValueError for other than n prompts, one too long, or a word outside the captions.
        """
        prompts = [prompt or ""] * n if prompt is None or isinstance(prompt, str) else list(prompt)
        if len(prompts) != n:
            raise ValueError(f"{len(prompts)} prompts for {n} latents; give one prompt, or {n}")
        missing = [p for p in dict.fromkeys(prompts) if p not in self._embeddings]
        for i in range(0, len(missing), 64):
            self._encode_prompts(missing[i : i + 64])
        if len(set(prompts)) == 1:
            return self._embeddings[prompts[0]].expand(n, -1, -1)
        return torch.stack([self._embeddings[p] for p in prompts])

    def encode(self, images: Tensor) -> Tensor:
        """Latents of images (n, c, h, w) in [-1, 1]: the images themselves, or scaling x mean.

        An autoencoder with a codebook has no mean; its latents are not yet quantised, as `decode`
        does that.
        Raises ValueError for a wrong shape, values that are not finite or lie outside [-1, 1].
        """
        images = self.check_images(images)
        if self.autoencoder is None:
            return images
        own = next(self.autoencoder.parameters()).dtype
        found = self.autoencoder.encode(images.to(own))
        latents = found.latents if "latents" in found else found.latent_dist.mode()
        return latents.to(self.dtype) * self.autoencoder.config.scaling_factor

    def check_images(self, images: Tensor) -> Tensor:
        """The images on the model's device and in its type; raises ValueError as `encode` does."""
        images = real_numbers(images, "images").to(self.device, self.dtype)
        if images.ndim != 4 or len(images) == 0 or tuple(images.shape[1:]) != self.image_shape:
            raise ValueError(
                f"images have shape {tuple(images.shape)}; {self.source or 'this model'} takes "
                f"(n, {', '.join(map(str, self.image_shape))}) with n >= 1: resize them first"
            )
        if not bool(images.isfinite().all()) or float(images.detach().abs().max()) > IMAGE_LIMIT:
            raise ValueError(
                f"images reach {float(images.min()):.3g} ... {float(images.max()):.3g}; they must "
                "be finite and in [-1, 1]: map 0..255 by x / 127.5 - 1, or clamp overshoots"
            )
        return images

    def decode(self, latents: Tensor) -> Tensor:
        """Images of latents (n, *latent_shape), not clipped; the identity for a pixel model."""
        if self.autoencoder is None:
            return latents
        own = next(self.autoencoder.parameters()).dtype
        scaled = latents.to(own) / self.autoencoder.config.scaling_factor
        return self.autoencoder.decode(scaled).sample.to(self.dtype)

    def to(self, dtype: torch.dtype) -> "Generator":
        """A copy that computes in `dtype`, for instance float64 for a study of rounding."""
        twin = copy.copy(self)
        for name in ("unet", "autoencoder", "text_encoder"):
            if (part := getattr(self, name)) is not None:
                setattr(twin, name, copy.deepcopy(part).to(dtype))
        twin._embeddings, twin._hash = {}, None
        return twin

    def _parts(self) -> list[nn.Module]:
        parts = (self.unet, self.autoencoder, self.text_encoder)
        return [part for part in parts if part is not None]

    def _times(self, t: int | Tensor, x: Tensor) -> Tensor:
        times, last = torch.as_tensor(t), len(self.alphas) - 1
        if times.is_floating_point() or times.ndim > 1 or times.numel() not in (1, len(x)):
            raise ValueError(f"t must be one integer or {len(x)} integers, not {t!r}")
        if times.device.type == "cpu" and not (0 <= int(times.min()) <= int(times.max()) <= last):
            raise ValueError(f"t = {t} leaves the training times; give integers in 0 ... {last}")
        return times.to(x.device).expand(len(x))

    def _refuse_text(self, prompt: object, guidance: float) -> None:
        if prompt is not None or guidance != 1.0:
            raise ValueError(
                f"prompt = {prompt!r}, guidance = {guidance}: {self.source or 'this model'} is "
                "unconditional, it takes no text; leave both out, or load a text model such as "
                "'avatars-sd'"
            )

    def _labels(self, labels: int | Sequence[int] | Tensor | None, x: Tensor) -> dict[str, Tensor]:
        """{"class_labels": (n,)} of a model of classes, {} of any other."""
        if self.classes is None:
            if labels is not None:
                raise ValueError(
                    f"class_labels = {labels!r}: {self.source or 'this model'} has no classes; "
                    "leave them out"
                )
            return {}
        found = None if labels is None else real_numbers(labels, "class_labels")
        whole = found is not None and not (found.is_floating_point() or found.dtype == torch.bool)
        fits = whole and found.ndim < 2 and found.numel() in (1, len(x))
        if not fits or not 0 <= int(found.min()) <= int(found.max()) < self.classes:
            raise ValueError(
                f"class_labels = {labels!r}: {self.source or 'this model'} wants one integer in "
                f"0 ... {self.classes - 1}, or one for each of {len(x)} rows"
            )
        return {"class_labels": found.to(x.device, torch.long).expand(len(x))}

    def _network(self, x: Tensor, t: Tensor, **given: Tensor) -> Tensor:
        own = next(self.unet.parameters()).dtype
        given = {k: v.to(own) if v.is_floating_point() else v for k, v in given.items()}
        output = self.unet(x.to(own), t, return_dict=False, **given)[0].to(x.dtype)
        return output[:, : x.shape[1]]

    def _noise_of(self, output: Tensor, x: Tensor, t: Tensor) -> Tensor:
        if self.prediction == "epsilon":
            return output
        alpha = self.alphas.to(x.device)[t].view(-1, 1, 1, 1)
        return alpha.sqrt().to(x.dtype) * output + (1 - alpha).sqrt().to(x.dtype) * x

    def _encode_prompts(self, prompts: list[str]) -> None:
        for prompt in prompts:
            check(prompt, self.tokenizer, self.words)
        limit = self.tokenizer.model_max_length
        tokens = self.tokenizer(
            prompts, padding="max_length", max_length=limit, return_tensors="pt"
        ).input_ids
        with torch.no_grad():
            states = self.text_encoder(tokens.to(self.device)).last_hidden_state
        self._embeddings.update(zip(prompts, states, strict=True))


def load(
    name: str | Path,
    *,
    device: str | torch.device = "auto",
    differentiable: bool = False,
    dtype: torch.dtype = torch.float32,
    fast: bool = False,
    revision: str | None = None,
) -> Generator:
    """The generator called `name`: an embedded model, a diffusers folder, or a hub id.

    name: 'avatars-ddpm', 'avatars-sd', a folder with model_index.json (or of a bare UNet2DModel),
    or a hub id. Ids in `folders.HUB` are pinned to a commit; any other id needs `revision`, a full
    commit hash, because a branch moves. device: 'auto' is the GPU where there is one.
    differentiable: attention and group norm with a forward-mode rule, see `make_differentiable`.
    dtype: float32 or float64, of network, latents and images alike. fast: on a GPU, half precision,
    channels-last and compilation, and hooks set after the first call may be ignored; nothing on a
    CPU.
    Only safetensors are read, except for listed ids that have nothing but a pickle: it is loaded
    with weights_only, its hash recorded, and converted once. No remote code is run.
    Raises ValueError for everything that cannot be loaded, with the way out.
    """
    if dtype not in (torch.float32, torch.float64):
        raise ValueError(f"dtype = {dtype}: choose torch.float32 or torch.float64, or fast=True")
    if fast and dtype == torch.float64:
        raise ValueError("fast=True computes in half precision; leave out dtype=torch.float64")
    device = _device(device)
    folder, commit = folders.locate(str(name), revision)
    try:
        parts = reading.read(folder, dtype)
        generator = Generator(**parts, source=str(name), revision=commit)
        for part in generator._parts():
            part.eval().requires_grad_(False).to(device)
    except RuntimeError as error:
        if not out_of_memory(error):
            raise
        raise ValueError(f"{name} does not fit into memory on {device}; use another one") from error
    if differentiable:
        for part in generator._parts():
            make_differentiable(part)
    if fast and device.type == "cuda":
        for part in generator._parts():
            part.half()
        generator.unet.to(memory_format=torch.channels_last)
        generator.unet.compile()
    if device.type == "cpu":  # convolutions are a quarter faster with the channels innermost
        generator.unet.to(memory_format=torch.channels_last)
    return generator


def _device(device: str | torch.device) -> torch.device:
    gpu = torch.cuda.is_available()
    if device == "auto":
        return torch.device("cuda" if gpu else "cpu")
    if str(device).split(":")[0] not in (("cpu", "cuda") if gpu else ("cpu",)):
        raise ValueError(f"device {str(device)!r} is not here; use 'auto', or name one that is")
    return torch.device(device)


def out_of_memory(error: RuntimeError) -> bool:
    """Whether an error says that memory ran out, on a GPU or a CPU."""
    return isinstance(error, torch.OutOfMemoryError) or "can't allocate memory" in str(error)
