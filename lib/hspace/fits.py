"""Train what edits in h-space need: one f_t per attribute, and a classifier that has seen noise.

    python -m lib.hspace.fits [ATTRIBUTE ...] [--model avatars-ddpm] [--out models/hspace]

writes one file below 1 MB per attribute, which `trained.load` reads, and prints the seconds that
it took. The kit's CLIP steers f_t; no judge is used in training.
"""

import argparse
import itertools
import time
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from lib.diffusion import familiar, models
from lib.faces import attributes, avatars, captions, judge
from lib.hspace import baselines, schedule, trained
from lib.hspace.taps import MIDDLE

FOLDER = judge.MODELS / "hspace"
# The paper weights the L1 term by 3 cos(source text, target text). Cosines of this CLIP's texts lie
# near zero, because its captions are few and far apart, so the weight is a number here.
SETTINGS = {"steps": 20, "batch": 8, "rate": 0.2, "clip_weight": 0.8, "recon_weight": 1.0}


def templates(name: str) -> list[tuple[str, str]]:
    """Pairs of captions (without, with the attribute) in all short contexts of the grammar.

    The kit's grammar takes the place of the 79 templates of the paper's released code.
    """
    attribute = attributes.named(name)
    others = [
        phrase
        for phrase, (head, _) in captions.MEANINGS.items()
        if head not in (attribute.head, *attribute.tied)
    ]
    contexts = itertools.product(captions.SUBJECTS, ["", *others])
    stems = [f"{subject} {phrase}".strip() for subject, phrase in contexts]
    return [(f"{stem} {attribute.source}".strip(), f"{stem} {attribute.target}") for stem in stems]


def text_direction(name: str, *, device: str | torch.device = "cpu") -> Tensor:
    """ΔT, the unit mean over templates of E_T(with) − E_T(without), (d,).

    Raises ValueError for an attribute that the captions do not know.
    """
    return functional.normalize(_text_change(name, device), dim=0)


def _text_change(name: str, device: str | torch.device) -> Tensor:
    without, having = zip(*templates(name), strict=True)
    source = judge.embed_texts(list(without), device=device)
    target = judge.embed_texts(list(having), device=device)
    return (target - source).mean(0)


def encode(images: Tensor) -> Tensor:
    """Unit kit-CLIP embeddings of images clamped to [−1, 1], (n, 96), differentiable."""
    return judge.embed_images(images.clamp(-1, 1))


# What the embeddings of nine in ten rendered faces with the attribute exceed, along its texts.
ENOUGH = {
    "smile": -0.03,
    "glasses": -0.01,
    "beard": -0.18,
    "hat": 0.13,
    "long hair": 0.29,
    "blond hair": 0.56,
}


def margin(images: Tensor, name: str) -> Tensor:
    """How much nearer images (n, c, h, w) are to the captions with an attribute than without, (n,).

    E_I(x) · mean over templates of E_T(with) − E_T(without), by the kit's CLIP.
    """
    return encode(images) @ _text_change(name, images.device)


@dataclass(frozen=True)
class Enough:
    """Whether the kit's CLIP finds an attribute in images, (n,) bool: where an edit may stop.

    It does where the `margin` exceeds what nine in ten rendered faces with the attribute have.
    Raises ValueError for an attribute without such faces.
    """

    name: str

    def __post_init__(self) -> None:
        if self.name not in ENOUGH:
            raise ValueError(f"attribute {self.name!r}: choose one of {', '.join(ENOUGH)}")

    def __call__(self, images: Tensor) -> Tensor:
        """(n,) bool of images (n, c, h, w)."""
        return margin(images, self.name) >= ENOUGH[self.name]


class Fit(NamedTuple):
    """A finished training: weights by name, one row per batch, and the seconds it took."""

    state: dict[str, Tensor]
    history: list[dict[str, float]]
    seconds: float


