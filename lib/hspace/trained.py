"""Trained ways to a Δh (Kwon et al. 2023): f_t, and one free Δh per timestep.

Averages over samples are in `means`, directions that need no training in `bases`.
"""

import json
import math
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional

from lib.diffusion import folders
from lib.diffusion.models import Generator, unit_normal
from lib.diffusion.sampling import ddim, predicted, update
from lib.hspace import schedule, taps


class DeltaBlock(nn.Module):
    """f_t(h) = W_2 swish(GroupNorm(W_1 h + L swish(temb(t)))) for one attribute; W_i mix channels.

    temb is the frozen network's own time embedding, m wide; there is no residual. 2 C^2 + 5 C + m C
    weights, 28,128 at C = m = 96. zero: start from Δh = 0 instead of the paper's random Δh.
    Once trained it carries t_edit, where its window ends, and trained_steps (see `deltas`).
    layer: where it is trained, as in `taps.capture`.
    """

    t_edit: float | None
    trained_steps: int | None

    def __init__(
        self,
        generator: Generator,
        *,
        zero: bool = False,
        seed: int = 0,
        layer: str = taps.MIDDLE,
    ) -> None:
        super().__init__()
        unet, (channels, _, _) = generator.unet, taps.h_shape(generator, layer=layer)
        self.layer = layer
        self._time = (unet.time_proj, unet.time_embedding)  # in a tuple: no weights of ours
        self.owners = frozenset({generator.weight_hash})
        self.t_edit, self.trained_steps = None, None
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.first = nn.Conv2d(channels, channels, 1)
            self.time = nn.Linear(self._embedding(0).shape[1], channels)
            # a group of one channel would lose its mean, and with it the time
            groups = min(math.gcd(32, channels), max(channels // 2, 1))
            self.norm = nn.GroupNorm(groups, channels, eps=1e-6)
            self.last = nn.Conv2d(channels, channels, 1)
        if zero:
            nn.init.zeros_(self.last.weight)
            nn.init.zeros_(self.last.bias)
        self.to(generator.device, generator.dtype)

    @property
    def weight_hash(self) -> str:
        """SHA-256 (16 hex digits) of the weights, of their model and of what the shift carries."""
        return _hash_of(self)

    def forward(self, h: Tensor, t: int) -> Tensor:
        """Δh of the shape of h, (n, C, height, width), at one training time."""
        channels = self.first.in_channels
        if h.shape[1] != channels:
            raise ValueError(f"h has {h.shape[1]} channels and f_t {channels}; train another f_t")
        own = self.first.weight.dtype
        shift = self.time(functional.silu(self._embedding(t).to(own)))
        y = self.norm(self.first(h.to(own)) + shift[:, :, None, None])
        return self.last(functional.silu(y))

    def _embedding(self, t: int) -> Tensor:
        project, embed = self._time
        weight = next(embed.parameters())
        with torch.no_grad():
            return embed(project(torch.tensor([t], device=weight.device)).to(weight.dtype))


class DirectDelta(nn.Module):
    """Δh itself as the parameter, one for each of `times`, the nearest time's where t is another.

    It starts at 0.2 N(0, 1). A single time gives one Δh for all t. It carries what f_t does.
    """

    t_edit: float | None
    trained_steps: int | None

    def __init__(self, generator: Generator, times: Sequence[int], *, seed: int = 0) -> None:
        super().__init__()
        shape = taps.h_shape(generator)
        start = torch.stack([0.2 * unit_normal(shape, seed, int(t)) for t in times])
        self.times = [int(t) for t in times]
        self.owners = frozenset({generator.weight_hash})
        self.t_edit, self.trained_steps = None, None
        self.change = nn.Parameter(start.to(generator.device, generator.dtype))

    @property
    def weight_hash(self) -> str:
        """SHA-256 (16 hex digits) of the changes, of their model and of what the shift carries."""
        return _hash_of(self)

    def forward(self, h: Tensor, t: int) -> Tensor:
        """Δh_t of one sample, (channels, height, width)."""
        return self.change[min(range(len(self.times)), key=lambda i: abs(self.times[i] - t))]


def directional_loss(cosine: Tensor, *, logarithm: bool = True) -> Tensor:
    """Directional CLIP loss, from cos(change of the image, change of the text), elementwise.

    L_dir = 1 - cos is the paper's form, -log(1 - L_dir / 2) that of its released code. The cosine,
    not the loss, is what grows with the edit.
    """
    return -((1 + cosine) / 2).clamp(min=1e-6).log() if logarithm else 1 - cosine


def train(
    generator: Generator,
    delta: nn.Module,
    latents: Tensor,
    encode: Callable[[Tensor], Tensor],
    direction: Tensor,
    *,
    steps: int,
    t_edit: float,
    images: Tensor | None = None,
    passes: int = 1,
    batch: int = 8,
    rate: float = 0.2,
    clip_weight: float = 0.8,
    recon_weight: float = 3.0,
    logarithm: bool = True,
    source: str = "image",
    checkpoint: str | Path | None = None,
    **text: object,
) -> list[dict[str, float]]:
    """Fit f_t, or direct parameters, in place by directional CLIP and L1; one row per batch.

    Loss at each t: clip_weight `directional_loss` + recon_weight |P_t^edit - P_t^source|_1 (mean),
    Asyrp Eq. 9. Each batch walks from the noisiest time down to t_edit with one SGD step per time,
    detached in between; the rate falls tenfold every three passes. Δh carries t_edit and steps on.
    latents: (n, *latent_shape); images: their clean sources where these are real (default: their
    own DDIM samples). encode: images (n, c, h, w) -> embeddings (n, d), differentiable; direction:
    (d,) in text space. recon_weight is 3 cos(source text, target text) in the paper. source:
    "image" measures the change of the image from the clean one (released code), "prediction" from
    P_t^source (paper). text: prompt, guidance, negative, class_labels.
    checkpoint: a file written after every batch and read at the start, so that a stopped training
    goes on; `load` reads it too. Rows hold "pass", "row", and means over t of "loss", "cosine" and
    "distance". Raises ValueError for a checkpoint of another training, a loss that is not finite.
    """
    if source not in ("image", "prediction"):
        raise ValueError(f"source = {source!r}: choose 'image' or 'prediction'")
    pairs = schedule.edit_steps(generator, steps, t_edit)
    settings = [steps, t_edit, batch, rate, clip_weight, recon_weight, logarithm, source, text]
    given = {"latents": latents, "direction": direction}.items()
    key = folders.weight_hash(given, generator.weight_hash, repr(settings))
    history = _resume(delta, checkpoint, key)
    delta.t_edit, delta.trained_steps = t_edit, steps
    if images is None and source == "image":
        images = ddim(generator, latents, steps=steps, **text)
    optimiser = torch.optim.SGD(delta.parameters(), lr=rate)

    def score(edited: Tensor, clean: Tensor, target: Tensor) -> dict[str, Tensor]:
        with torch.no_grad():
            before = encode(clean if source == "image" else generator.decode(target))
        change = encode(generator.decode(edited)) - before
        if bool((change.detach().norm(dim=-1) < 1e-5 * before.norm(dim=-1)).any()):
            raise ValueError("Δh changes no image yet: start from zero=False or use source='image'")
        cosine = functional.cosine_similarity(change, direction.expand_as(change), dim=-1)
        apart = functional.l1_loss(edited, target)
        loss = clip_weight * directional_loss(cosine, logarithm=logarithm).mean()
        return {"loss": loss + recon_weight * apart, "cosine": cosine.mean(), "distance": apart}

    work = [(p, i) for p in range(passes) for i in range(0, len(latents), batch)]
    for p, i in work[len(history) :]:
        rows = slice(i, i + batch)
        for group in optimiser.param_groups:
            group["lr"] = rate * 0.1 ** (p // 3)
        clean = None if images is None else images[rows]
        means = _walk(generator, delta, latents[rows], clean, pairs, score, optimiser, text)
        history.append({"pass": p, "row": i, **means})
        if checkpoint is not None:
            save(delta, checkpoint, training=key, history=history)
    return history


def _walk(
    generator: Generator,
    delta: nn.Module,
    x: Tensor,
    clean: Tensor | None,
    pairs: Sequence[tuple[int, int]],
    score: Callable[[Tensor, Tensor | None, Tensor], dict[str, Tensor]],
    optimiser: torch.optim.Optimizer,
    text: Mapping[str, object],
) -> dict[str, float]:
    """One update at each time, along the edited and the plain trajectory of x."""
    edited = source = x
    rows = []
    for t, t_next in pairs:
        alpha, alpha_next = generator.alpha(t), generator.alpha(t_next)
        with torch.no_grad():
            both = generator.epsilon(torch.cat([edited, source]), t, **text)
        plain, source_eps = both.chunk(2)
        with taps.inject(generator, delta, layer=getattr(delta, "layer", taps.MIDDLE)):
            eps = generator.epsilon(edited, t, **text)
        target = predicted(source, source_eps, alpha)
        scores = score(predicted(edited, eps, alpha), clean, target)
        rows.append([float(value.detach()) for value in scores.values()])
        if not math.isfinite(rows[-1][0]):
            raise ValueError(f"the loss is not finite at t = {t}; choose a lower rate")
        optimiser.zero_grad()
        scores["loss"].backward()
        optimiser.step()
        edited = update(edited, eps.detach(), alpha, alpha_next, eps_direction=plain)
        source = update(source, source_eps, alpha, alpha_next)
    return dict(zip(scores, torch.tensor(rows).mean(0).tolist(), strict=True))


def save(delta: nn.Module, path: str | Path, **notes: object) -> Path:
    """Write f_t as safetensors, with the hash of its model, what it carries, and notes as JSON."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    state = {name: value.detach().cpu().contiguous() for name, value in delta.state_dict().items()}
    carried = {"t_edit": delta.t_edit, "steps": delta.trained_steps}
    notes = {"owners": sorted(delta.owners), **carried, **notes}
    partial = path.with_name(f"{path.name}.{os.getpid()}.part")
    try:
        save_file(state, partial, {name: json.dumps(value) for name, value in notes.items()})
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)
    return path


def load(generator: Generator, path: str | Path) -> DeltaBlock:
    """The f_t written by `save`, or left by `train`, with the window and the steps of its training.

    Raises ValueError for a damaged file and for an f_t of another model.
    """
    state, notes = _read(Path(path))
    if json.loads(notes["owners"]) != [generator.weight_hash]:
        raise ValueError(
            f"{path} was trained on the model with weights {notes['owners']}, and this is "
            f"{generator.weight_hash}; train it on this model"
        )
    delta = DeltaBlock(generator)
    delta.load_state_dict(state)
    delta.t_edit, delta.trained_steps = (
        json.loads(notes.get(name, "null")) for name in ("t_edit", "steps")
    )
    return delta.eval().requires_grad_(False)


def _read(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    try:
        with safe_open(path, framework="pt") as file:
            names, notes = file.keys(), file.metadata() or {}
            return {name: file.get_tensor(name) for name in names}, notes
    except (OSError, SafetensorError) as error:
        raise ValueError(f"{path} is missing or damaged: train it again") from error


def _resume(delta: nn.Module, checkpoint: str | Path | None, key: str) -> list[dict[str, float]]:
    """Rows of the training so far, with its weights loaded into `delta`."""
    if checkpoint is None or not Path(checkpoint).exists():
        return []
    state, notes = _read(Path(checkpoint))
    if notes.get("training") != json.dumps(key):
        raise ValueError(f"{checkpoint} belongs to another training; remove it, or name a new file")
    delta.load_state_dict(state)
    return json.loads(notes["history"])


def _hash_of(delta: DeltaBlock | DirectDelta) -> str:
    carried = (delta.t_edit, delta.trained_steps)
    known = [repr(carried)] if carried != (None, None) else []
    return folders.weight_hash(delta.state_dict().items(), *sorted(delta.owners), *known)
