"""The page in a real browser: headless Chromium by Playwright, on a random model in this process.

Needs the extras `demo` and `browser` and a Chromium that is installed; skipped with a reason where one is missing.
"""

import contextlib
import os
import socket
from pathlib import Path
from urllib.parse import urlparse

import numpy as np
import PIL.Image
import pytest

from frozen_jax.data.images import ImageOptions
from frozen_jax.demo.examples import write_examples
from frozen_jax.demo.limits import Limits
from frozen_jax.page import THUMBNAIL, draw_picture
from frozen_jax.restore import read_run
from frozen_jax.tools.demo import serve
from tests.demo.browser import CHROMIUM, start_browser

WAIT_MS = 90_000
"""Enough for a busy machine; nothing here is timed."""
LIMITS = Limits(upload_bytes=2**20, per_minute=600.0, burst=100)

pytest.importorskip("gradio", reason="the extra demo is not installed")
pytest.importorskip("playwright.sync_api", reason="the extra browser is not installed")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no chromium on the path")


@contextlib.contextmanager
def serve_at_free_port(path, **options):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    variables = dict(os.environ)
    with serve(path, port=port, limits=LIMITS, **options) as found:
        yield found
    os.environ.clear()
    os.environ.update(variables)


@pytest.fixture(scope="module")
def address(workdir, pictures):
    with serve_at_free_port(workdir, gallery=pictures) as found:
        yield found


@pytest.fixture(scope="module")
def browser():
    with start_browser() as started:
        yield started


@pytest.fixture
def open_page(address, browser):
    """Function that opens the page for another user; afterwards no request may have left this machine."""
    hosts, visited, errors, contexts = set(), set(), [], []

    def open_one(address=address):
        visited.add(urlparse(address).netloc)
        context = browser.new_context(viewport={"width": 1200, "height": 900})
        contexts.append(context)
        page = context.new_page()
        page.set_default_timeout(WAIT_MS)
        page.on("request", lambda request: hosts.add(urlparse(request.url).netloc))
        page.on("pageerror", lambda error: errors.append(str(error)))
        page.goto(address)
        page.wait_for_selector("input[type=file], #draw-text", state="attached")
        return page

    yield open_one
    for context in contexts:
        context.close()
    assert hosts - {""} == visited and errors == []


def upload(page, box, file):
    page.set_input_files(f"#{box} input[type=file]", file)


def upload_again(page, file):
    """Takes the picture away, then gives another one."""
    page.locator("#caption-picture .icon-button-wrapper button").click()  # the only one: a cross
    page.wait_for_selector("#caption-answer .hint")
    upload(page, "caption-picture", file)


def read(page, box, part=".text"):
    return page.locator(f"#{box} {part}").first.inner_text()


def test_a_picture_is_captioned_and_another_one_too(open_page, demo, pictures):
    page = open_page()
    assert page.inner_text(".head h1") == "a_model" and page.inner_text(".head p") == demo.describe()
    upload(page, "caption-picture", pictures / "0.png")
    assert read(page, "caption-answer") == demo.caption(pictures / "0.png").text
    assert "s on CPU" in read(page, "caption-answer", ".took")
    upload_again(page, pictures / "1.png")
    assert read(page, "caption-answer") == demo.caption(pictures / "1.png").text


def test_an_example_is_a_click_away(open_page, demo, workdir, tmp_path):
    page = open_page()
    page.click("button.gallery-item >> nth=1")
    example = write_examples(tmp_path, read_run(workdir))[1]
    assert read(page, "caption-answer") == demo.caption(example.path).text


def test_a_question_is_answered_and_an_empty_one_is_pointed_out(open_page, demo, pictures):
    page = open_page()
    page.get_by_role("tab", name="Ask").click()
    page.click("#ask-button")
    assert "no picture yet" in read(page, "ask-answer", ".note")
    upload(page, "ask-picture", pictures / "2.png")
    page.wait_for_selector("#ask-picture img")
    page.click("#ask-button")
    page.wait_for_selector("#ask-answer .note:has-text('The question is empty')")
    page.fill("#ask-question textarea", "where <b>is</b> it?")
    page.press("#ask-question textarea", "Enter")
    assert read(page, "ask-answer") == demo.ask(pictures / "2.png", "where <b>is</b> it?").text


