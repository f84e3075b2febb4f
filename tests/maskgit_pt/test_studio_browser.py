"""The studio in a browser: Chromium, driven by Playwright, at the width of a desk and of a phone.

By default one visit at the width of a desk runs, in one page: a browser without a GPU takes its time. The
others are marked slow.
"""

import contextlib
import dataclasses
import hashlib
import importlib.util
import io
import json
import re
import shlex
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps
from recorded import GOLDEN, OFFICIAL

playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")

from maskgit_pt.model_settings import ModelSettings  # noqa: E402
from maskgit_pt.nets.maskgit_transformer import Transformer  # noqa: E402
from maskgit_pt.studio import __main__ as program  # noqa: E402

ROOT = Path(__file__).parents[2]
CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")
pytestmark = [
    pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium (package chromium)"),
    pytest.mark.skipif(  # imported by tests alone: see test_studio.py
        importlib.util.find_spec("gradio") is None, reason="the extra 'demo' is not installed"
    ),
]

SLOW = pytest.mark.slow
DESK = pytest.param(1280, id="desk")
PHONE = pytest.param(375, id="phone", marks=SLOW)
both_widths = pytest.mark.parametrize("tab", [DESK, PHONE], indirect=True)
at_a_desk = pytest.mark.parametrize("tab", [DESK], indirect=True)
ARGUMENTS = [
    "--no-sandbox", "--disable-gpu", "--disable-background-networking", "--no-first-run",
    "--disable-component-update", "--disable-sync",
]  # fmt: skip
PATIENCE = 120_000  # milliseconds; beside much other work a page takes a minute


MODELS = ModelSettings(
    model=str(OFFICIAL / "tiny_transformer_checkpoint"),
    tokenizer=str(OFFICIAL / "tiny_tokenizer_checkpoint"),
    device="cpu",
    threads=1,
)


class Studio:
    """A served page, and the folder that it keeps its history in."""

    def __init__(self, folder: Path, models: ModelSettings = MODELS):
        self.port = _free_port()
        self.asked = program.StudioSettings(output=str(folder), port=self.port)
        self.page = program.make_page(models, self.asked, "")
        self.blocks = program.serve(self.page, self.asked, prevent_thread_lock=True, quiet=True)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/"


def _free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return sock.getsockname()[1]


@pytest.fixture(scope="module")
def studio(tmp_path_factory):
    server = Studio(tmp_path_factory.mktemp("studio"))
    yield server
    server.blocks.close()


@pytest.fixture(scope="module")
def browser():
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=CHROMIUM, args=ARGUMENTS)
        yield browser
        browser.close()


@pytest.fixture
def tab(request, browser, studio):
    """An open page; what the browser complains of fails the test."""
    context = browser.new_context(viewport={"width": request.param, "height": 900})
    page = context.new_page()
    page.set_default_timeout(PATIENCE)
    complaints = []
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.goto(studio.url)
    page.wait_for_selector("#generate-go")
    yield page
    context.close()
    assert not complaints


def open_tab(page, name: str) -> None:
    page.get_by_role("tab", name=name).first.click()


def choose(page, place: str, text: str) -> None:
    """Types into a list that narrows, and takes the only one that is then there."""
    field = page.locator(f"{place} input").first
    field.click()
    field.fill("")
    field.press_sequentially(text)  # the list narrows with the keys
    options = page.locator(f"{place} [role=option]")
    playwright.expect(options).to_have_count(1, timeout=PATIENCE)
    playwright.expect(options).to_contain_text(text)
    options.click()


def number(page, place: str, value: int) -> None:
    page.locator(f"{place} input").first.fill(str(value))


def newest(studio):
    return studio.page.history.entries()[0]


def wait_for_line(page, place: str, text: str) -> None:
    playwright.expect(
        page.locator(f"{place}-line textarea, {place}-line input").first
    ).to_have_value(re.compile(text), timeout=PATIENCE)


