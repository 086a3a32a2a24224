import hashlib
import platform
from pathlib import Path

import numpy as np
import pytest
from scipy.stats import chi2_contingency

from lib.faces import avatars, portraits

REFERENCE = Path(__file__).with_name("reference_faces.npy")
PINNED = platform.system() == "Linux" and platform.machine() == "x86_64"
# SHA-256 of RGB uint8 arrays (50, h, w, 3) for seeds "kit-0" ... "kit-49", exact on x86-64 Linux.
GOLDEN_PIXELS = {
    32: "1997cb8059c61fdcdfc7daca606062fa34a73a16b793eae43fe69f40c6d4e001",
    64: "8ca1142628b253b10f01d9c818622ec918242742b4d56b485822338b5bfb53cf",
}

# SHA-256 of the parts of the first 1,000 faces of each split, seed 0, and of the first 50 training
# images: the shipped networks were trained on this split, so another one would leak.
GOLDEN_SPLIT = {
    "train": "d5c5243071990aff875b3f8cf544d7fcd9d7401d76c90d8dbf772c386e4b90c5",
    "held-out": "9b0b2f5be90922b4663027788108396906b759b081bf33ebc552ae10e862fa59",
}
GOLDEN_FACES = {
    32: "82d19d993f8a63546e47e172f952e275933c87f6841200069a4712811d2bdc3e",
    64: "36f398926917724954eeaf2b36f8b78292e1decabbd5d4b967bbbac0f3940b82",
}


def digest(images):
    return hashlib.sha256(np.ascontiguousarray(images).tobytes()).hexdigest()


def pinned(parts, jitter):
    """The options of the drawing library that pin every part of one face."""
    return portraits.options(*avatars.named(parts), tuple(jitter.tolist()))


def render(chosen, size):
    """One face by the drawing library itself."""
    from dicebear import Avatar

    return portraits.rasterise(Avatar(portraits.style(), chosen).to_string(), size)


def options(**changes):
    """A plain face without jitter, some options replaced."""
    names = {name: list(variants) for name, variants in avatars.PARTS.items()}
    row = {
        "hair": "fade", "hair_colour": "7b4a2b", "eyes": "open", "mouth": "smile",
        "facial_hair": "goatee", "facial_hair_colour": "2b1b17", "skin": "eeb4a4",
        "background": "cfe3f5",
    }  # fmt: skip
    parts = np.array([names[name].index(value) for name, value in row.items()], np.int8)
    return pinned(parts, np.zeros(3)) | changes


def changed(a, b):
    """How many pixels differ visibly."""
    gap = np.abs(render(a, 32).astype(int) - render(b, 32).astype(int))
    return int((gap.max(-1) > 12).sum())


def test_the_style_and_its_rendering_are_the_pinned_ones():
    assert avatars.golden() == avatars.GOLDEN_SVG
    if PINNED:
        for size, golden in GOLDEN_PIXELS.items():
            assert (
                digest(np.stack([render({"seed": f"kit-{i}"}, size) for i in range(50)])) == golden
            )


def test_the_split_and_the_images_are_those_of_the_shipped_networks():
    split = {name: digest(avatars.draw(1000, name).parts) for name in avatars.COUNTS}
    assert split == GOLDEN_SPLIT
    if PINNED:
        for size, golden in GOLDEN_FACES.items():
            images = avatars.render_faces(avatars.draw(50), size, processes=1)
            assert digest(images) == golden


def test_four_reference_faces_render_within_two_grey_levels():
    faces = [render({"seed": f"kit-{i}"}, 32) for i in range(4)]
    assert np.abs(np.stack(faces).astype(int) - np.load(REFERENCE)).max() <= 2


def test_dicebear_core_is_installed_and_the_web_wrapper_is_not():
    from importlib.metadata import distributions

    names = {d.metadata["Name"] for d in distributions()}
    assert "dicebear-core" in names and "dicebear" not in names


def test_the_resolved_face_has_exactly_the_requested_parts():
    from dicebear import Avatar

    faces = avatars.draw(200)
    keys = {
        "hairVariant": "hair", "hairColor": "hair_colour", "eyesVariant": "eyes",
        "mouthVariant": "mouth", "facialHairVariant": "facial_hair",
        "facialHairColor": "facial_hair_colour", "skinColor": "skin",
        "backgroundColor": "background",
    }  # fmt: skip
    for parts, jitter in zip(*faces, strict=True):
        resolved = Avatar(portraits.style(), pinned(parts, jitter)).to_json()["options"]
        for index, (name, variants) in zip(parts, avatars.PARTS.items(), strict=True):
            key = next(k for k, v in keys.items() if v == name)
            value = list(variants)[index] if index >= 0 else ""
            if value and key.endswith("Color"):
                assert resolved[key] == [f"#{value}"]
            elif value:
                assert resolved[key] == value
            elif key == "facialHairVariant":
                assert key not in resolved
        assert [resolved[name] for name in avatars.JITTER] == pytest.approx(jitter, abs=1e-4)


