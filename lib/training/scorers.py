"""The networks that score faces: judge a, judge b and the kit's CLIP, one training task each."""

import copy
import json
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lib.faces import avatars, captions, judge
from lib.training.cards import write_card
from lib.training.task import Task

LIMITS = (
    "it reads the kit's drawn faces and nothing else; on other images its answers mean nothing."
)

ATTRIBUTES = {name: list(avatars.CLASSES[name]) for name in captions.PHRASES}
# Data seeds: the judges see faces that neither CLIP nor the generators, nor each other, have seen.
JUDGE_SEEDS, JUDGE_FACES = {"a": 1, "b": 2}, {"a": 24_000, "b": 20_000}
JUDGE_STEPS = {"a": 2400, "b": 1500}
GATE = 0.95


def spoil(images: Tensor, rng: torch.Generator) -> Tensor:
    """Mirror, recolour, blur and add noise, each image in its own measure, within [−1, 1].

    What generators do to a face must not change its label.
    """

    def uniform(low: float, high: float, *shape: int) -> Tensor:
        draw = torch.rand(len(images), *shape, 1, 1, generator=rng) * (high - low) + low
        return draw.to(images.device)

    def sometimes(*shape: int) -> Tensor:
        return uniform(0, 1, *shape).round()

    images = torch.lerp(images, images.flip(-1), sometimes(1))
    images = images * uniform(0.92, 1.08, 1) + uniform(-0.06, 0.06, 3)
    soft = images
    for _ in range(images.shape[-1] // 32):
        soft = F.avg_pool2d(F.pad(soft, (1, 1, 1, 1), mode="replicate"), 3, 1)
    images = torch.lerp(images, soft, uniform(0, 1, 1) * sometimes(1))
    noise = torch.randn(images.shape, generator=rng).to(images.device)
    return (images + noise * uniform(0, 0.2, 1) * sometimes(1)).clamp(-1.0, 1.0)


def coarsen(images: Tensor, rng: torch.Generator) -> Tensor:
    """Half of the images through 32 px and back, so that both sizes of the kit are read alike."""
    coarse = judge.resize(judge.resize(images, 32), images.shape[-1])
    pick = torch.rand(len(images), 1, 1, 1, generator=rng).round().to(images.device)
    return torch.lerp(images, coarse, pick)


# --- judges ---------------------------------------------------------------------------------------


def judge_task(name: str) -> Task:
    """Judge a or b: cross-entropy per attribute, undefined labels left out."""
    return Task(
        name=f"judge-{name}",
        build=partial(judge.Judge, name, ATTRIBUTES),
        load=lambda folder: _trainable(judge.load(name, models=folder.parent)),
        data=partial(_judge_data, name),
        loss=_judge_loss,
        save=_save_judge,
        evaluate=measure_judge,
        steps=JUDGE_STEPS[name],
        batch=64,
        rate=2e-3,
        average=0.995,
        seed=JUDGE_SEEDS[name],
    )


def _trainable(network: nn.Module) -> nn.Module:
    return copy.deepcopy(network).requires_grad_(True).train()


def _judge_data(name: str) -> tuple[int, Callable]:
    size = judge.Judge(name, ATTRIBUTES).size
    faces = avatars.load("train", JUDGE_FACES[name], size=size, seed=JUDGE_SEEDS[name])
    labels = torch.from_numpy(np.stack([faces.labels[a] for a in ATTRIBUTES], axis=1)).long()

    def fetch(indices: Tensor, rng: torch.Generator) -> tuple[Tensor, Tensor]:
        return avatars.to_float(faces.images[indices.numpy()]), labels[indices]

    return len(labels), fetch


def _judge_loss(network: nn.Module, batch: tuple, rng: torch.Generator) -> Tensor:
    images, labels = batch
    images = spoil(images, rng)
    if images.shape[-1] > 32:
        images = coarsen(images, rng)
    logits = network(images).values()
    pairs = zip(logits, labels.unbind(1), strict=True)
    return sum(masked_cross_entropy(z.float(), y) for z, y in pairs)


def masked_cross_entropy(logits: Tensor, truth: Tensor) -> Tensor:
    """Mean over the defined labels, zero without any."""
    total = F.cross_entropy(logits, truth, ignore_index=avatars.UNDEFINED, reduction="sum")
    return total / (truth >= 0).sum().clamp(min=1)


@torch.no_grad()
def measure_judge(network: judge.Judge, *, count: int | None = None) -> dict:
    """Held-out accuracy, also of spoiled images, agreement with judge a, log-odds deviation.

    The weights are first rounded to the half precision in which they are shipped, and the
    reference statistics are set.
    """
    network.half().float()
    faces = avatars.load("train", 4000, size=network.size, seed=JUDGE_SEEDS[network.name])
    set_reference(network, avatars.to_float(faces.images).split(250))
    result = {"data_seed": JUDGE_SEEDS[network.name], "accuracy": {}, "accuracy_when_spoiled": {}}
    for size in (32, 64):
        faces = avatars.load("held-out", count, size=size)
        labels = {a: torch.from_numpy(faces.labels[a]) for a in ATTRIBUTES}
        logits = _in_batches(network, faces.images)
        spoiled = _in_batches(network, faces.images, spoiled=True)
        for key, given in (("accuracy", logits), ("accuracy_when_spoiled", spoiled)):
            table = {a: accuracy_of(z.argmax(1), labels[a]) for a, z in given.items()}
            result[key][str(size)] = table
        if network.name == "b":
            theirs = _in_batches(judge.load("a"), faces.images)
            result.setdefault("agreement_with_a", {})[str(size)] = {
                a: accuracy_of(logits[a].argmax(1), theirs[a].argmax(1), labels[a] >= 0)
                for a in logits
                if a in theirs
            }
        if size == 32:
            result["log_odds_deviation"] = {
                a: _deviations(z[labels[a] >= 0], network.classes[a]) for a, z in logits.items()
            }
    result["held_out_faces"] = len(faces.images)
    worst = {a: min(accuracy[a] for accuracy in result["accuracy"].values()) for a in ATTRIBUTES}
    return result | {"dropped": [a for a in ATTRIBUTES if worst[a] < GATE]}


def _in_batches(
    network: judge.Judge, images: np.ndarray, *, spoiled: bool = False
) -> dict[str, Tensor]:
    rng, parts = torch.Generator().manual_seed(0), []
    for i in range(0, len(images), 256):
        batch = avatars.to_float(images[i : i + 256])
        parts.append(network(spoil(batch, rng) if spoiled else batch))
    return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}


