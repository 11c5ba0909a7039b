"""Every page in a real browser, from the disk: wide and narrow, light and dark, with mouse and keys, without scripts.

Needs Chromium (`chromium` on the path, or its place in the environment variable `CHROMIUM`).
"""

import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from docs.engine import PAGES

pytestmark = pytest.mark.browser
playwright = pytest.importorskip("playwright.sync_api", reason="Playwright is not installed")
CHROMIUM = os.environ.get("CHROMIUM") or shutil.which("chromium") or shutil.which("chromium-browser")
FLAGS = "--no-sandbox --disable-gpu --disable-quic --disable-background-networking --disable-component-update"
OPEN_ALL = "document.querySelectorAll('details').forEach((box) => { box.open = true; })"


@pytest.fixture(scope="session")
def browser() -> Iterator[Any]:
    if CHROMIUM is None:
        pytest.skip("Chromium is not installed")
    with playwright.sync_playwright() as driver:
        opened = driver.chromium.launch(executable_path=CHROMIUM, args=FLAGS.split())
        yield opened
        opened.close()


class Visit:
    """A page that is open, and everything that went wrong in it."""

    def __init__(self, browser: Any, address: str, width: int = 1440, **options: Any) -> None:
        self.context = browser.new_context(viewport={"width": width, "height": 900}, **options)
        self.page = self.context.new_page()
        self.problems: list[str] = []
        self.page.on("console", self._hear)
        self.page.on("pageerror", lambda error: self.problems.append(f"error: {error}"))
        self.page.on("request", self._ask)
        self.page.goto(address)
        self.page.wait_for_timeout(150)

    def _hear(self, message: Any) -> None:
        if message.type in {"error", "warning"}:
            self.problems.append(f"{message.type}: {message.text}")

    def _ask(self, request: Any) -> None:
        if not request.url.startswith(("file:", "data:", "blob:")):
            self.problems.append(f"asks for {request.url}")

    def __enter__(self) -> "Visit":
        return self

    def __exit__(self, *_: object) -> None:
        self.context.close()


def names() -> list[str]:
    written = sorted(path.with_suffix(".html").name for path in PAGES.glob("*.md"))
    return [*written, "practice/split-heads.html", "practice/gpt2.html", "practice/hunt-mask.html"]


def start_live(page: Any) -> None:
    """Load the live model, if the page has one, and let it compute."""
    if page.locator(".live button").count():
        page.locator(".live button").first.click()
        page.wait_for_function("document.querySelectorAll('.live canvas').length > 0")
        page.wait_for_timeout(300)


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1440, 390])
@pytest.mark.parametrize("name", names())
def test_a_page_is_sound(name: str, width: int, scheme: str, site: Path, browser: Any) -> None:
    """No error, no request that leaves the machine, nothing wider than the screen, nothing that axe finds."""
    from axe_playwright_python.sync_playwright import Axe

    with Visit(browser, (site / name).as_uri(), width, color_scheme=scheme) as visit:
        start_live(visit.page)
        visit.page.evaluate(OPEN_ALL)
        visit.page.wait_for_timeout(100)
        assert visit.page.evaluate("document.documentElement.scrollWidth <= innerWidth")
        assert visit.problems == []
        found = Axe().run(visit.page, options={"preload": False}).response["violations"]
        listed = [
            f"{v['id']}: {node['target']} {node['failureSummary'][:300]}" for v in found for node in v["nodes"][:4]
        ]
        assert listed == []


@pytest.mark.parametrize("name", names())
def test_no_page_is_wider_than_the_screen(name: str, site: Path, browser: Any) -> None:
    with Visit(browser, (site / name).as_uri(), 320) as visit:
        start_live(visit.page)
        visit.page.evaluate(OPEN_ALL)
        for width in (320, 390, 768, 1100, 1280):
            visit.page.set_viewport_size({"width": width, "height": 900})
            visit.page.wait_for_timeout(100)
            assert visit.page.evaluate("document.documentElement.scrollWidth") <= width


def test_without_scripts_everything_is_there_to_read(site: Path, browser: Any) -> None:
    with Visit(browser, (site / "gpt2.html").as_uri(), java_script_enabled=False) as visit:
        for place in (".strip dd", ".walk-step h3", ".walk-prose p", ".walk-code pre", "figure.model"):
            assert visit.page.locator(f"article {place}").first.is_visible()
        row = visit.page.locator(".walk-shape", has_text="scores").first
        assert row.is_visible()
        assert "heads" in row.inner_text()
        box = visit.page.locator("details.why").first
        box.locator("summary").click()
        assert box.locator("svg").is_visible()


def test_one_size_for_the_whole_page(site: Path, browser: Any) -> None:
    with Visit(browser, (site / "gpt2.html").as_uri()) as visit:
        visit.page.select_option("select.sizes >> nth=0", "gpt2_xl")
        assert visit.page.locator(".strip dd").first.inner_text() == "1,557,611,200"
        assert visit.page.locator("select.sizes").last.input_value() == "gpt2_xl"
        row = visit.page.locator(".walk-shape", has=visit.page.locator("code", has_text=re.compile("^queries$"))).first
        assert re.findall(r"[\d,]+", row.inner_text().replace("values", "")) == ["1", "25", "1,024", "64"]


