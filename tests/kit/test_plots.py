"""Figures carry alt text and provenance, are equal files when equal, and show fields upright."""

import base64
import html.parser
import io
import json
import platform
from xml.etree import ElementTree

import matplotlib
import matplotlib.pyplot as plt
import nbformat
import numpy as np
import pytest
from PIL import Image

from book import exports
from lib.kit import plots

ALT = "Line from 0 to 1: rises by one — β"


def line_figure():
    fig, ax = plots.figure()
    ax.plot([0, 1], [0, 1])
    return fig


def test_png_alt_text_and_provenance_lie_side_by_side(session_in):
    plots.save_figure(line_figure(), "line", ALT)
    path = session_in / "line.png"
    assert (session_in / "line.txt").read_text() == ALT + "\n"
    with Image.open(path) as image:
        assert image.size == (495, 371) and image.text == {"Description": ALT}
    provenance = json.loads((session_in / "line.json").read_text())
    assert provenance["profile"] == "quick" and provenance["sizes"] == {"samples": 4}
    assert platform.node() not in (session_in / "line.json").read_text()


@pytest.fixture
def shown(monkeypatch):
    """What is displayed, as in a notebook."""
    bundles = []
    monkeypatch.setattr("IPython.get_ipython", lambda: object())
    monkeypatch.setattr("IPython.display.display", lambda data, **kw: bundles.append((data, kw)))
    return bundles


def test_a_figure_is_shown_once_with_its_alt_text_and_the_same_text_below(session_in, shown):
    alt = 'Above x < 1 & y > 2 the "edge" rises'
    plots.save_figure(line_figure(), "line", alt)
    (picture, options), (caption, _) = shown
    inline, written = base64.b64decode(picture["image/png"]), (session_in / "line.png").read_bytes()
    widths = [Image.open(io.BytesIO(png)).size[0] for png in (inline, written)]
    assert widths == [330, 495]  # 3.3 inches at 100 and at 150 dpi
    assert options["metadata"]["image/png"]["alt"] == picture["text/plain"] == alt
    assert set(picture) == {"image/png", "text/plain"} and set(caption) == {"text/html"}
    (paragraph,) = ElementTree.fromstring(caption["text/html"]).iter("small")
    assert paragraph.text == alt


def test_a_page_of_html_has_the_alt_text_and_the_caption(session_in, shown):
    alt = 'Above x < 1 & y > 2 the "edge" rises'
    plots.save_figure(line_figure(), "line", alt)
    outputs = [
        nbformat.v4.new_output("display_data", data, metadata=options.get("metadata", {}))
        for data, options in shown
    ]
    cells = [nbformat.v4.new_code_cell("x", outputs=outputs)]
    found = Images()
    found.feed(exports.page(nbformat.v4.new_notebook(cells=cells), "a page"))
    assert found.alts == [alt] and alt in found.text


class Images(html.parser.HTMLParser):
    """Alternative texts of the images of a page, and its text."""

    def __init__(self):
        super().__init__()
        self.alts, self.text = [], ""

    def handle_starttag(self, tag, attrs):
        if tag == "img":
            self.alts.append(dict(attrs).get("alt"))

    def handle_data(self, data):
        self.text += data


def test_equal_figures_are_equal_files(session_in):
    plots.save_figure(line_figure(), "line", ALT)
    first = (session_in / "line.png").read_bytes()
    plots.save_figure(line_figure(), "line", ALT)
    assert (session_in / "line.png").read_bytes() == first


def test_a_saved_figure_is_closed(session_in):
    plots.save_figure(line_figure(), "line", ALT)
    assert plt.get_fignums() == []


@pytest.mark.parametrize("alt", ["", "  \n", None])
def test_a_figure_without_alt_text_is_refused(session_in, alt):
    with pytest.raises(ValueError, match="alt text"):
        plots.save_figure(line_figure(), "line", alt)
    plt.close("all")


@pytest.mark.parametrize("name", ["", "../line", "a b", "line.png"])
def test_a_figure_name_is_a_plain_name(session_in, name):
    with pytest.raises(ValueError, match="figure name"):
        plots.save_figure(line_figure(), name, ALT)
    plt.close("all")


def test_a_heavy_figure_is_reported(session_in):
    fig, ax = plots.figure("page", 6)
    ax.imshow(np.random.default_rng(0).random((600, 700, 3)), interpolation="nearest")
    with pytest.warns(UserWarning, match="more than 150 kB"):
        plots.save_figure(fig, "heavy", ALT)


def test_a_figure_of_images_gets_a_palette_and_keeps_its_description(session_in):
    fig, ax = plots.figure("page", 4)
    ax.imshow(np.random.default_rng(0).random((100, 100, 3)), interpolation="nearest")
    plots.save_figure(fig, "strip", ALT)
    with Image.open(session_in / "strip.png") as image:
        assert image.mode == "P" and image.size == (1035, 600)
        assert image.text == {"Description": ALT}
        whole = np.asarray(image.convert("RGB"), float)
    with Image.open(io.BytesIO(reference_png(fig))) as image:
        assert np.abs(np.asarray(image.convert("RGB"), float) - whole).mean() < 12


