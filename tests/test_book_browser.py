"""The built book in a browser: it works offline, reads on a telephone and to a screen reader."""

import functools
import http.server
import importlib.util
import shutil
import threading
from pathlib import Path

import pytest

HTML = Path(__file__).resolve().parents[1] / "build" / "book" / "html"
BROWSER = shutil.which("chromium") or shutil.which("chromium-browser")
NEEDED = ("playwright", "axe_playwright_python")
ABSENT = [name for name in NEEDED if importlib.util.find_spec(name) is None]
ABSENT += [] if BROWSER else ["chromium"]
ABSENT += [] if (HTML / "index.html").is_file() else ["build/book/html"]
pytestmark = pytest.mark.skipif(
    bool(ABSENT), reason=f"absent: {', '.join(ABSENT)} (make book-test)"
)

PAGES = sorted(
    path.relative_to(HTML).as_posix()
    for path in HTML.rglob("*.html")
    if not {"_static", "_modules"} & set(path.parts)
)
KINDS = [
    "index.html",
    "README.html",
    "SCORECARD.html",
    "search.html",
    "api/geometry.html",
    "docs/checkpoints.html",
    "notebooks/01_ising.html",
    "notebooks/evidence/02_tasep.html",
]
NARROW, WIDE = {"width": 390, "height": 844}, {"width": 1280, "height": 800}
OVERFLOW = """() => [...document.querySelectorAll('body *')].filter(e => {
  const box = e.getBoundingClientRect();
  for (let a = e; a; a = a.parentElement)
    if (['auto', 'scroll', 'hidden'].includes(getComputedStyle(a).overflowX)) return false;
  return box.width > 0 && box.right > innerWidth + 1;
}).map(e => e.outerHTML.slice(0, 90))"""


class Quiet(http.server.SimpleHTTPRequestHandler):
    """Files of the book, without a line per request."""

    def log_message(self, *_):
        pass


@pytest.fixture(scope="module")
def site():
    handler = functools.partial(Quiet, directory=str(HTML))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


@pytest.fixture(scope="module")
def browser():
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=BROWSER, args=["--no-sandbox"])
        yield chromium
        chromium.close()


@pytest.fixture
def page(browser, site):
    context = browser.new_context(viewport=WIDE, base_url=site)
    yield context.new_page()
    context.close()


def test_no_page_leaves_the_site_fails_or_scrolls_sideways_on_a_telephone(page, site):
    asked, errors, wide = [], [], {}
    page.on("request", lambda request: asked.append(request.url))
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.on("requestfailed", lambda request: errors.append(request.url))
    page.set_viewport_size(NARROW)
    for name in PAGES:
        page.goto("/" + name)
        wide[name] = page.evaluate(OVERFLOW)
    assert PAGES and not [url for url in asked if not url.startswith((site, "data:", "blob:"))]
    assert not errors
    assert not {name: found for name, found in wide.items() if found}


def test_what_is_too_wide_is_found(page):
    page.set_viewport_size(NARROW)
    page.goto("/index.html")
    wide = "<p id='wide' style='width: 900px'>wide</p>"
    page.evaluate(
        "html => document.querySelector('article').insertAdjacentHTML('afterend', html)", wide
    )
    assert any("wide" in found for found in page.evaluate(OVERFLOW))


def test_search_finds_geodesics(page):
    page.goto("/search.html?q=geodesic")
    page.wait_for_selector("ul.search li")
    assert page.locator("ul.search li").filter(has_text="Ising").count()


def test_a_solution_unfolds(page):
    page.goto("/notebooks/01_ising.html")
    solution = page.locator("details").filter(has_text="solution").first
    inside = solution.locator(":scope > :not(summary)").first
    assert not inside.is_visible()
    solution.locator("summary").click()
    assert inside.is_visible()


@pytest.mark.parametrize("lesson", ["04_hspace", "05_svd_editing"])
def test_a_slider_moves_without_a_kernel(page, lesson):
    page.goto(f"/notebooks/{lesson}.html")
    figure = page.locator("figure").filter(has=page.locator("input[type=range]"))
    slider, label = figure.locator("input"), figure.locator("output")
    place = "image => getComputedStyle(image).transform"
    before = figure.locator("img").evaluate(place), label.inner_text()
    slider.fill(slider.get_attribute("max"))
    after = figure.locator("img").evaluate(place), label.inner_text()
    assert before[0] != after[0] and before[1] != after[1]


def test_the_scorecard_sorts_and_filters(page):
    page.goto("/SCORECARD.html")
    rows = page.locator("table.claims").first.locator("tbody tr")
    claim = page.locator("table.claims").first.get_by_role("button", name="claim")
    claim.click()
    up = rows.locator("td:first-child").all_inner_texts()
    claim.click()
    down = rows.locator("td:first-child").all_inner_texts()
    assert up == sorted(up, key=str.lower) and down == sorted(down, key=str.lower, reverse=True)
    before = page.get_by_role("status").inner_text()
    page.get_by_role("combobox").select_option("not reproduced")
    shown = page.locator("table.claims tbody tr:visible")
    assert page.get_by_role("status").inner_text() != before and shown.count()
    assert all("not reproduced" in text for text in shown.all_inner_texts())


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("name", KINDS)
def test_no_serious_barrier(browser, site, scheme, name):
    """Rules of axe-core, contrast among them, in both colour schemes."""
    from axe_playwright_python.sync_playwright import Axe

    context = browser.new_context(viewport=WIDE, base_url=site, color_scheme=scheme)
    page = context.new_page()
    page.goto("/" + name)
    page.wait_for_timeout(300)  # the theme fades colours in
    found = Axe().run(page).response["violations"]
    context.close()
    serious = [v for v in found if v["impact"] in ("serious", "critical")]
    assert not [(v["id"], v["nodes"][0]["html"][:200]) for v in serious]