def test_an_axis_lights_up_everywhere_and_says_what_it_is(site: Path, browser: Any) -> None:
    with Visit(browser, (site / "gpt2.html").as_uri()) as visit:
        visit.page.locator(".walk-legend button", has_text=re.compile("^heads$")).focus()
        lit = visit.page.evaluate("Array.from(document.querySelectorAll('.ax.lit'), (axis) => axis.dataset.ax)")
        everywhere = visit.page.locator('.ax[data-ax="heads"]').count()
        assert lit == ["heads"] * everywhere
        assert everywhere > 30
        assert re.fullmatch("heads: .*, 12", visit.page.locator(".axis-note").inner_text())
        visit.page.keyboard.press("Escape")
        assert visit.page.locator(".ax.lit").count() == 0
        visit.page.locator('.walk-unit .ax[data-ax="embed"]').first.hover()
        assert visit.page.locator(".axis-note").inner_text().startswith("embed: ")
        visit.page.locator('.walk-unit .ax[data-ax="embed"]').first.click()
        visit.page.mouse.move(0, 0)
        assert visit.page.locator(".axis-note").inner_text().startswith("embed: ")  # a tap pins it


def test_keys_step_forward_and_back(site: Path, browser: Any) -> None:
    with Visit(browser, (site / "gpt2.html").as_uri()) as visit:
        page = visit.page
        page.locator("[id='GPT2.embed']").scroll_into_view_if_needed()
        page.keyboard.press("j")
        first = page.evaluate("location.hash")
        page.wait_for_timeout(200)
        page.keyboard.press("j")
        page.wait_for_timeout(200)
        assert page.evaluate("location.hash") != first
        assert page.locator(".walk-step.current").count() >= 1
        page.keyboard.press("k")
        assert page.evaluate("location.hash") == first


def test_a_part_of_the_figure_leads_to_its_step(site: Path, browser: Any) -> None:
    with Visit(browser, (site / "gpt2.html").as_uri()) as visit:
        visit.page.locator("a.model-part", has_text="scores of keys").click()
        visit.page.wait_for_timeout(300)
        assert visit.page.evaluate("decodeURIComponent(location.hash)") == "#CausalSelfAttention.forward.queries"
        top = visit.page.locator("[id='CausalSelfAttention.forward.queries']").bounding_box()["y"]
        bottom_of_legend = visit.page.evaluate("document.querySelector('.walk-legend').getBoundingClientRect().bottom")
        assert bottom_of_legend <= top < 450  # in view, and not under the legend


def test_a_link_to_a_question_opens_it(site: Path, browser: Any) -> None:
    with Visit(browser, (site / "gpt2.html").as_uri() + "#why-scale") as visit:
        assert visit.page.locator("#why-scale svg").is_visible()


def test_every_control_is_reached_and_worked_with_keys(site: Path, browser: Any) -> None:
    with Visit(browser, (site / "gpt2.html").as_uri()) as visit:
        page = visit.page
        seen: set[str] = set()
        for _ in range(400):
            page.keyboard.press("Tab")
            seen.add(
                page.evaluate(
                    "(() => { const e = document.activeElement;"
                    " return e.tagName + '.' + (e.className || '').toString().split(' ')[0]; })()"
                )
            )
        for control in ("SELECT.sizes", "BUTTON.ax", "BUTTON.copy", "A.model-part", "SUMMARY."):
            assert any(one.startswith(control) for one in seen), (control, sorted(seen))
        page.locator("details.break summary").first.focus()
        page.keyboard.press("Enter")
        assert page.locator("details.break[open]").count() == 1
        outline = page.evaluate("getComputedStyle(document.activeElement).outlineStyle")
        assert outline != "none"


def test_the_live_model_writes_and_shows_attention(site: Path, browser: Any) -> None:
    with Visit(browser, (site / "gpt2.html").as_uri()) as visit:
        page = visit.page
        start_live(page)
        before = page.locator(".live").inner_text()
        page.locator(".live").get_by_role("button", name="Next token").click()
        page.wait_for_timeout(300)
        assert page.locator(".live").inner_text() != before
        assert visit.problems == []


def test_motion_is_reduced_on_request(site: Path, browser: Any) -> None:
    with Visit(browser, (site / "gpt2.html").as_uri(), reduced_motion="reduce") as visit:
        moving = visit.page.evaluate(
            "Array.from(document.querySelectorAll('*')).filter((e) => { const s = getComputedStyle(e);"
            " return s.animationName !== 'none' || s.scrollBehavior === 'smooth'"
            " || s.transitionDuration.split(',').some((t) => parseFloat(t) > 0.001); }).length"
        )
        assert moving == 0


@pytest.mark.parametrize("name", ["gpt2.html", "llama.html", "mixtral.html", "deepseek-v3.html"])
def test_axes_differ_by_more_than_colour(name: str, site: Path, browser: Any) -> None:
    with Visit(browser, (site / name).as_uri()) as visit:
        visit.page.add_script_tag(
            content="""function sign(axis) {
              const style = getComputedStyle(axis);
              return [style.textDecorationLine, style.textDecorationStyle, style.textDecorationThickness].join(" ");
            }"""
        )
        legend = visit.page.locator(".walk-legend").last
        signs = legend.evaluate("(legend) => Array.from(legend.querySelectorAll('button.ax'), sign)")
        assert len(signs) > 8
        assert len(set(signs)) == len(signs)
