"""The four files are read and checked; the carried photographs are the first of them."""

import functools
import gzip
import hashlib
import http.server
import threading

import numpy as np
import pytest
import torch

from lib.garments import measures, photographs


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A set of three photographs in the files' own format, known by its digests."""
    pixels = np.arange(3 * 28 * 28, dtype=np.uint32) % 251
    content = {
        "t10k-images-idx3-ubyte": bytes(16) + pixels.astype(np.uint8).tobytes(),
        "t10k-labels-idx1-ubyte": bytes(8) + bytes([9, 0, 4]),
    }
    for name, data in content.items():
        (tmp_path / f"{name}.gz").write_bytes(gzip.compress(data))
        monkeypatch.setitem(photographs.DIGESTS, name, hashlib.sha256(data).hexdigest())
    return tmp_path


def test_files_of_a_folder_become_padded_images_in_range(folder):
    images, labels = photographs.load("held-out", folder)
    assert images.shape == (3, 1, 32, 32) and labels.tolist() == [9, 0, 4]
    assert images[0, 0, 2, 2] == -1 and images[0, 0, 2, 3] == pytest.approx(1 / 127.5 - 1)
    frame = images.clone()
    frame[..., 2:30, 2:30] = -1
    assert (frame == -1).all()


@pytest.mark.parametrize("spoil", ["other", "cut", "none"])
def test_a_file_that_is_another_or_broken_or_missing_is_refused_by_name(folder, spoil):
    path = folder / "t10k-labels-idx1-ubyte.gz"
    if spoil == "none":
        path.unlink()
    else:
        path.write_bytes(gzip.compress(b"x") if spoil == "other" else path.read_bytes()[:-4])
    with pytest.raises(ValueError, match="t10k-labels-idx1-ubyte"):
        photographs.load("held-out", folder)


def test_without_files_and_network_the_error_says_how_to_mend_it(tmp_path, monkeypatch):
    monkeypatch.setattr(photographs, "DEBIAN", tmp_path)
    monkeypatch.setattr(photographs, "CACHE", tmp_path)
    monkeypatch.setitem(__import__("sys").modules, "pooch", None)
    with pytest.raises(ValueError, match="dataset-fashion-mnist"):
        photographs.load("train")
    with pytest.raises(ValueError, match="'held-out', 'train'"):
        photographs.load("test")


def test_the_carried_photographs_are_small_and_the_first_of_the_held_out_ones():
    assert photographs.CARRIED.stat().st_size <= 200_000
    own = photographs.held_out()
    assert own.images.shape == (256, 1, 32, 32)
    if not photographs.DEBIAN.is_dir():
        pytest.skip("the whole set is not on this machine")
    images, labels = photographs.load("held-out", photographs.DEBIAN)
    assert torch.equal(own.images, images[:256]) and torch.equal(own.labels, labels[:256])


def test_measured_sleeves_tell_classes_apart_that_differ_in_them():
    images, labels = photographs.held_out()
    long = measures.sleeves(images) > measures.TABLE["sleeves"].threshold
    kinds = [photographs.CLASSES[k] for k in labels]
    rows = {
        name: [float(long[i]) for i, kind in enumerate(kinds) if kind == name] for name in kinds
    }
    assert np.mean(rows["pullover"] + rows["coat"]) > 0.9 and np.mean(rows["T-shirt"]) < 0.4


@pytest.fixture
def served(folder, tmp_path_factory, monkeypatch):
    """The same files at an address of this machine, and nowhere else; what was asked for."""
    asked = []

    class Shelf(http.server.SimpleHTTPRequestHandler):
        def do_GET(self):
            asked.append(self.path)
            super().do_GET()

        def log_message(self, *_):
            pass

    shelf = functools.partial(Shelf, directory=folder)
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), shelf)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setattr(photographs, "ADDRESS", f"http://127.0.0.1:{server.server_port}/")
    monkeypatch.setattr(photographs, "DEBIAN", folder / "none")
    monkeypatch.setattr(photographs, "CACHE", tmp_path_factory.mktemp("kept"))
    yield asked
    server.shutdown()
    server.server_close()


def test_what_no_folder_has_is_fetched_once_and_kept(served, folder):
    pytest.importorskip("pooch", reason="the download needs pooch, of the extra `garments`")
    found, again = photographs.load("held-out"), photographs.load("held-out")
    assert torch.equal(found.images, photographs.load("held-out", folder).images)
    assert torch.equal(found.images, again.images) and found.labels.tolist() == [9, 0, 4]
    assert sorted(served) == ["/t10k-images-idx3-ubyte.gz", "/t10k-labels-idx1-ubyte.gz"]


@pytest.mark.parametrize("spoil", ["other", "none"])
def test_a_download_of_something_else_is_refused_by_name(served, folder, spoil):
    pytest.importorskip("pooch", reason="the download needs pooch, of the extra `garments`")
    path = folder / "t10k-images-idx3-ubyte.gz"
    path.unlink() if spoil == "none" else path.write_bytes(gzip.compress(b"x"))
    with pytest.raises(ValueError, match="t10k-images-idx3-ubyte"):
        photographs.load("held-out")
