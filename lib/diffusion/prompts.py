"""Texts that a model would misread are refused before they are encoded."""

import difflib
from collections.abc import Collection
from typing import Any


def check(prompt: str, tokenizer: Any, words: Collection[str] | None = None) -> None:
    """Refuse a prompt that a text model would take silently and wrongly.

    words: all that the model's captions can say; None for a model of free text, whose tokenizer
    has seen the pieces of any word. Raises ValueError for what is no text, a word outside `words`
    or outside the tokenizer, and more tokens than fit.
    """
    if not isinstance(prompt, str):
        raise ValueError(f"prompt {prompt!r} is of type {type(prompt).__name__}; give a text")
    if words is not None:
        check_words(prompt, words)
    tokens, limit = tokenizer(prompt).input_ids, tokenizer.model_max_length
    if len(tokens) > limit:
        raise ValueError(
            f"prompt {prompt!r} has {len(tokens) - 2} tokens; at most {limit - 2} fit: shorten it"
        )
    if tokenizer.unk_token_id in tokens[1:-1]:
        raise ValueError(
            f"prompt {prompt!r} has words that the model's tokenizer does not know; use the "
            "vocabulary that the model was trained with"
        )


def check_words(text: str, words: Collection[str]) -> None:
    """Raise ValueError for the first word of a text outside `words`, with the nearest of them.

    A tokenizer whose captions had few words spells any other in letters: the network then reads
    tokens that it never met in training, and draws something, whatever was asked.
    """
    for word in text.lower().split():
        if word not in words:
            near = difflib.get_close_matches(word, words) or sorted(words)
            raise ValueError(
                f"text {text!r}: the word {word!r} is unknown, no caption of the training had it; "
                f"try {', '.join(near)}"
            )
