"""The model card beside trained weights: what they are, how they were made, what was measured."""

from pathlib import Path
from typing import NamedTuple

from lib.faces import avatars


class Source(NamedTuple):
    """What the images of a training are, where the measures were taken, and who made them."""

    images: str
    measured: str
    attribution: str


def write_card(
    folder: Path, name: str, purpose: str, limits: str, metrics: dict, source: Source | None = None
) -> None:
    """README.md beside the weights: what it is and is not, how it was made, what was measured.

    source: of the images, by default the faces.
    """
    if source is None:
        images = f"faces drawn and rendered by `lib/faces/avatars.py` (recipe {avatars.recipe()})"
        source = Source(images, "label sets", avatars.attribution())
    training, cost = metrics["training"], metrics.get("cost")
    steps, before = f"{training['steps']} steps", training.get("earlier_steps", 0)
    if before:
        steps = f"{before} steps and, with `--from models`, {training['steps']} more"
    spent = f"; {cost['minutes']} minutes on {cost['hardware']}" if cost else ""
    curve = " The loss curve of the training is in `metrics.json`." * ("loss_curve" in training)
    text = f"""---
license: mit
---

# {name}

{purpose} Weights in half precision, safetensors.

Training: `python -m lib.training.train {name}`, {steps} of {training["batch"]}
{source.images}{spent}.

Measured on held-out {source.measured} (`metrics.json`):

{_table(metrics)}
Limits: {limits}{curve}

{source.attribution}
"""
    (folder / "README.md").write_text(text, encoding="utf-8")


def _table(metrics: dict) -> str:
    """Every measured number as a Markdown table, one column per image size where they differ."""
    lines = ["| measure | 32 px | 64 px |", "| --- | --- | --- |"]
    for measure, value in metrics.items():
        name = measure.replace("_", " ")
        if isinstance(value, (int, float)) and not measure.endswith("seed"):
            lines.append(f"| {name} | {value} | |")
        elif measure == "accuracy" and "32" not in value:
            lines += [f"| {name}: {key} | {share} | |" for key, share in value.items()]
        elif isinstance(value, dict) and "32" in value and "64" in value:
            pairs = ((key, value["32"][key], value["64"][key]) for key in value["32"])
            lines += [f"| {name}: {key} | {small} | {large} |" for key, small, large in pairs]
    return "\n".join(lines) + "\n"
