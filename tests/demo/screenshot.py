"""`python -m tests.demo.screenshot --workdir=DIR --out=FILE.png`: takes a picture of an answer.

With `--all` beside it FILE_TAB_WIDTH_SCHEME.png of every tab, wide and narrow, light and dark, to look at.
"""

import argparse
import tempfile
from pathlib import Path

from frozen_jax.demo.examples import write_examples
from frozen_jax.export.layout import is_export
from frozen_jax.restore import read_settings
from frozen_jax.tools.demo import serve
from tests.demo.browser import start_browser

TABS = ("Caption", "Ask", "Few-shot", "Names", "Gallery")
"""Of a model of words."""


def choose_tabs(workdir):
    """Returns the tabs of a model's page, and that of the first picture."""
    config = None if is_export(workdir) else read_settings(workdir)
    alone = "Classify" if config and config.fusion.kind else "Draw" if config and config.generator.name else ""
    return ((alone,), alone) if alone else (TABS, "Ask")


def open_tab(page, name):
    """Opens a tab, from the menu of those that a narrow page has no room for if need be."""
    tab = page.get_by_role("tab", name=name)
    if tab.is_visible():
        tab.click()
    else:
        page.locator(".overflow-menu > button").click()
        page.locator(".overflow-dropdown button", has_text=name).click()


def fill(page, tab, picture):
    """Brings a tab to its answer."""
    open_tab(page, tab)
    if tab == "Caption":
        page.set_input_files("#caption-picture input[type=file]", picture)
    elif tab in ("Ask", "Classify"):
        name, words = tab.lower(), "question" if tab == "Ask" else "text"
        page.set_input_files(f"#{name}-picture input[type=file]", picture)
        page.wait_for_selector(f"#{name}-picture img")
        page.fill(f"#{name}-{words} textarea", "what color is the shape?")
        page.click(f"#{name}-button")
    elif tab == "Few-shot":
        page.click("#few-shot-fill")
        page.wait_for_selector("#last-picture img")
        page.click("#few-shot-button")
    elif tab == "Draw":
        page.fill("#draw-text textarea", "a red circle")
        page.click("#draw-button")
    elif tab == "Names":
        page.set_input_files("#names-picture input[type=file]", picture)
        page.wait_for_selector("#names-picture img")
        page.fill("#names-list textarea", "red circle, blue circle, red triangle, green rectangle, a name that is long")
        page.click("#names-button")
    else:
        page.fill("#gallery-text textarea", "a red circle")
        page.click("#gallery-button")
    answer = f"#{tab.lower()}-answer"
    page.wait_for_selector(f"{answer} .text, {answer} .found, {answer} .bars")
    page.mouse.move(0, 0)
    page.wait_for_timeout(500)  # transitions of buttons and bars


def main(arguments=None):
    parser = argparse.ArgumentParser(prog="python -m tests.demo.screenshot", description="Takes pictures of the page.")
    parser.add_argument("--workdir", type=Path, required=True, help="of a training run, or an exported directory")
    parser.add_argument("--out", type=Path, required=True, help="a PNG file")
    parser.add_argument("--port", type=int, default=7860, help="to serve at")
    parser.add_argument("--all", action="store_true", help="every tab in two widths, light and dark")
    given = parser.parse_args(arguments)
    sizes = [(400, "dark"), (1200, "light"), (400, "light"), (1200, "dark")] if given.all else []
    with tempfile.TemporaryDirectory() as folder:
        examples = write_examples(Path(folder), None)
        every, first = choose_tabs(given.workdir)
        gallery = Path(folder) if "Gallery" in every else None
        with serve(given.workdir, gallery=gallery, port=given.port) as address, start_browser() as browser:
            for tabs, width, scheme in [((first,), 1000, "light"), *((every, *size) for size in sizes)]:
                page = browser.new_page(viewport={"width": width, "height": 700}, color_scheme=scheme)
                page.set_default_timeout(120_000)
                page.goto(address)
                page.wait_for_selector("input[type=file], #draw-text", state="attached")
                for tab in tabs:
                    fill(page, tab, examples[0].path)
                    name = (
                        given.out if width == 1000 else given.out.with_stem(f"{given.out.stem}_{tab}_{width}_{scheme}")
                    )
                    page.screenshot(path=name, full_page=True)
                page.close()


if __name__ == "__main__":
    main()
