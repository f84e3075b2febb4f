"""The studio in a browser: Chromium, driven by Playwright, at the width of a desk and of a phone."""

import hashlib
import re
import shutil
import socket
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from recorded import GOLDEN, OFFICIAL

pytest.importorskip("gradio", reason="the extra 'demo' is not installed")
playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")

from maskgit_pt import editing  # noqa: E402
from maskgit_pt.model_settings import ModelSettings  # noqa: E402
from maskgit_pt.studio import __main__ as program  # noqa: E402
from maskgit_pt.studio import page as pages  # noqa: E402

CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium (package chromium)")

SLOW = pytest.mark.slow  # a browser without a GPU takes its time; the others stand for these
WIDTHS = [1280, pytest.param(375, marks=SLOW)]
ARGUMENTS = [
    "--no-sandbox", "--disable-gpu", "--disable-background-networking", "--no-first-run",
    "--disable-component-update", "--disable-sync",
]  # fmt: skip
PATIENCE = 60_000  # milliseconds


class Studio:
    """A served page, and the folder that it keeps its history in."""

    def __init__(self, folder: Path):
        models = ModelSettings(
            model=str(OFFICIAL / "tiny_transformer_checkpoint"),
            tokenizer=str(OFFICIAL / "tiny_tokenizer_checkpoint"),
            device="cpu",
            threads=1,
        )
        self.folder, self.port = folder, _free_port()
        self.asked = program.StudioSettings(output=str(folder), port=self.port)
        self.page = program.make_page(pages, models, self.asked, "")
        self.blocks = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/"

    def start(self) -> "Studio":
        self.blocks = program.serve(self.page, self.asked, prevent_thread_lock=True, quiet=True)
        return self

    def stop(self) -> None:
        self.blocks.close()


def _free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return sock.getsockname()[1]


@pytest.fixture(scope="module")
def studio(tmp_path_factory):
    server = Studio(tmp_path_factory.mktemp("studio")).start()
    yield server
    server.stop()


@pytest.fixture(scope="module")
def browser():
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=CHROMIUM, args=ARGUMENTS)
        yield browser
        browser.close()


@pytest.fixture(params=WIDTHS, ids=["desk", "phone"])
def tab(request, browser, studio):
    """An open page; what the browser complains of fails the test."""
    page = browser.new_page(viewport={"width": request.param, "height": 900})
    page.set_default_timeout(PATIENCE)
    complaints = []
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.goto(studio.url)
    page.wait_for_selector("#generate-go")
    yield page
    page.close()
    assert not complaints


def open_tab(page, name: str) -> None:
    page.get_by_role("tab", name=name).first.click()


def number(page, place: str, value: int) -> None:
    page.locator(f"{place} input").first.fill(str(value))


def newest(studio):
    return studio.page.history.entries()[0]


def wait_for_line(page, place: str, text: str) -> None:
    playwright.expect(
        page.locator(f"{place}-line textarea, {place}-line input").first
    ).to_have_value(re.compile(text), timeout=PATIENCE)


def test_generate_watch_and_look_again(tab, studio):
    before = len(studio.page.history.entries())
    number(tab, "#generate-seed", 11)
    tab.click("#generate-go")
    tab.wait_for_selector("#generate-picture img")  # while it decodes
    tab.wait_for_selector("#generate-images img")
    wait_for_line(tab, "#generate", "images/s")
    assert len(studio.page.history.entries()) == before + 1
    entry = newest(studio)
    assert "--seed=11" in entry.command and len(entry.images) == 4
    last = tab.locator("#generate-picture img").get_attribute("src")
    number(tab, "#generate-scrubber", 1)
    tab.locator("#generate-scrubber input").first.press("Enter")
    tab.wait_for_function(
        "last => document.querySelector('#generate-picture img').getAttribute('src') !== last",
        arg=last,
    )
    # A phone does not scroll sideways.
    assert tab.evaluate("document.documentElement.scrollWidth <= window.innerWidth + 1")


@SLOW
def test_reload_and_restart_lose_nothing(tab, studio):
    tab.click("#generate-go")
    tab.wait_for_selector("#generate-images img")
    tab.reload()
    open_tab(tab, "History")
    tab.wait_for_selector("#history-gallery img")
    tab.locator("#history-gallery .thumbnail-item").first.click()
    tab.wait_for_selector("#history-images img")
    assert "maskgit-sample" in tab.content()


