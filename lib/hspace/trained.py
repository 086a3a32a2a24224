"""The trained way to a Δh, f_t (Kwon et al. 2023).

Averages over samples are in `means`, directions that need no training in `bases`.
"""

import json
import math
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional

from lib.diffusion import folders
from lib.diffusion.models import Generator
from lib.diffusion.sampling import ddim, predicted, update
from lib.hspace import schedule, taps


class DeltaBlock(nn.Module):
    """f_t(h) = W_2 swish(GroupNorm(W_1 h + L swish(temb(t)))) for one attribute; W_i mix channels.

    temb is the frozen network's own time embedding, m wide; there is no residual. 2 C^2 + 5 C + m C
    weights, 28,128 at C = m = 96, random at the start, as in the paper.
    Once trained it carries t_edit, where its window ends, and trained_steps (see `deltas`).
    layer: where it is trained, as in `taps.capture`.
    """

    t_edit: float | None
    trained_steps: int | None

    def __init__(self, generator: Generator, *, seed: int = 0, layer: str = taps.MIDDLE) -> None:
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
        self.to(generator.device, generator.dtype)

    @property
    def weight_hash(self) -> str:
        """SHA-256 (16 hex digits) of the weights, of their model and of what the shift carries."""
        carried = (self.t_edit, self.trained_steps)
        known = [repr(carried)] if carried != (None, None) else []
        return folders.weight_hash(self.state_dict().items(), *sorted(self.owners), *known)

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


def directional_loss(cosine: Tensor) -> Tensor:
    """−log((1 + cos(change of the image, change of the text)) / 2), elementwise.

    The form of the released code, −log(1 − L / 2) of the paper's L = 1 − cos. The cosine, not the
    loss, is what grows with the edit.
    """
    return -((1 + cosine) / 2).clamp(min=1e-6).log()


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
    checkpoint: str | Path | None = None,
    **text: object,
) -> list[dict[str, float]]:
    """Fit f_t in place by directional CLIP and L1; one row per batch.

    Loss at each t: clip_weight `directional_loss` + recon_weight |P_t^edit - P_t^source|_1 (mean),
    Asyrp Eq. 9. Each batch walks from the noisiest time down to t_edit with one SGD step per time,
    detached in between; the rate falls tenfold every three passes. Δh carries t_edit and steps on.
    latents: (n, *latent_shape); images: their clean sources where these are real (default: their
    own DDIM samples). encode: images (n, c, h, w) -> embeddings (n, d), differentiable; direction:
    (d,) in text space. recon_weight is 3 cos(source text, target text) in the paper. The change of
    the image is that from the clean one, as in the released code. text: prompt, guidance, negative,
    class_labels.
    checkpoint: a file written after every batch and read at the start, so that a stopped training
    goes on; `load` reads it too. Rows hold "pass", "row", and means over t of "loss", "cosine" and
    "distance". Raises ValueError for a checkpoint of another training, a loss that is not finite.
    """
    pairs = schedule.edit_steps(generator, steps, t_edit)
    settings = [steps, t_edit, batch, rate, clip_weight, recon_weight, text]
    given = {"latents": latents, "direction": direction}.items()
    key = folders.weight_hash(given, generator.weight_hash, repr(settings))
    history = _resume(delta, checkpoint, key)
    delta.t_edit, delta.trained_steps = t_edit, steps
    if images is None:
        images = ddim(generator, latents, steps=steps, **text)
    optimiser = torch.optim.SGD(delta.parameters(), lr=rate)

    def score(edited: Tensor, clean: Tensor, target: Tensor) -> dict[str, Tensor]:
        with torch.no_grad():
            before = encode(clean)
        change = encode(generator.decode(edited)) - before
        if bool((change.detach().norm(dim=-1) < 1e-5 * before.norm(dim=-1)).any()):
            raise ValueError("Δh changes no image: start from another seed, or a larger Δh")
        cosine = functional.cosine_similarity(change, direction.expand_as(change), dim=-1)
        apart = functional.l1_loss(edited, target)
        loss = clip_weight * directional_loss(cosine).mean()
        return {"loss": loss + recon_weight * apart, "cosine": cosine.mean(), "distance": apart}

    work = [(p, i) for p in range(passes) for i in range(0, len(latents), batch)]
    for p, i in work[len(history) :]:
        rows = slice(i, i + batch)
        for group in optimiser.param_groups:
            group["lr"] = rate * 0.1 ** (p // 3)
        walked = latents[rows], images[rows], pairs
        means = _walk(generator, delta, *walked, score, optimiser, text)
        history.append({"pass": p, "row": i, **means})
        if checkpoint is not None:
            save(delta, checkpoint, training=key, history=history)
    return history


def _walk(
    generator: Generator,
    delta: nn.Module,
    x: Tensor,
    clean: Tensor,
    pairs: Sequence[tuple[int, int]],
    score: Callable[[Tensor, Tensor, Tensor], dict[str, Tensor]],
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

    Raises ValueError for a file that is missing, damaged or another one, and for an f_t of another
    model.
    """
    if _no_file(path):
        raise ValueError(_no_file(path))
    state, notes = folders.read_tensors(Path(path))
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


def _no_file(path: object) -> str:
    """Why there is no f_t at a path, and what there is; nothing where there is one."""
    if not isinstance(path, str | Path):
        return f"path is a {type(path).__name__}; give load(generator, path), path a file"
    folder = folders.MODELS / "hspace"
    known = ", ".join(sorted(file.stem for file in folder.glob("*.safetensors")))
    there = f"; {folder} holds {known or 'none'}: give load(generator, '{folder}/NAME.safetensors')"
    if not Path(path).is_file():
        return f"no file {str(path)!r}, seen from {Path.cwd()}{there}"
    try:
        _, notes = folders.read_tensors(Path(path))
    except ValueError:
        return f"{path} is damaged or no safetensors file: train it again, or give another{there}"
    return "" if "owners" in notes else f"{path} holds other tensors than those of an f_t{there}"


def _resume(delta: nn.Module, checkpoint: str | Path | None, key: str) -> list[dict[str, float]]:
    """Rows of the training so far, with its weights loaded into `delta`."""
    if checkpoint is None or not Path(checkpoint).exists():
        return []
    state, notes = folders.read_tensors(Path(checkpoint))
    if notes.get("training") != json.dumps(key):
        raise ValueError(f"{checkpoint} belongs to another training; remove it, or name a new file")
    delta.load_state_dict(state)
    return json.loads(notes["history"])