def fit_block(
    generator: models.Generator,
    name: str,
    latents: Tensor,
    *,
    t_edit: float,
    direct: bool = False,
    layer: str = MIDDLE,
    checkpoint: Path | None = None,
    **settings: object,
) -> Fit:
    """f_t of one attribute from the model's own samples of `latents`, as values for a cache.

    `block_of` makes the Δh of it. direct: Δh_t itself as parameters, one per edited step, in place
    of the network at `layer`. settings: those of `trained.train` that differ from `SETTINGS`.
    """
    begin = time.perf_counter()
    direction = text_direction(name, device=generator.device)
    chosen = {"t_edit": t_edit, "checkpoint": checkpoint, **SETTINGS, **settings}
    block = _block(generator, direct, layer, chosen["steps"], t_edit)
    history = trained.train(generator, block, latents, encode, direction, **chosen)
    return Fit(dict(block.state_dict()), history, time.perf_counter() - begin)


def block_of(
    generator: models.Generator,
    fit: Fit,
    *,
    direct: bool = False,
    layer: str = MIDDLE,
    steps: int = 20,
    t_edit: float,
) -> nn.Module:
    """The f_t, or the direct Δh_t, of a finished training."""
    block = _block(generator, direct, layer, steps, t_edit)
    block.load_state_dict(fit.state)
    block.t_edit, block.trained_steps = t_edit, steps
    return block.eval().requires_grad_(False)


def _block(
    generator: models.Generator, direct: bool, layer: str, steps: int, t_edit: float
) -> nn.Module:
    if not direct:
        return trained.DeltaBlock(generator, layer=layer)
    times = [t for t, _ in schedule.edit_steps(generator, steps, t_edit)]
    return trained.DirectDelta(generator, times[::-1])


def fit_whole(generator: models.Generator, name: str, latents: Tensor, **options: object) -> Fit:
    """`baselines.fine_tune` towards an attribute; `baselines.with_weights` makes the model of it.

    The history is empty.
    """
    begin = time.perf_counter()
    direction = text_direction(name, device=generator.device)
    tuned = baselines.fine_tune(generator, latents, encode, direction, **options)
    return Fit(dict(tuned.unet.state_dict()), [], time.perf_counter() - begin)


class NoisyClassifier(nn.Module):
    """log p(y | x_t) of every head from a noisy face and its time, for classifier guidance."""

    def __init__(self, heads: dict[str, int], *, width: int = 32) -> None:
        super().__init__()
        self.heads, self.config = heads, {"heads": heads, "width": width}
        self.time = nn.Sequential(nn.Linear(1, 4 * width), nn.SiLU())
        self.inside = nn.Sequential(
            nn.Conv2d(3, width, 3, 1, 1), nn.GroupNorm(8, width), nn.SiLU(),
            nn.Conv2d(width, 2 * width, 3, 2, 1), nn.GroupNorm(8, 2 * width), nn.SiLU(),
            nn.Conv2d(2 * width, 4 * width, 3, 2, 1), nn.GroupNorm(8, 4 * width), nn.SiLU(),
        )  # fmt: skip
        self.after = nn.Sequential(
            nn.Conv2d(4 * width, 4 * width, 3, 2, 1), nn.SiLU(), nn.Flatten(),
            nn.Linear(16 * 4 * width, 128), nn.SiLU(), nn.Linear(128, sum(heads.values())),
        )  # fmt: skip

    def forward(self, x: Tensor, level: Tensor) -> dict[str, Tensor]:
        """Logits per head; x (n, 3, 32, 32) at noise level sqrt(1 − α_t), (n,)."""
        h = self.inside(x) + self.time(level[:, None])[:, :, None, None]
        return dict(zip(self.heads, self.after(h).split(list(self.heads.values()), 1), strict=True))


