import numpy as np
import pytest

from lib.faces import avatars, captions

TOKENS = captions.tokenizer()


def labels(n=4000):
    return avatars.labels(avatars.draw(n, seed=4).parts)


def said(text):
    """The phrases of a caption, read back by splitting before every phrase's first word."""
    for subject in captions.SUBJECTS:
        if text.startswith(subject):
            rest, found = text.removeprefix(subject).strip(), []
            while rest:
                phrase = max((m for m in captions.MEANINGS if rest.startswith(m)), key=len)
                found.append(phrase)
                rest = rest.removeprefix(phrase).strip()
            return found
    raise AssertionError(text)


def test_every_word_is_one_known_token():
    for word in captions.WORDS:
        start, token, end = TOKENS(word).input_ids
        assert (start, end) == (TOKENS.bos_token_id, TOKENS.eos_token_id)
        assert TOKENS.convert_ids_to_tokens(token) == word + "</w>" and token != TOKENS.unk_token_id
    assert {"sunglasses", "blond"} <= set(captions.WORDS)


def test_every_caption_fits_and_survives_the_round_trip():
    everything = captions.captions(labels(2000))
    random = captions.captions(labels(2000), rng=np.random.default_rng(0))
    for text in (*everything, *random):
        ids = TOKENS(text).input_ids
        assert len(ids) <= captions.MAX_TOKENS
        assert len(ids) == len(text.split()) + 2
        assert TOKENS.decode(ids, skip_special_tokens=True) == text
    assert max(len(TOKENS(text).input_ids) for text in everything) >= 22


def test_a_phrase_is_true_of_exactly_the_faces_whose_caption_says_it():
    table = labels(500)
    texts = [said(text) for text in captions.captions(table)]
    for phrase in captions.MEANINGS:
        assert captions.true_of([phrase], table).tolist() == [phrase in text for text in texts]
    pair = ("with a hat", "with glasses")
    both = captions.true_of(pair, table)
    assert both.any() and both.tolist() == [set(pair) <= set(text) for text in texts]
    assert not captions.true_of(("with a beard", "with a moustache"), table).any()
    with pytest.raises(ValueError, match="expected one of"):
        captions.true_of(["with wings"], table)


def test_a_saved_tokenizer_reads_the_same(tmp_path):
    from transformers import CLIPTokenizer

    TOKENS.save_pretrained(tmp_path)
    text = captions.captions(labels(50))
    assert CLIPTokenizer.from_pretrained(tmp_path)(text).input_ids == TOKENS(text).input_ids


def test_a_caption_says_only_what_is_true_and_visible():
    table = labels()
    for rng in (None, np.random.default_rng(1)):
        for row, text in enumerate(captions.captions(table, rng=rng)):
            for phrase in said(text):
                attribute, classes = captions.MEANINGS[phrase]
                index = table[attribute][row]
                assert index >= 0 and avatars.CLASSES[attribute][index] in classes


def test_the_full_caption_says_every_visible_attribute_once():
    table = labels(500)
    for row, text in enumerate(captions.captions(table)):
        expected = {
            phrases[avatars.CLASSES[attribute][table[attribute][row]]]
            for attribute, phrases in captions.PHRASES.items()
            if table[attribute][row] >= 0
            and avatars.CLASSES[attribute][table[attribute][row]] in phrases
        }
        assert sorted(said(text)) == sorted(expected)


def test_attributes_are_dropped_by_half_and_all_of_them_in_a_tenth():
    table = labels(8000)
    table = {name: values[table["eyewear"] == 1] for name, values in table.items()}  # with glasses
    texts = captions.captions(table, rng=np.random.default_rng(2))
    named = np.mean(["with glasses" in said(text) for text in texts])
    error = np.sqrt(0.45 * 0.55 / len(texts))
    assert abs(named - 0.45) < 4 * error
    bare = np.mean([text in captions.SUBJECTS for text in texts])
    visible = np.array([len(said(text)) for text in captions.captions(table)])
    expected = np.mean(0.1 + 0.9 * 0.5**visible)
    assert abs(bare - expected) < 4 * np.sqrt(expected * (1 - expected) / len(texts))
    assert abs(np.mean([t.startswith("a face") for t in texts]) - 0.5) < 4 * error


def test_random_captions_come_in_any_order_and_repeat_with_the_generator():
    table = labels(300)
    first, again = (captions.captions(table, rng=np.random.default_rng(3)) for _ in range(2))
    assert first == again
    pairs = [text for text in first if "hair" in text and "glasses" in text]
    order = {text.index("hair") < text.index("glasses") for text in pairs}
    assert order == {True, False}


def test_every_phrase_of_the_grammar_occurs():
    texts = captions.captions(labels())
    assert {phrase for text in texts for phrase in said(text)} == set(captions.MEANINGS)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: captions.caption({"mouth": "grin"}), "mouth = 'grin'"),
        (lambda: captions.caption({"nose": "big"}), "nose = 'big'"),
        (lambda: captions.check(["a face with sunglases"]), "try .*sunglasses"),
        (lambda: captions.check(["a face " + "with glasses " * 11]), "24 words"),
    ],
)
def test_bad_input_is_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()