def generate(page, seed: int, count: int = 2, place: str = "generate") -> None:
    """Asks for images and waits until they are there."""
    number(page, f"#{place}-seed", seed)
    number(page, f"#{place}-count", count)
    page.click(f"#{place}-go")
    page.wait_for_selector(f"#{place}-picture img")  # while it decodes
    command = page.locator(f"#{place}-command", has_text=re.compile(rf"--seed={seed}\b"))
    playwright.expect(command).to_be_visible(timeout=PATIENCE)  # not that of the images before
    page.wait_for_selector(f"#{place}-images img")
    wait_for_line(page, f"#{place}", "images/s")


def wait_until(page, holds) -> None:
    """Waits until something holds that the page does not show."""
    for _ in range(PATIENCE // 200):
        if holds():
            return
        page.wait_for_timeout(200)
    raise TimeoutError("it never held")


def expect_complaint(page, text: str) -> None:
    """Waits for a line that says what is wrong."""
    toast = page.locator(".toast-body", has_text=text).first
    playwright.expect(toast).to_be_visible(timeout=PATIENCE)
    assert "Traceback" not in toast.inner_text()


def paint(page, eraser: bool = False, dy: float = 0) -> None:
    """A stroke through the middle of the photo, with the brush or the eraser."""
    canvas = page.locator("#edit-editor canvas").first
    canvas.scroll_into_view_if_needed()
    if eraser:  # the brush is in the hand at first
        page.locator("#edit-editor button[aria-label='Erase']").first.click()
    box = canvas.bounding_box()
    x, y = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2 + dy
    page.mouse.move(x - 40, y)
    page.mouse.down()
    page.mouse.move(x + 40, y + 6, steps=6)
    page.mouse.up()


def drop(page, photo: Path) -> None:
    """Gives the page a photo, and waits until it has been drawn."""
    open_tab(page, "Edit")
    page.set_input_files("#edit-file input[type=file]", str(photo))
    wait_for_photo(page)


def wait_for_photo(page) -> None:
    """Waits until the editor has drawn a photo, which is not white all over."""
    page.wait_for_function(DRAWN)
    canvas = page.locator("#edit-editor canvas").first
    wait_until(page, lambda: np.asarray(Image.open(io.BytesIO(canvas.screenshot()))).std() > 20)


DRAWN = """() => {
  const canvas = document.querySelector("#edit-editor canvas");
  return canvas && canvas.getBoundingClientRect().height > 100;
}"""


def camera_photo(path: Path, size: tuple[int, int]) -> Path:
    """A photo of this size as it is stored; the camera was held upright, so that viewers turn it."""
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.open(GOLDEN / "photo.jpg").resize(size).save(path, exif=exif)
    return path


@pytest.fixture(scope="module")
def photo(tmp_path_factory):
    """A photo of another shape than the model's, turned by the camera."""
    return camera_photo(tmp_path_factory.mktemp("photo") / "photo.jpg", (600, 400))


def check_outside(studio, photo: Path, entry) -> None:
    """Outside the blend, the result has the pixels that a viewer shows of the photo."""
    before = np.asarray(ImageOps.exif_transpose(Image.open(photo)).convert("RGB"))
    after = np.asarray(Image.open(entry.images[0]))
    mask = np.asarray(Image.open(entry.folder / "mask.png"))
    assert mask.shape == before.shape[:2] == after.shape[:2] and 0 < mask.mean() < 0.5
    model = studio.page.engine.model
    edit = model.prepare_edit(str(photo), mask=mask)
    black = torch.zeros(3, model.image_size, model.image_size)
    outside = (edit.finish(black) == edit.finish(black + 1)).all(0).numpy()  # whatever is generated
    assert 0.1 < outside.mean() < 1

    def digest(array):
        return hashlib.sha256(np.ascontiguousarray(array[outside]).tobytes()).hexdigest()

    assert digest(after) == digest(before) and (after != before).any()


def same_by_command(entry, folder: Path) -> None:
    """The command of an entry makes the same files, byte for byte."""
    program_name, *arguments = shlex.split(entry.command)
    assert program_name == "maskgit-sample"
    arguments = [a for a in arguments if not a.startswith("--output=")] + [f"--output={folder}"]
    sample = [sys.executable, "-m", "maskgit_pt.sample", *arguments]
    subprocess.run(sample, check=True, cwd=ROOT, capture_output=True)
    for path in entry.images:
        assert (folder / path.name).read_bytes() == path.read_bytes()


@both_widths
def test_a_visit(tab, studio, photo):
    """Generate, watch, look again at a step; paint on a photo, edit it."""
    before = len(studio.page.history.entries())
    generate(tab, 11)
    assert len(studio.page.history.entries()) == before + 1
    entry = newest(studio)
    assert "--seed=11" in entry.command and len(entry.images) == 2
    last = tab.locator("#generate-picture img").get_attribute("src")
    number(tab, "#generate-scrubber", 1)
    tab.locator("#generate-scrubber input").first.press("Enter")
    tab.wait_for_function(
        "last => document.querySelector('#generate-picture img').getAttribute('src') !== last",
        arg=last,
    )
    # A phone does not scroll sideways.
    assert tab.evaluate("document.documentElement.scrollWidth <= window.innerWidth + 1")

    drop(tab, photo)
    paint(tab)
    tab.wait_for_selector("#edit-cover img")  # the tokens that the brush covers
    generate(tab, 5, count=1, place="edit")
    check_outside(studio, photo, newest(studio))


@SLOW
@both_widths
def test_going_on_with_a_result(tab, studio, photo, tmp_path):
    """A bad file is refused; a result becomes the photo, and back; everything is in the history."""
    bad = tmp_path / "bad.png"
    bad.write_bytes(b"\x89PNG\r\n\x1a\nnot an image")
    open_tab(tab, "Edit")
    tab.set_input_files("#edit-file input[type=file]", str(bad))
    expect_complaint(tab, "this file is no image that can be read")

    tab.reload()
    drop(tab, photo)
    paint(tab)
    tab.wait_for_selector("#edit-cover img")
    generate(tab, 5, count=1, place="edit")
    tab.click("#edit-use")
    tab.wait_for_selector("#edit-cover img", state="hidden")  # a photo on which nothing is painted
    tab.click("#edit-undo")
    tab.click("#edit-undo")  # there is no photo before the first
    expect_complaint(tab, "this is the first photo")

    open_tab(tab, "History")
    tab.locator("#history-gallery .thumbnail-item").first.click()
    tab.wait_for_selector("#history-images img")
    assert "maskgit-sample" in tab.content()


@SLOW
@both_widths
def test_reload_loses_nothing(tab, studio):
    """Not even what is being made."""
    before = len(studio.page.history.entries())
    number(tab, "#generate-count", 2)
    tab.click("#generate-go")
    tab.wait_for_selector("#generate-picture img")
    tab.reload()
    tab.wait_for_selector("#generate-go")
    wait_until(tab, lambda: len(studio.page.history.entries()) > before)
    open_tab(tab, "History")
    playwright.expect(tab.locator("#history-gallery .thumbnail-item")).to_have_count(before + 1)
    tab.locator("#history-gallery .thumbnail-item").first.click()
    tab.wait_for_selector("#history-images img")
    assert "maskgit-sample" in tab.content()


@SLOW
@both_widths
def test_reload_keeps_what_is_painted(tab, studio, photo):
    """The photo, the paint and what is typed are there again, and give the same edit."""
    drop(tab, photo)
    paint(tab)
    tab.wait_for_selector("#edit-cover img")
    generate(tab, 5, count=1, place="edit")
    first = newest(studio)
    tab.locator("#edit-extend textarea, #edit-extend input").first.fill("0, 0, 40, 0")
    drafts = studio.page.history.folder / "drafts"
    wait_until(tab, lambda: any("0, 0, 40, 0" in p.read_text() for p in drafts.glob("*.json")))
    for _ in range(2):
        tab.reload()
        open_tab(tab, "Edit")
        wait_for_photo(tab)
        margins = tab.locator("#edit-extend textarea, #edit-extend input").first
        playwright.expect(margins).to_have_value("0, 0, 40, 0", timeout=PATIENCE)
        tab.wait_for_selector("#edit-cover img")
    margins.fill("")
    generate(tab, 5, count=1, place="edit")
    again = newest(studio)
    assert again.folder != first.folder
    for name in ("mask.png", first.images[0].name):
        assert (again.folder / name).read_bytes() == (first.folder / name).read_bytes()
    check_outside(studio, photo, again)
    paint(tab, eraser=True, dy=-8)  # what was painted before the reload can be taken away
    generate(tab, 6, count=1, place="edit")
    whole, part = (
        np.asarray(Image.open(entry.folder / "mask.png")) for entry in (again, newest(studio))
    )
    assert 0 < part.sum() < whole.sum() and not (part & ~whole).any()

    other = tab.context.new_page()  # another tab has its own photo, or none
    other.goto(studio.url)
    open_tab(other, "Edit")
    other.click("#edit-go")
    expect_complaint(other, "there is no photo yet")


@SLOW
@at_a_desk
def test_the_eraser_takes_paint_away(tab, studio, photo):
    drop(tab, photo)
    paint(tab)
    tab.wait_for_selector("#edit-cover img")
    generate(tab, 5, count=1, place="edit")
    whole = np.asarray(Image.open(newest(studio).folder / "mask.png"))
    paint(tab, eraser=True, dy=-8)
    generate(tab, 6, count=1, place="edit")
    part = np.asarray(Image.open(newest(studio).folder / "mask.png"))
    assert 0 < part.sum() < whole.sum() and not (part & ~whole).any()


@SLOW
@at_a_desk
def test_a_photo_of_twelve_megapixels(tab, studio, tmp_path):
    """At full size, turned as its EXIF data say: unchanged outside, and as by the command."""
    photo = camera_photo(tmp_path / "large.jpg", (4032, 3024))
    drop(tab, photo)
    paint(tab)
    tab.wait_for_selector("#edit-cover img")
    generate(tab, 7, count=1, place="edit")
    entry = newest(studio)
    assert Image.open(entry.images[0]).size == (3024, 4032)
    check_outside(studio, photo, entry)
    same_by_command(entry, tmp_path / "again")


@SLOW
@both_widths
def test_undo_a_stroke(tab, studio, photo):
    drop(tab, photo)
    paint(tab)
    tab.wait_for_selector("#edit-cover img")
    tab.locator("#edit-editor button[aria-label='Undo']").first.click()
    tab.wait_for_selector("#edit-cover img", state="hidden")
    tab.click("#edit-go")
    expect_complaint(tab, "nothing is painted")


@SLOW
@both_widths
def test_outpaint(tab, studio, photo):
    drop(tab, photo)
    tab.locator("#edit-extend textarea, #edit-extend input").first.fill("0, 0, 40, 0")
    tab.wait_for_selector("#edit-cover img")
    generate(tab, 5, count=1, place="edit")
    after = np.asarray(Image.open(newest(studio).images[0]))
    assert after.shape == (640, 400, 3)


@SLOW
@both_widths
def test_compare(tab, studio):
    open_tab(tab, "Compare")
    number(tab, "#compare-count", 2)
    tab.click("#compare-go")
    wait_for_line(tab, "#compare-B", "images/s")
    commands = [entry.command for entry in studio.page.history.entries()[:2]]
    assert "--sampler=halton" in commands[0] and "--sampler=official" in commands[1]
    with tab.expect_response(lambda response: "/run/" in response.url):  # with its settings
        choose(tab, "#compare-B-sampler", "official")
    tab.wait_for_timeout(1000)
    tab.click("#compare-go")
    wait_for_line(tab, "#compare-B", "waiting|step")
    wait_for_line(tab, "#compare-B", "images/s")
    first, second = studio.page.history.entries()[:2]
    assert {first.title[-1], second.title[-1]} == {"A", "B"}
    # The same settings and seed give the same images.
    for a, b in zip(first.images, second.images, strict=True):
        assert a.read_bytes() == b.read_bytes()


@SLOW
@both_widths
def test_cancel(tab, studio):
    before = len(studio.page.history.entries())
    number(tab, "#generate-count", 16)
    tab.click("#generate-go")
    tab.wait_for_selector("#generate-picture img")
    tab.click("#generate-cancel")
    wait_for_line(tab, "#generate", "cancelled")
    wait_until(tab, lambda: not studio.page.engine.busy)
    assert len(studio.page.history.entries()) == before
    generate(tab, 3)  # the next job is not cancelled


@SLOW
def test_from_a_wordnet_id_to_the_download(browser, tmp_path):
    """A class by its WordNet id; its archive holds metadata; the API's page opens."""
    transformer = Transformer(32 + 1000 + 1, 32, 1, 2, 64, max_position_embeddings=17)
    transformer.save_pretrained(tmp_path / "transformer")
    models = dataclasses.replace(MODELS, model=str(tmp_path / "transformer"))
    server = Studio(tmp_path / "studio", models)
    page = browser.new_page()
    page.set_default_timeout(PATIENCE)
    page.goto(server.url)
    choose(page, "#generate-class", "n02099601")
    generate(page, 3, count=1)
    assert "--labels=207" in newest(server).command

    open_tab(page, "History")
    page.locator("#history-gallery .thumbnail-item").first.click()
    page.wait_for_selector("#history-images img")
    button = page.locator("#history-download")
    playwright.expect(button).to_be_enabled(timeout=PATIENCE)
    with page.expect_download() as download:
        button.click()
    with zipfile.ZipFile(download.value.path()) as archive:
        archive.extractall(tmp_path)
    (image,) = (tmp_path / "maskgit_0001").glob("*.png")
    text = Image.open(image).text
    assert text["label"] == "207" and text["class"] == "golden retriever" and text["tokens"]
    assert json.loads((image.parent / "settings.json").read_text())

    page.click("#history-api")
    playwright.expect(page.get_by_text("/generate").first).to_be_visible(timeout=PATIENCE)
    playwright.expect(page.get_by_text("2 API endpoints").first).to_be_visible()
    page.close()
    server.blocks.close()


@contextlib.contextmanager
def served(command: list[str], port: int):
    """A server of its own process, which is killed at the end."""
    with subprocess.Popen(command, cwd=ROOT) as server:
        try:
            _wait_for(port)
            yield
        finally:
            server.kill()


@SLOW
def test_a_killed_server_has_its_history_again(browser, tmp_path):
    """The server is killed while it generates; started again, it shows what was whole."""
    port = _free_port()
    settings = [f"--{name}={getattr(MODELS, name)}" for name in ("model", "tokenizer", "device")]
    command = [sys.executable, "-m", "maskgit_pt.studio", *settings, f"--port={port}"]
    command += ["--threads=1", f"--output={tmp_path / 'kept'}"]
    page = browser.new_page()
    page.set_default_timeout(PATIENCE)
    with served(command, port):
        page.goto(f"http://127.0.0.1:{port}/")
        generate(page, 1)
        number(page, "#generate-count", 16)
        page.click("#generate-go")
        wait_for_line(page, "#generate", "step")
    with served(command, port):
        page.goto(f"http://127.0.0.1:{port}/")
        open_tab(page, "History")
        playwright.expect(page.locator("#history-gallery .thumbnail-item")).to_have_count(1)
        open_tab(page, "Generate")
        generate(page, 2)
    page.close()


def _wait_for(port: int) -> None:
    for _ in range(PATIENCE // 100):
        try:
            urllib.request.urlopen(f"http://127.0.0.1:{port}/").close()
            return
        except OSError:
            time.sleep(0.1)
    raise TimeoutError(f"nobody listens on port {port}")
