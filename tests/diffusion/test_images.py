"""Pictures of every kind that people have: each against the pixels that it was made from."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image, features

from lib.diffusion import images, models, sampling

SIZE = 16
COLOURS = SimpleNamespace(image_shape=(3, SIZE, SIZE), device="cpu", source="colours")
GREY = SimpleNamespace(image_shape=(1, SIZE, SIZE), device="cpu", source="grey")


def pixels(height=SIZE, width=SIZE, channels=3):
    """A smooth picture without any symmetry, uint8 (height, width, channels)."""
    y, x = np.meshgrid(np.linspace(0, 1, height), np.linspace(0, 1, width), indexing="ij")
    waves = [60 + 120 * x * y + 60 * y, 200 - 90 * x + 40 * y, 30 + 200 * x**2]
    return np.stack(waves[:channels], -1).round().astype(np.uint8)


def as_model(array):
    """uint8 (h, w, 3) -> float (1, 3, h, w)."""
    return torch.from_numpy(array).permute(2, 0, 1)[None].float() / 127.5 - 1


def written(folder, picture, name="picture.png", **options):
    picture.save(folder / name, **options)
    return folder / name


@pytest.mark.parametrize(
    "suffix", ["png", "bmp", "tiff", "ppm", "tga", "gif", "webp", "jpg", "jp2"]
)
def test_formats_give_the_pixels_back(tmp_path, suffix):
    if suffix in ("webp", "jp2") and not features.check(
        {"webp": "webp", "jp2": "jpg_2000"}[suffix]
    ):
        pytest.skip(f"this Pillow has no {suffix}")
    options = {"webp": {"lossless": True}, "jpg": {"quality": 100, "subsampling": 0}}
    path = written(tmp_path, Image.fromarray(pixels()), f"a.{suffix}", **options.get(suffix, {}))
    found = images.read(path, COLOURS)
    assert found.dtype == torch.float32 and found.shape == (1, 3, SIZE, SIZE)
    allowed = {"jpg": 0.03, "gif": 0.2, "jp2": 0.03}.get(suffix, 1e-6)
    assert float((found - as_model(pixels())).abs().max()) <= allowed


@pytest.mark.parametrize("turn", range(1, 9))
def test_a_picture_is_turned_as_its_camera_says(tmp_path, turn):
    """The eight EXIF orientations: the stored picture is the inverse of the turn."""
    upright = Image.fromarray(pixels())
    T = Image.Transpose
    inverse = {
        2: T.FLIP_LEFT_RIGHT, 3: T.ROTATE_180, 4: T.FLIP_TOP_BOTTOM, 5: T.TRANSPOSE,
        6: T.ROTATE_90, 7: T.TRANSVERSE, 8: T.ROTATE_270,
    }  # fmt: skip
    stored = upright.transpose(inverse[turn]) if turn > 1 else upright
    exif = Image.Exif()
    exif[0x0112] = turn
    path = written(tmp_path, stored, exif=exif)
    assert torch.equal(images.read(path, COLOURS), as_model(pixels()))


def test_transparency_is_laid_on_white_whatever_hides_below(tmp_path):
    rgba = np.dstack([pixels(), np.full((SIZE, SIZE), 255, np.uint8)])
    rgba[:8, :, 3], rgba[8:12, :, 3] = 0, 128
    expected = as_model(pixels())
    expected[..., :8, :] = 1
    share = 128 / 255
    expected[..., 8:12, :] = share * expected[..., 8:12, :] + (1 - share)
    found = images.read(written(tmp_path, Image.fromarray(rgba)), COLOURS)
    torch.testing.assert_close(found, expected, atol=0.01, rtol=0)
    grey = Image.fromarray(np.stack([rgba[..., 0], rgba[..., 3]], -1), "LA")
    found = images.read(written(tmp_path, grey, "grey.png"), COLOURS)
    torch.testing.assert_close(found, expected[:, :1].expand(-1, 3, -1, -1), atol=0.01, rtol=0)


def test_a_palette_with_a_transparent_colour_is_laid_on_white(tmp_path):
    picture = Image.new("P", (SIZE, SIZE), 0)
    picture.putpalette([255, 0, 0, 0, 0, 255])
    picture.paste(1, (0, 0, SIZE, 8))
    found = images.read(written(tmp_path, picture, transparency=0), COLOURS)[0]
    assert torch.equal(found[:, :8].mean((1, 2)), torch.tensor([-1.0, -1.0, 1.0]))
    assert bool((found[:, 8:] == 1).all())


def test_printers_colours_and_others_are_those_of_the_screen(tmp_path):
    expected = as_model(pixels())
    for mode, name in (("CMYK", "a.tiff"), ("CMYK", "a.jpg"), ("YCbCr", "b.tiff")):
        options = {"quality": 100, "subsampling": 0} if name.endswith("jpg") else {}
        path = written(tmp_path, Image.fromarray(pixels()).convert(mode), name, **options)
        assert Image.open(path).mode == mode
        torch.testing.assert_close(images.read(path, COLOURS), expected, atol=0.04, rtol=0)


@pytest.mark.parametrize("name", ["deep.png", "deep.tiff", "deep.pgm"])
def test_sixteen_bits_are_not_cut_at_the_eighth(tmp_path, name):
    deep = (np.linspace(0, 1, SIZE * SIZE).reshape(SIZE, SIZE) * 65535).round().astype(np.uint16)
    if name.endswith("pgm"):
        header = f"P5 {SIZE} {SIZE} 65535\n".encode()
        (tmp_path / name).write_bytes(header + deep.astype(">u2").tobytes())
    else:
        Image.fromarray(deep).save(tmp_path / name)
    found = images.read(tmp_path / name, COLOURS)
    expected = torch.from_numpy(deep / 32767.5 - 1).float().expand(1, 3, -1, -1)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)
    torch.testing.assert_close(
        images.read(tmp_path / name, GREY), expected[:, :1], atol=1e-5, rtol=0
    )


def test_grey_and_black_and_white_serve_a_model_of_colours_and_colours_a_grey_one(tmp_path):
    grey = pixels()[..., 0]
    found = images.read(written(tmp_path, Image.fromarray(grey)), COLOURS)
    assert torch.equal(found, as_model(np.dstack([grey] * 3)))
    bits = Image.fromarray(grey > 120)
    found = images.read(written(tmp_path, bits, "bits.png"), COLOURS)
    assert torch.equal(found, as_model(np.dstack([255 * (grey > 120).astype(np.uint8)] * 3)))
    luma = pixels() @ np.array([0.299, 0.587, 0.114])
    found = images.read(written(tmp_path, Image.fromarray(pixels()), "c.png"), GREY)
    assert np.abs(found[0, 0].numpy() - (luma / 127.5 - 1)).max() < 0.01


@pytest.mark.parametrize(("height", "width"), [(16, 40), (40, 16), (17, 16), (16, 17)])
def test_the_middle_is_kept(tmp_path, height, width):
    whole = pixels(height, width)
    top, left = (height - 16) // 2, (width - 16) // 2
    found = images.read(written(tmp_path, Image.fromarray(whole)), COLOURS)
    assert torch.equal(found, as_model(whole[top : top + 16, left : left + 16]))


@pytest.mark.parametrize("side", [1, 5, 64, 160])
def test_other_sizes_are_resized_without_aliasing(tmp_path, side):
    found = images.read(written(tmp_path, Image.fromarray(pixels(side, side))), COLOURS)
    assert found.shape == (1, 3, SIZE, SIZE) and float(found.abs().max()) <= 1
    if side > SIZE:
        torch.testing.assert_close(found, as_model(pixels()), atol=0.1, rtol=0)
        checks = (np.indices((side, side)).sum(0) % 2 * 255).astype(np.uint8)
        found = images.read(written(tmp_path, Image.fromarray(checks), "c.png"), COLOURS)
        assert float(found.abs().max()) < 0.1  # the mean of black and white


def test_of_an_animation_the_first_frame_is_read(tmp_path):
    first, second = (Image.new("RGB", (SIZE, SIZE), c) for c in ("red", "blue"))
    path = written(tmp_path, first, "a.gif", save_all=True, append_images=[second])
    assert torch.equal(images.read(path, COLOURS)[0, :, 0, 0], torch.tensor([1.0, -1.0, -1.0]))


def test_files_that_are_no_pictures_are_named(tmp_path):
    good = written(tmp_path, Image.fromarray(pixels(200, 200)), "good.png")
    (tmp_path / "empty.png").touch()
    (tmp_path / "text.png").write_text("no picture")
    (tmp_path / "cut.png").write_bytes(good.read_bytes()[:-2000])
    (tmp_path / "cut.jpg").write_bytes(
        written(tmp_path, Image.fromarray(pixels(99, 99)), "j.jpg").read_bytes()[:900]
    )
    (tmp_path / "folder.png").mkdir()
    Image.fromarray(np.ones((9, 9), np.float32)).save(tmp_path / "float.tiff")
    expected = {
        "none.png": "is not there", "empty.png": "is empty", "text.png": "cannot be read",
        "cut.png": "cannot be read", "cut.jpg": "cannot be read", "folder.png": "is a folder",
        "float.tiff": "32-bit",
    }  # fmt: skip
    for name, message in expected.items():
        with pytest.raises(ValueError, match=rf"{name}.*{message}"):
            images.read([good, tmp_path / name], COLOURS)
    with pytest.raises(ValueError, match="at least one"):
        images.read([], COLOURS)
    for paths, holds in ((Image.open(good), "PngImageFile"), ([good, torch.ones(3)], "Tensor")):
        with pytest.raises(ValueError, match=rf"paths holds a {holds}; give files"):
            images.read(paths, COLOURS)
    for swapped in (("avatars-ddpm", "face.png"), (COLOURS, good)):
        with pytest.raises(ValueError, match=r"read\(paths, generator\) with what models.load"):
            images.read(*swapped)
    assert len(images.read(iter([good, str(good)]), COLOURS)) == 2
    with pytest.raises(ValueError, match="4 channels"):
        images.read(good, SimpleNamespace(image_shape=(4, 8, 8), source="deep"))


def test_what_is_saved_is_read_back(tmp_path):
    batch = torch.cat([as_model(pixels()), -as_model(pixels())])
    files = images.save(batch, tmp_path / "faces")
    assert [f.name for f in files] == ["000.png", "001.png"]
    assert float((images.read(files, COLOURS) - batch).abs().max()) < 1e-6
    (one,) = images.save(1.2 * batch[:1], str(tmp_path / "new" / "one.PNG"))
    expected = (1.2 * batch[:1]).clamp(-1, 1)
    assert float((images.read(str(one), COLOURS) - expected).abs().max()) < 0.005
    (grey,) = images.save(batch[:1, :1], tmp_path / "grey.png")
    assert Image.open(grey).mode == "L"
    assert torch.equal(images.read(grey, COLOURS)[:, :1], images.read(files[0], COLOURS)[:, :1])


def test_a_sheet_shows_every_image_in_its_place(tmp_path):
    batch = torch.rand(5, 3, 4, 6, generator=torch.Generator().manual_seed(0)) * 2 - 1
    for columns, shape in ((None, (8, 18)), (2, (12, 12)), (5, (4, 30))):
        (file,) = images.save(batch, tmp_path / "sheet.png", columns=columns)
        sheet = as_model(np.array(Image.open(file)))[0]
        assert sheet.shape[1:] == shape
        across = shape[1] // 6
        for i in range(shape[0] // 4 * across):
            y, x = 4 * (i // across), 6 * (i % across)
            place = sheet[:, y : y + 4, x : x + 6]
            expected = batch[i] if i < 5 else torch.ones(3, 4, 6)
            torch.testing.assert_close(place, expected, atol=0.005, rtol=0)


def test_nothing_half_written_is_left(tmp_path, monkeypatch):
    good = torch.zeros(1, 3, 4, 4)
    (file,) = images.save(good, tmp_path / "a.png")
    before = file.read_bytes()

    def fail(self, target, kind):
        target.write_bytes(b"half")
        raise OSError("disk full")

    monkeypatch.setattr(Image.Image, "save", fail)
    with pytest.raises(OSError, match="disk full"):
        images.save(good + 0.5, file)
    assert file.read_bytes() == before and [p.name for p in tmp_path.iterdir()] == ["a.png"]


@pytest.mark.parametrize(
    ("batch", "name", "message"),
    [
        (torch.zeros(3, 4, 4), "a.png", "shape"),
        (torch.zeros(1, 2, 4, 4), "a.png", "1 or 3"),
        (torch.zeros(0, 3, 4, 4), "a.png", "shape"),
        (torch.full((1, 3, 4, 4), 200.0), "a.png", "127.5"),
        (torch.zeros(1, 3, 4, 4, dtype=torch.uint8), "a.png", "uint8"),
        (torch.full((1, 3, 4, 4), float("nan")), "a.png", "finite"),
        (torch.zeros(1, 3, 4, 4, dtype=torch.bool), "a.png", "bool"),
        ([torch.zeros(3, 4, 4)], "faces", "stack"),
        (torch.zeros(1, 3, 4, 4), "a.face", "no format"),
        (torch.zeros(1, 3, 4, 4), "a.psd", "no format"),  # Pillow reads it, and writes none
    ],
)
def test_what_cannot_be_saved_is_refused(tmp_path, batch, name, message):
    with pytest.raises(ValueError, match=message):
        images.save(batch, tmp_path / name)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("columns", [0, -1, 2.5])
def test_a_sheet_without_columns_is_refused(tmp_path, columns):
    with pytest.raises(ValueError, match="columns"):
        images.save(torch.zeros(3, 3, 4, 4), tmp_path / "a.png", columns=columns)


def test_a_file_and_a_folder_do_not_replace_each_other(tmp_path):
    (tmp_path / "faces").write_text("a file")
    (tmp_path / "faces.png").mkdir()
    for name in ("faces", "faces.png"):
        with pytest.raises(ValueError, match="another kind"):
            images.save(torch.zeros(1, 3, 4, 4), tmp_path / name)


def test_own_pictures_go_through_a_model_and_back(tmp_path):
    generator = models.load("avatars-ddpm")
    drawn = sampling.ddim(generator, generator.noise(1, 0), steps=10)
    (path,) = images.save(drawn, tmp_path / "face.jpg")
    own = images.read(path, generator)
    latents = sampling.invert(generator, own, steps=10, refine=5)
    again = sampling.ddim(generator, latents, steps=10)
    assert float((again - own).abs().mean()) < 0.2