def test_a_filled_in_face_is_the_librarys_own():
    from dicebear import Avatar

    faces = avatars.draw(300)
    for parts, jitter in zip(*faces, strict=True):
        filled = portraits.svg(*avatars.named(parts), jitter.tolist())
        assert filled == Avatar(portraits.style(), pinned(parts, jitter)).to_string()


def test_leaving_out_the_clip_of_the_canvas_changes_no_pixel():
    import io

    import resvg_py
    from PIL import Image

    for parts, jitter in zip(*avatars.draw(40, "held-out"), strict=True):
        text = portraits.svg(*avatars.named(parts), jitter.tolist())
        cropped = text.replace('viewBox="0 0 64 64"', f'viewBox="{portraits.CROP}"', 1)
        assert 'clip-path="url(#clip-' in cropped
        png = resvg_py.svg_to_bytes(
            svg_string=cropped, width=64, height=64, background="#ffffff", skip_system_fonts=True
        )
        clipped = np.asarray(Image.open(io.BytesIO(png)).convert("RGB"))
        assert (clipped == portraits.rasterise(text, 64)).all()


def test_labels_that_cannot_be_seen_together_never_are():
    labels = avatars.labels(avatars.draw(20_000).parts)
    hat = labels["hat"] == avatars.CLASSES["hat"].index("yes")
    bald = labels["hair_length"] == avatars.CLASSES["hair_length"].index("none")
    eyewear = labels["eyewear"] != avatars.CLASSES["eyewear"].index("none")
    assert (labels["hair_length"] < 0).tolist() == hat.tolist()
    assert (labels["hair_colour"] < 0).tolist() == (hat | bald).tolist()
    assert (labels["eyes"] < 0).tolist() == eyewear.tolist()
    assert all((labels[name] >= 0).all() for name in ("mouth", "facial_hair", "skin", "eyewear"))
    left_out = {"beardMustache", "bobBangs", "sideShave"}
    assert not left_out & {variant for part in avatars.PARTS.values() for variant in part}


def test_undefined_hair_colour_changes_no_pixel_and_defined_does():
    for style in avatars.PARTS["hair"]:
        dark = options(hairVariant=[style], hairColor=["2b1b17"])
        grey = options(hairVariant=[style], hairColor=["9c9c9c"])
        assert (changed(dark, grey) > 30) == (style not in ("bald", "beanie", "cap"))


@pytest.mark.parametrize(
    ("option", "a", "b", "pixels"),
    [
        ("eyesVariant", "open", "glasses", 80), ("eyesVariant", "glasses", "sunglasses", 20),
        ("mouthVariant", "smile", "bigSmile", 8), ("mouthVariant", "smile", "frown", 8),
        ("facialHairVariant", "goatee", "walrus", 20), ("skinColor", "eeb4a4", "b16a5b", 100),
    ],
)  # fmt: skip
def test_classes_differ_visibly(option, a, b, pixels):
    assert changed(options(**{option: [a]}), options(**{option: [b]})) > pixels


def test_the_crop_hides_the_clothes():
    red, blue = options(clothingColor=["ff0000"]), options(clothingColor=["0000ff"])
    assert (render(red, 64) == render(blue, 64)).all()


def test_attributes_are_independent():
    labels = avatars.labels(avatars.draw(20_000).parts)
    names = ("mouth", "eyewear", "facial_hair", "hat", "hair_length", "hair_colour", "skin")
    for i, first in enumerate(names):
        for second in names[i + 1 :]:
            a, b = labels[first], labels[second]
            seen = (a >= 0) & (b >= 0)
            table = np.zeros((a.max() + 1, b.max() + 1))
            np.add.at(table, (a[seen], b[seen]), 1)
            table = table[table.sum(1) > 0][:, table.sum(0) > 0]
            if 1 in table.shape:  # one of them is only seen with a single class of the other
                continue
            assert chi2_contingency(table).pvalue > 1e-4, (first, second)


def test_every_class_is_drawn_often():
    for name, values in avatars.labels(avatars.draw(20_000).parts).items():
        counts = np.bincount(values[values >= 0], minlength=len(avatars.CLASSES[name]))
        assert counts.min() > 1000, name


