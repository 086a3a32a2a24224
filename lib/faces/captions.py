"""The words of the kit: captions of a face, and a tokenizer that knows each of them whole.

caption = ("a face" | "a person") + any subset of the phrases of the visible attributes
"""

import string
from collections.abc import Iterable
from typing import Any

import numpy as np

from lib.diffusion.prompts import check_words
from lib.faces.avatars import CLASSES

SUBJECTS = ("a face", "a person")
# A class without a phrase (no beard, no hat, middle skin) goes unsaid.
PHRASES = {
    "eyewear": {
        "none": "without glasses",
        "glasses": "with glasses",
        "sunglasses": "with sunglasses",
    },
    "facial_hair": {
        "goatee": "with a beard",
        "walrus": "with a moustache",
        "pyramid": "with a moustache",
    },
    "hat": {"yes": "with a hat"},
    "mouth": {"smile": "smiling", "big smile": "with a big smile", "frown": "frowning"},
    "hair_length": {"long": "with long hair", "short": "with short hair", "none": "with no hair"},
    "hair_colour": {name: f"with {name} hair" for name in CLASSES["hair_colour"]},
    "skin": {"light": "with light skin", "dark": "with dark skin"},
}
# What a phrase says of a face: {phrase: (attribute, its classes)}.
MEANINGS = {
    phrase: (attribute, tuple(c for c in phrases if phrases[c] == phrase))
    for attribute, phrases in PHRASES.items()
    for phrase in phrases.values()
}
WORDS = tuple(dict.fromkeys(" ".join((*SUBJECTS, *MEANINGS)).split()))
MAX_TOKENS = 24
START, END = "<|startoftext|>", "<|endoftext|>"
DROP, DROP_ALL = 0.5, 0.1


def caption(classes: dict[str, str | None], *, rng: np.random.Generator | None = None) -> str:
    """One caption of a face with the given visible classes, {attribute: class or None}.

    Without `rng` it names all of them in a fixed order. With it, each is dropped with probability
    ½, all of them in one caption of ten, and what is left comes in random order.
    Raises ValueError for an unknown attribute or class.
    """
    phrases = [*filter(None, (_phrase(*item) for item in classes.items() if item[1]))]
    if rng is None:
        return " ".join((SUBJECTS[0], *phrases))
    subject = SUBJECTS[rng.integers(len(SUBJECTS))]
    keep = (rng.random(len(phrases)) >= DROP) & (rng.random() >= DROP_ALL)
    said = [phrase for phrase, kept in zip(phrases, keep, strict=True) if kept]
    return " ".join((subject, *(said[i] for i in rng.permutation(len(said)))))


def _phrase(attribute: str, value: str) -> str | None:
    if value not in CLASSES.get(attribute, ()):
        raise ValueError(
            f"classes has {attribute} = {value!r}, which is no label; expected {CLASSES}."
        )
    return PHRASES.get(attribute, {}).get(value)


def captions(labels: dict[str, np.ndarray], *, rng: np.random.Generator | None = None) -> list[str]:
    """The captions of faces with class indices `labels`, as `avatars.labels` returns them."""
    names = [name for name in PHRASES if name in labels]
    visible = [[*CLASSES[name], None] for name in names]  # UNDEFINED is the last place
    rows = zip(*(labels[name].tolist() for name in names), strict=True)
    named = ([v[i] for v, i in zip(visible, row, strict=True)] for row in rows)
    return [caption(dict(zip(names, row, strict=True)), rng=rng) for row in named]


def true_of(phrases: Iterable[str], classes: dict[str, np.ndarray]) -> np.ndarray:
    """Where all phrases are true, bool (n,), of class indices {attribute: (n,)}, drawn or read.

    An attribute that is not visible (index UNDEFINED) makes no phrase of it true.
    Raises ValueError for a phrase that is not among `MEANINGS`.
    """
    true = np.ones(len(next(iter(classes.values()))), bool)
    for phrase in phrases:
        if phrase not in MEANINGS:
            raise ValueError(f"phrase = {phrase!r}: expected one of {', '.join(MEANINGS)}.")
        attribute, wanted = MEANINGS[phrase]
        true &= np.isin(classes[attribute], [CLASSES[attribute].index(name) for name in wanted])
    return true


def tokenizer() -> Any:
    """A `CLIPTokenizer` whose merges make every word of the grammar one token.

    Merges are appended word by word, always joining the first two pieces that all earlier merges
    leave; a later merge ranks below them, so it cannot split a word that is already whole.
    """
    from tokenizers.models import BPE
    from transformers import CLIPTokenizer

    tokens = [*string.ascii_lowercase, *(c + "</w>" for c in string.ascii_lowercase)]
    merges: list[tuple[str, str]] = []
    for word in WORDS:
        while True:
            known = {token: index for index, token in enumerate(tokens)}
            pieces = BPE(known, merges, end_of_word_suffix="</w>").tokenize(word)
            if len(pieces) == 1:
                break
            merges.append((pieces[0].value, pieces[1].value))
            tokens.append("".join(merges[-1]))
    vocabulary = {token: index for index, token in enumerate([*tokens, START, END])}
    return CLIPTokenizer(vocab=vocabulary, merges=merges, model_max_length=MAX_TOKENS)


def check(texts: list[str]) -> None:
    """Refuse texts that a tokenizer would take silently and wrongly.
    Raises ValueError for a word outside the grammar, or more words than a caption can hold.
    """
    for text in texts:
        check_words(text, WORDS)
        count = len(text.split())
        if count > MAX_TOKENS - 2:
            raise ValueError(f"text {text!r} has {count} words, expected at most {MAX_TOKENS - 2}.")
