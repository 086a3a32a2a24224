"""Cost of an edit against the plain run of equal steps, same latents, on the kit's two shapes.

And the time to train f_t for one attribute, from one batch of as many steps as `quick` takes.

The edited trajectory is timed alone, without its reconstruction, and shifted by an untrained f_t.
"""

import torch

from benchmarks.sampling import PROMPT, pixel_model, seconds, text_model
from lib import hspace
from lib.diffusion import models, sampling
from lib.hspace import trained

IMAGES, STEPS, REPEATS = 16, 4, 15  # short runs: the best one was not interrupted
TRAINED = 128  # images behind one f_t in the profile quick
TARGETS = ((0.5, "at t_edit = 0.5 T", 1.6), (0.0, "over the edit interval", 1.85))


def cost(generator: models.Generator, share: float, **text) -> float:
    """Time of the edit over that of the plain run, each the best of interleaved repeats."""
    noise, block = generator.noise(IMAGES, 0), trained.DeltaBlock(generator)
    run = {"steps": STEPS, "decode": False, "progress": False, **text}
    t_edit = share * len(generator.alphas)

    def plain() -> None:
        sampling.ddim(generator, noise, **run)

    def edit() -> None:
        hspace.edit(generator, noise, block, t_edit=t_edit, **run)

    edit(), plain()
    times = [(seconds(edit), seconds(plain)) for _ in range(REPEATS)]
    return min(t for t, _ in times) / min(t for _, t in times)


def training_minutes(generator: models.Generator) -> float:
    """Minutes for one f_t on `TRAINED` images, from one batch of eight at t_edit = 0.4 T."""
    from lib.hspace import fits as training

    noise, own = generator.noise(8, 0), {"t_edit": 0.4 * len(generator.alphas), "steps": 20}
    training.fit_block(generator, "glasses", noise[:2], **own | {"steps": 2})  # loads CLIP
    once = seconds(lambda: training.fit_block(generator, "glasses", noise, **own))
    return once * TRAINED / len(noise) / 60


def main() -> list[dict]:
    """Two rows for the pixel model, two for the guided text model, one for training f_t."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    cases = (
        ("pixel model, 32 px", pixel_model(device), {}),
        ("text model, 4 x 16 x 16", text_model(device), PROMPT),
    )
    rows = []
    for name, generator, text in cases:
        for share, where, target in TARGETS:
            measured = cost(generator, share, **text)
            rows.append(
                {
                    "claim": f"h-space edit, {name}, {where}: time over that of the plain run",
                    "measured": measured,
                    "unit": "times",
                    "target": f"<= {target}",
                    "holds": measured <= target,
                }
            )
    minutes = training_minutes(pixel_model(device))
    rows.append(
        {
            "claim": f"f_t for one attribute, {TRAINED} images, 20 steps: training",
            "measured": minutes,
            "unit": "minutes",
            "target": "<= 3",
            "holds": minutes <= 3,
        }
    )
    return rows