def test_a_face_depends_on_its_index_alone():
    few, many = avatars.draw(10, "held-out"), avatars.draw(700, "held-out")
    assert (few.parts == many.parts[:10]).all() and (few.jitter == many.jitter[:10]).all()
    assert (avatars.draw(10, seed=1).jitter != avatars.draw(10).jitter).any()


def test_no_label_set_is_in_both_splits_whatever_the_seed():
    train = {row.tobytes() for row in avatars.draw(20_000).parts}
    train |= {row.tobytes() for row in avatars.draw(20_000, seed=5).parts}
    held_out = {row.tobytes() for row in avatars.draw(5000, "held-out", seed=2).parts}
    assert not train & held_out and len(train) > 10_000 and len(held_out) > 3000


def test_no_image_is_in_both_splits():
    images = [avatars.render_faces(avatars.draw(150, s), 32) for s in avatars.COUNTS]
    train, held_out = ({image.tobytes() for image in split} for split in images)
    assert not train & held_out and len(train) == len(held_out) == 150


def test_about_one_face_in_six_is_held_out():
    share = avatars.held_out(avatars.draw(3000).parts).mean()
    assert share == 0.0
    candidates = avatars._block(0, 0)[0]
    assert abs(avatars.held_out(candidates).mean() - 1 / 6) < 0.05


def test_jitter_fills_its_range_and_no_more():
    jitter = avatars.draw(5000).jitter
    bounds = np.array(list(avatars.JITTER.values()))
    assert (np.abs(jitter) <= bounds).all() and (np.abs(jitter).max(0) > 0.99 * bounds).all()
    assert np.abs(jitter.mean(0) / bounds).max() < 0.05


def test_processes_do_not_change_the_images():
    faces = avatars.draw(130)
    one, two = (avatars.render_faces(faces, 16, processes=p) for p in (1, 2))
    alone = render(pinned(faces.parts[77], faces.jitter[77]), 16)
    assert (one == two).all() and (one[77] == alone.transpose(2, 0, 1)).all()


def test_the_loader_caches_prefixes_and_extends(tmp_path):
    first = avatars.load("train", 20, size=16, cache=tmp_path)
    path = next(tmp_path.rglob("*.npy"))
    written = path.stat().st_mtime_ns
    assert (avatars.load("train", 7, size=16, cache=tmp_path).images == first.images[:7]).all()
    assert path.stat().st_mtime_ns == written
    more = avatars.load("train", 30, size=16, cache=tmp_path)
    direct = avatars.render_faces(avatars.draw(30), 16)
    assert (more.images == direct).all() and (more.images[:20] == first.images).all()
    assert [p.suffix for p in tmp_path.rglob("*.*")] == [".npy"]
    with pytest.raises(ValueError, match="read-only"):
        more.images[0] = 0


def test_an_interrupted_loader_leaves_no_half_written_set(tmp_path, monkeypatch):
    def stop(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(avatars, "render_faces", stop)
    with pytest.raises(KeyboardInterrupt):
        avatars.load("train", 20, size=16, cache=tmp_path)
    monkeypatch.undo()
    assert not list(tmp_path.rglob("*.npy"))
    assert len(avatars.load("train", 20, size=16, cache=tmp_path).images) == 20


def test_pink_hair_can_be_withheld_and_nothing_else_is(tmp_path):
    everything = avatars.load("train", 60, size=16, cache=tmp_path)
    without = avatars.load("train", 60, size=16, pink=False, cache=tmp_path)
    pink = everything.labels["hair_colour"] == avatars.CLASSES["hair_colour"].index("pink")
    assert pink.any() and (without.images == everything.images[~pink]).all()
    for name, values in without.labels.items():
        assert (values == everything.labels[name][~pink]).all()


def test_attribution_and_notice_name_creator_source_licence_and_the_changes():
    meta = portraits.definition()["meta"]
    notice = (Path(__file__).parents[2] / "NOTICE").read_text(encoding="utf-8")
    for text in (avatars.attribution(), notice):
        for key in ("creator", "source", "license"):
            assert meta[key]["name"] in text and meta[key]["url"] in text
        assert "remixed via DiceBear" in text and "cropped, recoloured and rasterised" in text


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: avatars.draw(3, "test"), "split = 'test'"),
        (lambda: avatars.draw(-1), "n = -1"),
        (lambda: avatars.load("train", 3, size=0), "size = 0"),
        (lambda: avatars.load("train", 0), "n = 0"),
        (lambda: avatars.load("all"), "split = 'all'"),
    ],
)
def test_bad_input_is_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()
