"""The page in a browser, as people see it: narrow and wide, light and dark, on paper, with the keyboard and without scripts."""

import shutil
from pathlib import Path

import pytest
from _folders import begun, failed_run, finished_run

from prefopt.study.comparison.compare import compare
from prefopt.study.report import write_report
from prefopt.study.report.live_page import live_page
from prefopt.study.status import read_status

BROWSER = next(filter(None, map(shutil.which, ("chromium-headless-shell", "chromium", "google-chrome"))), None)
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(BROWSER is None, reason="no Chromium: apt-get install chromium-headless-shell"),
]

TOO_WIDE = """[...document.querySelectorAll("body *")].filter(e => e.getBoundingClientRect().right > innerWidth + 1
    && !e.closest(".box, svg, pre")).map(e => `${e.tagName} ${e.className} ${e.textContent.slice(0, 30)}`)"""
BY_LETTERS = """[...document.querySelectorAll("td, th, dt, dd, li, p")].filter(e => e.textContent.trim().length > 8
    && e.getClientRects().length && !e.closest(".sr") && !e.classList.contains("sr")
    && e.getBoundingClientRect().width < 24).map(e => e.textContent)"""
FIGURES = """[...document.querySelectorAll("figure svg")].map(svg => ({
    width: svg.getBoundingClientRect().width, paths: svg.querySelectorAll("path, use").length,
    text: Math.min(...[...svg.querySelectorAll("text")].map(t => t.getBoundingClientRect().height))}))"""


@pytest.fixture(scope="module")
def crowded(tmp_path_factory) -> Path:
    """Twelve arms of one seed, with long names, words without end, and runs that failed."""
    folder = tmp_path_factory.mktemp("crowded")
    for n in range(12):
        name = f"DPO-objective.beta={n}-with-a-long-name" if n % 2 else f"nowheretobreak{'x' * 40}{n}"
        if n in (3, 8):
            failed_run(folder / "arms" / name / "seed-0")
            continue
        recipe = {"policy": {"model": [f"/models/{'long' * 12}-{n}"]}, "train": {"lr": n / 1e4, "batch_size": 4}}
        finished_run(
            folder / "arms" / name / "seed-0", 0, n / 7, recipe=recipe, samples=["x" * 300, "so it was " * 40, ""]
        )
    return write_report(compare([folder]), folder)


@pytest.fixture(scope="module")
def chromium():
    playwright = pytest.importorskip("playwright.sync_api", reason="pip install playwright")
    with playwright.sync_playwright() as p:
        browser = p.chromium.launch(executable_path=BROWSER, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture(params=["written", "crowded"])
def opened(request, chromium):
    """Opens a page, and keeps what it complains of and what it asks the network for."""
    file = request.getfixturevalue(request.param)

    def open_page(**options):
        tab = chromium.new_page(**options)
        tab.complaints, tab.asked = [], []
        tab.on("console", lambda message: tab.complaints.append(message.text))
        tab.on("pageerror", lambda error: tab.complaints.append(str(error)))
        tab.on("request", lambda asked: tab.asked.append(asked.url))
        tab.goto(file.as_uri())
        assert tab.asked == [file.as_uri()]
        return tab

    return open_page


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1280, 400])
def test_on_a_screen(opened, width, scheme):
    """No complaint, no request but for the page, nothing wider than the window or wrapped by letters, every figure drawn."""
    tab = opened(viewport={"width": width, "height": 900}, color_scheme=scheme)
    assert tab.complaints == []
    assert tab.evaluate("document.documentElement.scrollWidth") <= width
    assert tab.evaluate(TOO_WIDE) == []
    assert tab.evaluate(BY_LETTERS) == []
    figures = tab.evaluate(FIGURES)
    assert len(figures) == 6
    assert all(figure["width"] > 300 and figure["paths"] > 20 and figure["text"] >= 7 for figure in figures)
    paper = tab.evaluate("getComputedStyle(document.body).backgroundColor")
    assert paper == ("rgb(255, 255, 255)" if scheme == "light" else "rgb(22, 24, 26)")


def test_on_paper(opened):
    """Nothing is wider than an A4 page, and further tables are unfolded."""
    tab = opened(viewport={"width": 720, "height": 1000}, color_scheme="dark")
    tab.emulate_media(media="print", color_scheme="light")
    assert tab.evaluate("document.documentElement.scrollWidth") <= 720
    assert tab.evaluate("getComputedStyle(document.querySelector('nav')).display") == "none"
    assert tab.evaluate("document.querySelector('details.printed table').getBoundingClientRect().height") > 20
    assert tab.pdf(format="A4").startswith(b"%PDF")


def test_tables_that_scroll_say_so_and_can_be_reached(opened):
    tab = opened(viewport={"width": 400, "height": 900})
    said = tab.evaluate(
        """[...document.querySelectorAll(".box")].filter(box => box.checkVisibility()).map(box => ({
            scrolls: box.scrollWidth > box.clientWidth, hint: box.previousElementSibling.checkVisibility(),
            named: box.role === "region" && !!box.ariaLabel, reached: box.tabIndex === 0}))"""
    )
    assert any(one["scrolls"] for one in said)
    assert all(one["scrolls"] == one["hint"] and one["named"] and one["reached"] for one in said)


def test_arms_are_hidden_and_values_shown(opened):
    tab = opened(viewport={"width": 1280, "height": 900})
    button = tab.locator(".legend button").first
    parts = tab.locator('figure .points circle[data-arm="0"]')
    assert parts.first.is_visible() and button.get_attribute("aria-pressed") == "true"
    button.focus()
    tab.keyboard.press("Space")
    assert button.get_attribute("aria-pressed") == "false"
    assert not any(part.is_visible() for part in parts.all()[:5])
    circle = tab.locator('figure .points circle[data-arm="1"]').last
    circle.scroll_into_view_if_needed()
    circle.hover()
    tip = tab.locator(".tip")
    assert tip.is_visible() and "step" in tip.text_content()
    assert tab.complaints == []


def test_it_is_whole_without_scripts(opened):
    tab = opened(viewport={"width": 1280, "height": 900}, java_script_enabled=False)
    assert tab.locator("figure svg").count() == 6
    assert tab.locator(".legend button").first.is_visible()
    assert "step" in tab.locator("figure .points circle title").last.text_content()


@pytest.mark.parametrize("width", [1280, 400])
def test_the_page_of_a_study_that_works(chromium, tmp_path, width):
    """Its states, its curves and its commands fit, and it asks for nothing but itself."""
    file = begun(tmp_path) / "live.html"
    file.write_text(live_page(read_status(tmp_path)))
    tab = chromium.new_page(viewport={"width": width, "height": 900}, color_scheme="dark")
    complaints, asked = [], []
    tab.on("console", lambda message: complaints.append(message.text))
    tab.on("request", lambda request: asked.append(request.url))
    tab.goto(file.as_uri())
    assert complaints == [] and set(asked) == {file.as_uri()}
    assert tab.evaluate("document.documentElement.scrollWidth") <= width
    assert tab.evaluate(TOO_WIDE) == [] and tab.evaluate(BY_LETTERS) == []
    drawn = tab.locator("figure svg polyline")
    assert drawn.count() > 4 and all(line.bounding_box()["width"] > 50 for line in drawn.all())