def accuracy_of(guess: Tensor, truth: Tensor, defined: Tensor | None = None) -> float:
    """Share of right guesses among the defined ones, by default those of truth >= 0."""
    defined = truth >= 0 if defined is None else defined
    return round((guess == truth)[defined].double().mean().item(), 5)


def _deviations(logits: Tensor, names: list[str]) -> dict[str, float]:
    """Standard deviation over faces of each class's log-odds against the rest."""
    columns = torch.arange(logits.shape[1])
    rest = [logits[:, columns != j].logsumexp(1) for j in columns]
    odds = logits - torch.stack(rest, dim=1)
    return dict(zip(names, odds.double().std(0).round(decimals=4).tolist(), strict=True))


def set_reference(network: nn.Module, batches: Sequence[Tensor]) -> None:
    """Principal components, total variance and mean pair distance over training images."""
    pooled = torch.cat([network.pooled(batch) for batch in batches]).double()
    _, values, vectors = torch.linalg.svd(pooled - pooled.mean(0), full_matrices=False)
    network.components.copy_(vectors[: len(network.components)])
    network.total_variance.copy_(values.square().sum() / (len(pooled) - 1))
    pairs = zip(batches, batches[1:], strict=False)
    distances = torch.cat([judge.raw_distance(network, a, b) for a, b in pairs])
    network.pair_distance.copy_(distances.mean())


def save_weights(state: dict[str, Tensor], folder: Path) -> None:
    """The weights of a judge in half precision, its reference statistics as they are."""
    from safetensors.torch import save_file

    exact = ("components", "total_variance", "pair_distance")
    kept = {k: v for k, v in state.items() if v.is_floating_point()}
    kept = {k: v.clone() if k in exact else v.half().contiguous() for k, v in kept.items()}
    save_file(kept, folder / "model.safetensors", metadata={"format": "pt"})