def test_a_field_keeps_the_colours_of_its_map(session_in):
    fig, ax = plots.figure("page", 4)
    axis = np.arange(100.0)
    values = np.random.default_rng(0).random((100, 100))
    plots.heatmap(ax, axis, axis, values, label="a field")
    plots.save_figure(fig, "field", ALT)
    assert (session_in / "field.png").stat().st_size > plots.HEAVY_PNG
    with Image.open(session_in / "field.png") as image:
        assert image.mode != "P" and len(image.convert("RGB").getcolors(10**6)) > 200


def reference_png(fig):
    buffer = io.BytesIO()
    fig.savefig(buffer, format="png", dpi=plots.FILE_DPI)
    return buffer.getvalue()


def test_widths_are_those_of_the_page_and_others_are_refused():
    assert plots.figure("page", 2)[0].get_size_inches().tolist() == [6.9, 2]
    with pytest.raises(ValueError, match="column"):
        plots.figure("colum")
    plt.close("all")


def pixels(fig):
    buffer = io.BytesIO()
    fig.savefig(buffer, format="rgba", dpi=50)
    width, height = (int(size * 50) for size in fig.get_size_inches())
    return np.frombuffer(buffer.getvalue(), np.uint8).reshape(height, width, 4)


def test_a_heatmap_has_its_first_axis_to_the_right_and_its_second_upwards():
    fig, ax = plots.figure(height=3)
    values = np.zeros((2, 3))
    values[1, 0] = 1  # right, bottom
    mesh = plots.heatmap(ax, [0, 1], [0, 1, 2], values, label="v", cmap="gray")
    image = pixels(fig)
    column, row = ax.transData.transform((1, 0)) * 50 / fig.dpi
    brightest = mesh.cmap(1.0, bytes=True)[:3]
    assert tuple(image[image.shape[0] - 1 - int(row), int(column), :3]) == brightest
    plt.close("all")


def test_a_transposed_field_is_refused():
    _, ax = plots.figure()
    with pytest.raises(ValueError, match="indexing"):
        plots.heatmap(ax, [0, 1], [0, 1, 2], np.zeros((3, 2)), label="v")
    plt.close("all")


def test_a_signed_field_is_centred():
    _, ax = plots.figure()
    mesh = plots.heatmap(ax, [0, 1], [0, 1], np.array([[-1.0, 0], [0, 3]]), label="v", center=0)
    assert mesh.norm.vmin == -mesh.norm.vmax == -3
    plt.close("all")


def test_a_logarithmic_field_cannot_be_centred():
    _, ax = plots.figure()
    with pytest.raises(ValueError, match="choose one"):
        plots.heatmap(ax, [0, 1], [0, 1], np.ones((2, 2)), label="v", center=1, log=True)
    plt.close("all")


def test_the_style_does_not_leak_into_the_session():
    before = matplotlib.rcParams["font.size"]
    plots.figure()
    assert matplotlib.rcParams["font.size"] == before
    plt.close("all")


class Window(html.parser.HTMLParser):
    """Attributes of the tags of a slider."""

    def __init__(self, text):
        super().__init__()
        self.tags = {}
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.tags[tag] = dict(attributes)


def test_a_slider_holds_every_frame_and_its_label(monkeypatch):
    written, labels = [], ["none", 'a "bit"', "<all>"]
    monkeypatch.setattr("IPython.display.display", lambda shown: written.append(shown.data))
    frames = np.arange(3 * 4 * 5 * 3, dtype=np.uint8).reshape(3, 4, 5, 3)
    plots.slider(frames, labels, alt="Three greys", start=1)
    tags = Window(written[0]).tags
    data = tags["img"]["src"].removeprefix("data:image/png;base64,")
    with Image.open(io.BytesIO(base64.b64decode(data))) as picture:
        assert (np.asarray(picture).reshape(frames.shape) == frames).all()
    slider = tags["input"]
    assert json.loads(slider["data-labels"]) == labels and slider["aria-valuetext"] == labels[1]
    assert (slider["min"], slider["max"], slider["value"]) == ("0", "2", "1")
    assert tags["img"]["alt"] == "Three greys"


@pytest.mark.parametrize(
    ("frames", "labels", "start", "said"),
    [
        (np.zeros((2, 4, 4, 3)), ["a", "b"], 0, "give uint8"),
        (np.zeros((2, 4, 4), np.uint8), ["a", "b"], 0, "give uint8"),
        (np.zeros((2, 4, 4, 3), np.uint8), ["a"], 0, "one label a frame"),
        (np.zeros((2, 4, 4, 3), np.uint8), ["a", "b"], 2, "start 2 for 2 frames"),
    ],
)
def test_a_slider_of_other_frames_is_refused(frames, labels, start, said):
    with pytest.raises(ValueError, match=said):
        plots.slider(frames, labels, alt="x", start=start)
