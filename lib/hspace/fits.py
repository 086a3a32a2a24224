"""Train what edits in h-space need: one f_t per attribute, and where an edit may stop.

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
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional

from lib.diffusion import familiar, models
from lib.faces import attributes, avatars, captions, judge
from lib.hspace import baselines, schedule, trained
from lib.hspace.taps import MIDDLE

FOLDER = judge.MODELS / "hspace"
PROBES = FOLDER / "probes" / "clip.safetensors"
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
    without, having = zip(*templates(name), strict=True)
    source = judge.embed_texts(list(without), device=device)
    target = judge.embed_texts(list(having), device=device)
    return functional.normalize((target - source).mean(0), dim=0)


def encode(images: Tensor) -> Tensor:
    """Unit kit-CLIP embeddings of images clamped to [−1, 1], (n, 96), differentiable."""
    return judge.embed_images(images.clamp(-1, 1))


def probes(faces: avatars.Faces) -> dict[str, Tensor]:
    """Where the kit's CLIP sees an attribute, from rendered faces: {attribute: (d + 1,)}.

    Fisher's direction w = Σ⁻¹ (μ_with − μ_without) of their embeddings, of length one, and what
    nine in ten of those with the attribute exceed along it. Labels are those of the drawing.
    """
    images, found = avatars.to_float(faces.images), {}
    embedded = torch.cat([encode(part) for part in images.split(128)]).double()
    for name, attribute in attributes.ATTRIBUTES.items():
        classes = [avatars.CLASSES[attribute.head].index(c) for c in attribute.classes]
        drawn = torch.from_numpy(faces.labels[attribute.head]).long()
        having = torch.isin(drawn, torch.tensor(classes))
        groups = embedded[having], embedded[~having & (drawn != avatars.UNDEFINED)]
        if min(map(len, groups)) < 2:
            continue
        scatter = sum(len(g) * torch.cov(g.T) for g in groups) / len(embedded)
        apart = groups[0].mean(0) - groups[1].mean(0)
        w = torch.linalg.solve(scatter + 1e-5 * torch.eye(len(apart)), apart)
        w = w / w.norm()
        found[name] = torch.cat([w, (groups[0] @ w).quantile(0.1)[None]]).float()
    return found


@dataclass(frozen=True, eq=False)
class Enough:
    """Whether the kit's CLIP sees an attribute in images, (n,) bool: where an edit may stop.

    It does where an image lies further along the `probes` than nine in ten rendered faces with it.
    No judge has a part. Raises ValueError for an attribute without a probe.
    """

    name: str
    probe: Tensor | None = None

    def __post_init__(self) -> None:
        if self.probe is None:
            known = load_file(PROBES)
            if self.name not in known:
                raise ValueError(f"attribute {self.name!r}: choose of {', '.join(known)}")
            object.__setattr__(self, "probe", known[self.name])

    def __call__(self, images: Tensor) -> Tensor:
        """(n,) bool of images (n, c, h, w)."""
        probe = self.probe.to(images.device)
        return encode(images.float()) @ probe[:-1] >= probe[-1]


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
    layer: str = MIDDLE,
    checkpoint: Path | None = None,
    **settings: object,
) -> Fit:
    """f_t of one attribute from the model's own samples of `latents`, as values for a cache.

    `block_of` makes the Δh of it. layer: where it is trained. settings: those of `trained.train`
    that differ from `SETTINGS`.
    """
    begin = time.perf_counter()
    direction = text_direction(name, device=generator.device)
    chosen = {"t_edit": t_edit, "checkpoint": checkpoint, **SETTINGS, **settings}
    block = trained.DeltaBlock(generator, layer=layer)
    history = trained.train(generator, block, latents, encode, direction, **chosen)
    return Fit(dict(block.state_dict()), history, time.perf_counter() - begin)


def block_of(
    generator: models.Generator, fit: Fit, *, layer: str = MIDDLE, steps: int = 20, t_edit: float
) -> nn.Module:
    """The f_t of a finished training."""
    block = trained.DeltaBlock(generator, layer=layer)
    block.load_state_dict(fit.state)
    block.t_edit, block.trained_steps = t_edit, steps
    return block.eval().requires_grad_(False)


def fit_whole(generator: models.Generator, name: str, latents: Tensor, **options: object) -> Fit:
    """`baselines.fine_tune` towards an attribute; `baselines.with_weights` makes the model of it.

    The history is empty.
    """
    begin = time.perf_counter()
    direction = text_direction(name, device=generator.device)
    tuned = baselines.fine_tune(generator, latents, encode, direction, **options)
    return Fit(dict(tuned.unet.state_dict()), [], time.perf_counter() - begin)


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
    t_edit = schedule.t_edit(schedule.curves(generator, faces, attributes.distance, steps=50))
    many = max(chosen.images, 24)
    known = avatars.to_float(avatars.load("held-out", many, size=size, pink=False).images)
    chosen.out.mkdir(parents=True, exist_ok=True)
    familiar.save(generator, familiar.reference(generator, known), chosen.out / "familiar.json")
    seen = probes(avatars.load("held-out", attributes.REFERENCE))
    (chosen.out / PROBES.parent.name).mkdir(exist_ok=True)
    save_file(seen, chosen.out / PROBES.parent.name / PROBES.name)
    noise = generator.noise(chosen.images, 10_000)
    for name in chosen.names:
        file = chosen.out / f"{name.replace(' ', '-')}.safetensors"
        partial = file.with_suffix(".partial.safetensors")  # of a training that was stopped
        fit = fit_block(generator, name, noise, t_edit=t_edit, checkpoint=partial)
        block = block_of(generator, fit, t_edit=t_edit)
        trained.save(block, file, attribute=name, t_edit=t_edit, **SETTINGS)
        partial.unlink(missing_ok=True)
        cosine = fit.history[-1]["cosine"]
        print(f"{name}: cosine {cosine:.3f}, {fit.seconds:.0f} s, {file.name}", flush=True)


if __name__ == "__main__":
    main()