def _save_judge(network: judge.Judge, folder: Path, metrics: dict) -> None:
    kept, state = [n for n in network.classes if n not in metrics["dropped"]], network.state_dict()
    rows = torch.cat([
        torch.full((len(names),), name in kept) for name, names in network.classes.items()
    ])  # fmt: skip
    state |= {f"heads.{key}": state[f"heads.{key}"][rows] for key in ("weight", "bias")}
    save_weights(state, folder)
    config = {"judge": network.name, "size": network.size}
    config["classes"] = {name: network.classes[name] for name in kept}
    (folder / "config.json").write_text(json.dumps(config, indent=1) + "\n", encoding="utf-8")
    purpose = f"Judge {network.name}: reads the attributes of the kit's drawn faces, no others."
    write_card(folder, f"judge-{network.name}", purpose, LIMITS, metrics)


# --- kit CLIP -------------------------------------------------------------------------------------


def clip_task() -> Task:
    """A small CLIP, trained by contrast on pairs of a face and a caption of it."""
    return Task(
        name="clip",
        build=build_clip,
        load=lambda folder: _trainable(judge.clip(models=folder.parent)[0]),
        data=_clip_data,
        loss=_clip_loss,
        save=_save_clip,
        evaluate=measure_clip,
        steps=3000,
        batch=64,
        rate=1e-3,
        weight_decay=0.05,
        average=0.995,
        seed=3,
    )


def build_clip() -> nn.Module:
    """An untrained CLIPModel: 64 px in patches of 16, width 128, and a two-layer text tower.

    Position embeddings start as large as the patches, or the towers take long to find the mouth.
    """
    from transformers import CLIPConfig, CLIPModel

    words = captions.tokenizer()
    special = {f"{k}_token_id": getattr(words, f"{k}_token_id") for k in ("bos", "eos", "pad")}
    text = {
        "vocab_size": len(words), "hidden_size": 128, "intermediate_size": 256,
        "num_hidden_layers": 2, "num_attention_heads": 4,
        "max_position_embeddings": captions.MAX_TOKENS, "hidden_act": "gelu", **special,
    }  # fmt: skip
    vision = {
        "image_size": 64, "patch_size": 16, "hidden_size": 128, "intermediate_size": 384,
        "num_hidden_layers": 3, "num_attention_heads": 4, "hidden_act": "gelu",
    }  # fmt: skip
    config = CLIPConfig(text_config=text, vision_config=vision, projection_dim=96)
    network = CLIPModel._from_config(config, attn_implementation="eager")
    nn.init.normal_(network.vision_model.embeddings.position_embedding.weight, std=0.2)
    return network


def _clip_data() -> tuple[int, Callable]:
    faces, words = avatars.load("train", size=64), captions.tokenizer()
    meanings = torch.from_numpy(np.stack([option_of(a, faces.labels[a]) for a in ATTRIBUTES], 1))

    def fetch(indices: Tensor, rng: torch.Generator) -> tuple[Tensor, ...]:
        rows = indices.numpy()
        draw = np.random.default_rng(torch.randint(2**62, (1,), generator=rng).item())
        texts = captions.captions({k: v[rows] for k, v in faces.labels.items()}, rng=draw)
        subject = captions.SUBJECTS[draw.integers(len(captions.SUBJECTS))]
        prompts = [text for attribute in ATTRIBUTES for text in options(attribute, subject)]
        tokens = words([*texts, *prompts], padding="max_length", return_tensors="pt")
        pixels = avatars.to_float(faces.images[rows])
        return pixels, tokens.input_ids, tokens.attention_mask, meanings[indices]

    return len(faces.images), fetch


def _said(attribute: str) -> list[str]:
    """The phrase of each class of an attribute, "" where it has none."""
    return [captions.PHRASES[attribute].get(name, "") for name in avatars.CLASSES[attribute]]


def options(attribute: str, subject: str) -> list[str]:
    """The shortest captions that tell an attribute; a class without a phrase is the subject."""
    return [f"{subject} {phrase}".strip() for phrase in dict.fromkeys(_said(attribute))]