def paint(page, dx: int = 40, eraser: bool = False) -> None:
    """A stroke through the middle of the photo."""
    canvas = page.locator("#edit-editor canvas").first
    canvas.scroll_into_view_if_needed()
    box = canvas.bounding_box()
    x, y = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2
    page.mouse.move(x - dx, y)
    page.mouse.down()
    page.mouse.move(x + dx, y + 6, steps=6)
    page.mouse.up()


def drop(page, photo: Path) -> None:
    open_tab(page, "Edit")
    page.set_input_files("#edit-file input[type=file]", str(photo))
    page.wait_for_selector("#edit-editor canvas")
    page.wait_for_timeout(1500)  # the editor draws the photo


@pytest.fixture(scope="module")
def photo(tmp_path_factory):
    """A photo of another shape than the model's, turned by the camera."""
    path = tmp_path_factory.mktemp("photo") / "photo.jpg"
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.open(GOLDEN / "photo.jpg").resize((600, 400)).save(path, exif=exif)
    return path


def test_paint_regenerate_and_use_the_result(tab, studio, photo):
    drop(tab, photo)
    paint(tab)
    tab.wait_for_selector("#edit-cover img")  # the tokens that the brush covers
    tab.click("#edit-go")
    tab.wait_for_selector("#edit-images img")
    wait_for_line(tab, "#edit", "images/s")
    entry = newest(studio)
    before = editing.as_picture(photo)
    mask = np.asarray(Image.open(entry.folder / "mask.png"))
    assert mask.shape == before.shape[:2] == (600, 400) and 0 < mask.mean() < 0.5
    edit = studio.page.engine.model.prepare_edit(str(photo), mask=mask)
    outside = np.ones(mask.shape, bool)
    crop = edit.crop
    outside[crop.top : crop.top + crop.size, crop.left : crop.left + crop.size] = False
    after = np.asarray(Image.open(entry.images[0]))

    def digest(array):
        return hashlib.sha256(np.ascontiguousarray(array[outside]).tobytes()).hexdigest()

    assert digest(after) == digest(before) and (after != before).any()
    tab.click("#edit-use")
    tab.wait_for_timeout(1000)
    tab.click("#edit-undo")
    tab.wait_for_timeout(500)
    assert tab.locator(".toast-body").count() == 0
    tab.click("#edit-undo")  # there is no photo before the first
    tab.wait_for_selector(".toast-body")
    assert "this is the first photo" in tab.locator(".toast-body").first.inner_text()


@SLOW
def test_undo_a_stroke(tab, studio, photo):
    drop(tab, photo)
    paint(tab)
    tab.wait_for_selector("#edit-cover img")
    tab.locator("#edit-editor button[aria-label='Undo']").first.click()
    tab.wait_for_selector("#edit-cover img", state="hidden")
    tab.click("#edit-go")
    tab.wait_for_selector(".toast-body")
    assert "nothing is painted" in tab.locator(".toast-body").first.inner_text()


@SLOW
def test_outpaint(tab, studio, photo):
    drop(tab, photo)
    tab.locator("#edit-extend textarea, #edit-extend input").first.fill("0, 0, 40, 0")
    tab.wait_for_selector("#edit-cover img")
    tab.click("#edit-go")
    wait_for_line(tab, "#edit", "images/s")
    after = np.asarray(Image.open(newest(studio).images[0]))
    assert after.shape == (640, 400, 3)


def test_a_bad_file_is_one_line(tab, tmp_path):
    bad = tmp_path / "bad.png"
    bad.write_bytes(b"\x89PNG\r\n\x1a\nnot an image")
    open_tab(tab, "Edit")
    tab.set_input_files("#edit-file input[type=file]", str(bad))
    tab.wait_for_selector(".toast-body")
    text = tab.locator(".toast-body").first.inner_text()
    assert "this file is no image that can be read" in text and "Traceback" not in text


@SLOW
def test_compare(tab, studio):
    open_tab(tab, "Compare")
    tab.click("#compare-go")
    wait_for_line(tab, "#compare-B", "images/s")
    first, second = studio.page.history.entries()[:2]
    assert {first.title[-1], second.title[-1]} == {"A", "B"}
    # The same settings and seed give the same images.
    for a, b in zip(first.images, second.images, strict=True):
        assert a.read_bytes() == b.read_bytes()


@SLOW
def test_cancel(tab, studio):
    before = len(studio.page.history.entries())
    number(tab, "#generate-count", 16)
    tab.click("#generate-go")
    tab.wait_for_selector("#generate-picture img")
    tab.click("#generate-cancel")
    wait_for_line(tab, "#generate", "cancelled")
    assert len(studio.page.history.entries()) == before