def test_a_few_shot_prompt_is_built_and_alternatives_compared(open_page, demo, pictures):
    page = open_page()
    page.get_by_role("tab", name="Few-shot").click()
    for number in (1, 2):
        upload(page, f"shot-{number}-picture", pictures / f"{number}.png")
        page.wait_for_selector(f"#shot-{number}-picture img")
    upload(page, "last-picture", pictures / "0.png")
    page.wait_for_selector("#last-picture img")
    page.fill("#shot-1-words textarea", "a red.")
    page.fill("#alternatives textarea", "red, <i>${6*7}</i>")
    page.fill("#last-words textarea", "a")
    page.click("#few-shot-button")
    assert "Example 2 has no words" in read(page, "few-shot-answer", ".note")
    page.fill("#shot-2-words textarea", "a blue.")
    page.click("#few-shot-button")
    shots = [(pictures / "1.png", "a red."), (pictures / "2.png", "a blue.")]
    made = demo.continue_prompt(shots, pictures / "0.png", "a", "red, <i>${6*7}</i>")
    assert read(page, "few-shot-answer") == made.text
    rows = page.locator("#few-shot-answer .bars li").all_inner_texts()
    assert [row.split("\n") for row in rows] == [[name, f"{100 * share:.1f} %"] for name, _, share in made.alternatives]
    page.click("#few-shot-answer summary")
    assert read(page, "few-shot-answer", "pre") == made.prompt == "[img] a red.[img] a blue.[img] a"
    page.click("#few-shot-fill")
    page.wait_for_selector("#shot-3-picture img")
    assert page.input_value("#shot-3-words textarea").startswith("a ")


def test_names_are_compared_and_what_is_missing_is_pointed_out(open_page, demo, pictures):
    page = open_page()
    page.get_by_role("tab", name="Names").click()
    upload(page, "names-picture", pictures / "1.png")
    page.wait_for_selector("#names-picture img")
    page.click("#names-button")
    assert "no names yet" in read(page, "names-answer", ".note")
    page.fill("#names-list textarea", "red, <b>top</b>\na blue patch")
    page.click("#names-button")
    made = demo.name_picture(pictures / "1.png", "red, <b>top</b>\na blue patch")
    page.wait_for_selector("#names-answer .bars")
    rows = page.locator("#names-answer .bars li").all_inner_texts()
    shown = [[name, f"{100 * share:.1f} %", f"{added:+.2f}"] for name, share, added in made.names]
    assert [row.split("\n") for row in rows] == shown
    fits = page.locator("#names-answer .fits").all_inner_texts()
    assert fits == [f"{added:+.2f}" for _, _, added in made.names if added > 0]


def test_a_generator_has_a_page_that_draws(open_page, painter):
    demo, directory = painter
    with serve_at_free_port(directory) as address:
        page = open_page(address)
        assert page.get_by_role("tab").all_inner_texts() == ["Draw"] and page.inner_text(".head p") == demo.describe()
        page.click("#draw-button")
        assert "The text is empty" in read(page, "draw-answer", ".note")
        page.click(".texts button.gallery-item >> nth=1")
        page.fill("#draw-seed input", "7")
        page.get_by_label("2", exact=True).check()
        page.click("#draw-button")
        page.wait_for_selector("#draw-answer figure")
        page.click("#draw-answer summary")
        text = page.input_value("#draw-text textarea")
        assert read(page, "draw-answer", "pre") == f" {text}" and "patch at the" in text
        options = ImageOptions(2 * THUMBNAIL)
        drawn = [draw_picture(pixels, options) for pixels in demo.draw(text, 7, 2).pictures]
        shown = page.evaluate("[...document.querySelectorAll('#draw-answer img')].map(one => one.src)")
        assert len(set(shown)) == 2 and all(f'src="{one}"' in tag for one, tag in zip(shown, drawn, strict=True))
        page.fill("#draw-seed input", "-1")
        page.press("#draw-text textarea", "Enter")
        page.wait_for_selector("#draw-answer .note:has-text('The seed must be a whole number')")


def test_the_gallery_is_ranked(open_page, demo, pictures):
    page = open_page()
    page.get_by_role("tab", name="Gallery").click()
    page.fill("#gallery-text textarea", "a red patch")
    page.click("#gallery-button")
    made = demo.retrieve("a red patch")
    page.wait_for_selector("#gallery-answer figure")
    assert page.locator("#gallery-answer figure bdi").all_inner_texts() == [demo.gallery[row].name for row in made.rows]
    loaded = page.evaluate("[...document.querySelectorAll('#gallery-answer img')].map(i => i.naturalWidth)")
    assert loaded == [160] * 4