def option_of(attribute: str, labels: np.ndarray) -> np.ndarray:
    """Which of `options` is true of a face with class index `labels`, −1 where undefined."""
    said = _said(attribute)
    distinct = list(dict.fromkeys(said))
    return np.array([*map(distinct.index, said), avatars.UNDEFINED])[labels]


def _clip_loss(network: nn.Module, batch: tuple, rng: torch.Generator) -> Tensor:
    """Symmetric contrast of faces and captions, plus each face against the shortest captions.

    Random captions alone are told apart by the large parts of a face, and the small ones (mouth,
    facial hair) are learnt very late; the shortest captions name one attribute each.
    """
    images, ids, mask, meanings = batch
    images = coarsen(spoil(images, rng), rng)
    scores = network(pixel_values=images, input_ids=ids, attention_mask=mask).logits_per_image
    n = len(images)
    pairs, truth = scores[:, :n].float(), torch.arange(n, device=ids.device)
    loss = 0.5 * (F.cross_entropy(pairs, truth) + F.cross_entropy(pairs.T, truth))
    shortest = scores[:, n:].float().split([len(options(a, "")) for a in ATTRIBUTES], dim=1)
    for z, meaning in zip(shortest, meanings.unbind(1), strict=True):
        loss = loss + masked_cross_entropy(z, meaning)
    return loss


@torch.no_grad()
def measure_clip(network: nn.Module, *, count: int = 4000) -> dict:
    """Zero-shot accuracy per attribute at both sizes, and retrieval by full captions."""
    network.half().float()
    words = captions.tokenizer()
    result = {"zero_shot": {}, "retrieval": {}, "data_seed": 0, "held_out_faces": count}
    for size in (32, 64):
        faces = avatars.load("held-out", count, size=size)
        parts = avatars.to_float(faces.images).split(250)
        embedded = torch.cat([judge.image_features(network, part) for part in parts])
        result["zero_shot"][str(size)] = {
            attribute: _zero_shot(network, words, embedded, attribute, faces.labels[attribute])
            for attribute in captions.PHRASES
        }
        result["retrieval"][str(size)] = _retrieval(network, words, embedded, faces.labels)
    return result


def _embed_texts(network: nn.Module, words: Callable, texts: list[str]) -> Tensor:
    tokens = words(texts, padding="max_length", return_tensors="pt")
    return F.normalize(network.get_text_features(**tokens).pooler_output, dim=1)


def _zero_shot(
    network: nn.Module, words: Callable, embedded: Tensor, attribute: str, labels: np.ndarray
) -> float:
    """Accuracy of the nearest of the shortest captions, averaged over the subjects."""
    texts = [options(attribute, subject) for subject in captions.SUBJECTS]
    prompts = sum(_embed_texts(network, words, said) for said in texts)
    guess = (embedded @ F.normalize(prompts, dim=1).T).argmax(1)
    return accuracy_of(guess, torch.from_numpy(option_of(attribute, labels)))


def _retrieval(
    network: nn.Module, words: Callable, embedded: Tensor, labels: dict, among: int = 1000
) -> dict:
    """Recall of an image by its full caption, and back, among images of distinct captions."""
    texts = captions.captions(labels)
    rows = list({text: row for row, text in enumerate(texts)}.values())[:among]
    scores = _embed_texts(network, words, [texts[i] for i in rows]) @ embedded[rows].T
    result = {"among": len(rows)}
    for name, table in (("text_to_image", scores), ("image_to_text", scores.T)):
        better = (table > table.diagonal()[:, None]).sum(1)
        for k in (1, 5):
            result[f"{name}_at_{k}"] = round((better < k).double().mean().item(), 5)
    return result


def _save_clip(network: nn.Module, folder: Path, metrics: dict) -> None:
    words = captions.tokenizer()
    copy.deepcopy(network).half().save_pretrained(folder)
    words.save_pretrained(folder)
    purpose = "Kit CLIP: compares the kit's drawn faces, no others, with captions of its grammar."
    write_card(folder, "clip", purpose, LIMITS, metrics)


TASKS = {
    "judge-a": partial(judge_task, "a"),
    "judge-b": partial(judge_task, "b"),
    "clip": clip_task,
}