def train_classifier(
    alphas: Tensor, *, updates: int, batch: int = 64, rate: float = 2e-3, seed: int = 5
) -> NoisyClassifier:
    """A noise-aware classifier of rendered faces, for one noise schedule, (T,) products."""
    faces = avatars.load("train", min(60_000, updates * batch), pink=False)
    labels = {k: torch.from_numpy(v).long() for k, v in faces.labels.items() if k != "eyes"}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = NoisyClassifier({k: len(avatars.CLASSES[k]) for k in labels})
    optimiser = torch.optim.AdamW(network.parameters(), rate)
    decay = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, updates)
    rng = torch.Generator().manual_seed(seed)
    for _ in range(updates):
        rows = torch.randint(len(faces.images), (batch,), generator=rng)
        clean = avatars.to_float(faces.images[rows.sort().values.numpy()])
        alpha = alphas[torch.randint(len(alphas), (batch,), generator=rng)].float()
        noise = torch.randn(clean.shape, generator=rng)
        noisy = (
            alpha.sqrt().view(-1, 1, 1, 1) * clean + (1 - alpha).sqrt().view(-1, 1, 1, 1) * noise
        )
        logits = network(noisy, (1 - alpha).sqrt())
        own = {k: v[rows.sort().values] for k, v in labels.items()}
        loss = sum(
            functional.cross_entropy(logits[k], own[k], ignore_index=avatars.UNDEFINED)
            for k in labels
        )
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        decay.step()
    return network.eval().requires_grad_(False)


@dataclass(frozen=True, eq=False)
class ClassGradient:
    """The function (x, t) -> ∇_x log p(attribute | x_t) for `baselines.guide`.

    alphas: (T,) cumulative products of the schedule that the network was trained for.
    """

    network: NoisyClassifier
    alphas: Tensor
    name: str

    def __call__(self, x: Tensor, t: int) -> Tensor:
        """Gradient of the shape of x, (n, 3, 32, 32), at one training time."""
        attribute = attributes.named(self.name)
        classes = list(avatars.CLASSES[attribute.head])
        chosen = [classes.index(c) for c in attribute.classes]
        with torch.enable_grad():
            point = x.detach().float().requires_grad_(True)
            level = (1 - self.alphas[t]).sqrt().to(point).expand(len(point))
            logits = self.network.to(point.device)(point, level)[attribute.head]
            value = logits.log_softmax(1)[:, chosen].logsumexp(1).sum()
            return torch.autograd.grad(value, point)[0].to(x)


def main(arguments: list[str] | None = None) -> None:
    """Train and save f_t of the named attributes (all that the model was trained with)."""
    known = [name for name in attributes.ATTRIBUTES if name != "pink hair"]
    parser = argparse.ArgumentParser(prog="python -m lib.hspace.fits", description=__doc__)
    parser.add_argument("names", nargs="*", default=known, metavar="ATTRIBUTE")
    parser.add_argument("--model", default="avatars-ddpm")
    parser.add_argument("--out", type=Path, default=FOLDER)
    parser.add_argument("--images", type=int, default=256)
    chosen = parser.parse_args(arguments)
    for name in chosen.names:
        attributes.named(name)  # a misspelt one is refused before anything is trained
    generator = models.load(chosen.model)
    size = generator.image_shape[1]
    faces = avatars.to_float(avatars.load("held-out", 32, size=size).images)
    curves = schedule.curves(generator, faces, attributes.distance, steps=50)
    known = avatars.to_float(avatars.load("held-out", chosen.images, size=size, pink=False).images)
    chosen.out.mkdir(parents=True, exist_ok=True)
    familiar.save(generator, familiar.reference(generator, known), chosen.out / "familiar.json")
    for name in chosen.names:
        file = chosen.out / f"{name.replace(' ', '-')}.safetensors"
        fit = _train_file(generator, name, file, chosen.images, schedule.t_edit(curves))
        cosine = fit.history[-1]["cosine"]
        print(
            f"{name}: cosine {cosine:.3f}, {fit.seconds:.0f} s, written to {file.name} "
            f"({file.stat().st_size / 1e6:.2f} MB)",
            flush=True,
        )


def _train_file(
    generator: models.Generator, name: str, file: Path, images: int, t_edit: int
) -> Fit:
    """Train one f_t into `file`, going on where a stopped training left its partial file."""
    partial, noise = file.with_suffix(".partial.safetensors"), generator.noise(images, 10_000)
    fit = fit_block(generator, name, noise, t_edit=t_edit, checkpoint=partial)
    block = block_of(generator, fit, t_edit=t_edit)
    trained.save(block, file, attribute=name, t_edit=t_edit, **SETTINGS)
    partial.unlink(missing_ok=True)
    return fit


if __name__ == "__main__":
    main()