def test_a_fusion_has_a_page_of_its_own(open_page, fusion_demo, fusion_workdir, pictures):
    with serve_at_free_port(fusion_workdir) as address:
        page = open_page(address)
        assert page.get_by_role("tab").all_inner_texts() == ["Classify"]
        page.get_by_text("a picture and a question together").wait_for()
        page.click("#classify-button")
        assert "no picture yet" in read(page, "classify-answer", ".note")
        upload(page, "classify-picture", pictures / "2.png")
        page.wait_for_selector("#classify-picture img")
        page.fill("#classify-text textarea", "what color is the patch?")
        page.press("#classify-text textarea", "Enter")
        made = fusion_demo.classify(pictures / "2.png", "what color is the patch?").probabilities
        assert read(page, "classify-answer") == made[0][0]
        rows = page.locator("#classify-answer .bars li").all_inner_texts()
        assert [row.split("\n") for row in rows] == [[name, f"{100 * share:.1f} %"] for name, share in made]


def test_a_bad_and_a_huge_file_are_refused_in_words(open_page, address, pictures, tmp_path, capfd):
    page = open_page()
    upload(page, "caption-picture", pictures / "4.png")
    assert "damaged" in read(page, "caption-answer", ".note")
    (tmp_path / "words.png").write_text("no picture at all")
    upload_again(page, tmp_path / "words.png")
    page.wait_for_selector("#caption-answer .note:has-text('not a picture that can be opened')")
    PIL.Image.new("1", (9000, 9000)).save(tmp_path / "bomb.png")
    upload_again(page, tmp_path / "bomb.png")
    page.wait_for_selector("#caption-answer .note:has-text('too many pixels')")
    pixels = np.random.default_rng(0).integers(0, 256, (700, 700, 3), np.uint8)
    PIL.Image.fromarray(pixels).save(tmp_path / "huge.png")
    assert (tmp_path / "huge.png").stat().st_size > LIMITS.upload_bytes
    upload_again(page, tmp_path / "huge.png")
    page.get_by_text("exceed the maximum allowed size of 1.0 MB").first.wait_for()
    files = {"files": {"name": "huge.png", "mimeType": "image/png", "buffer": (tmp_path / "huge.png").read_bytes()}}
    assert page.request.post(f"{address}gradio_api/upload", multipart=files).status == 413
    assert "Traceback" not in capfd.readouterr().err


def test_two_at_once_get_their_own_answers(open_page, demo, pictures):
    first, second = open_page(), open_page()
    for turn in range(3):
        names = [f"{turn}.png", f"{turn + 1}.png"]
        for page, name in zip((first, second), names, strict=True):
            upload_again(page, pictures / name) if turn else upload(page, "caption-picture", pictures / name)
        for page, name in zip((first, second), names, strict=True):
            assert read(page, "caption-answer") == demo.caption(pictures / name).text


def test_no_other_file_and_no_other_host(open_page, address):
    """What a program may send that is no browser: with the page's own cookies, from its own origin."""
    page = open_page()
    for path in (
        f"file={Path(__file__).resolve()}",
        "file=/etc/passwd",
        "proxy=http://example.com/",
        "file=pyproject.toml",
    ):
        assert page.request.get(f"{address}gradio_api/{path}").status == 404
    data = {"data": [{"path": "/etc/passwd", "meta": {"_type": "gradio.FileData"}}], "fn_index": 0, "session_hash": "x"}
    answer = page.request.post(f"{address}gradio_api/queue/join", data=data)
    assert (answer.status, answer.json()["detail"]) == (400, "That file was not uploaded here.")
    named = page.locator("link[href^='http'], script[src^='http']")
    links = named.evaluate_all("all => all.map(one => one.href || one.src)")
    assert links and all(link.startswith(address) for link in links)


def test_the_browser_would_refuse_another_host(browser, address):
    """Whatever a later Gradio may want to load: a picture from another port of this machine is blocked by policy."""
    with browser.new_context() as context:
        page = context.new_page()
        page.goto(address)
        refused = page.evaluate(
            "new Promise(found => { addEventListener('securitypolicyviolation', event => found(event.blockedURI));"
            " new Image().src = 'http://127.0.0.1:9/a.png' })"
        )
        assert refused == "http://127.0.0.1:9/a.png"
