"""The tab to edit photos: brush, eraser and box, margins to add, variations, before and after."""

import dataclasses
import shutil
from pathlib import Path
from typing import Any

import gradio as gr
import numpy as np
from PIL import Image

from maskgit_pt import editing
from maskgit_pt.studio import pictures
from maskgit_pt.studio.controls import SamplerControls, class_search
from maskgit_pt.studio.drafts import NAME_OF_TAB, Draft, Drafts
from maskgit_pt.studio.jobs import Jobs
from maskgit_pt.studio.view import (
    JOB_EVENT,
    MAX_IMAGES,
    ResultView,
    connect_cancel,
    next_seed,
    one_line_errors,
    seed_controls,
)
from maskgit_pt.utils import Bbox, four_numbers

MAX_PIXELS = 50_000_000
_BRUSH = "#d63031"
# Pixels of the longer side in the browser; masks are brought back to the photo's size.
_EDITOR = 1280


class EditTab:
    """Builds the tab, and does what is asked for on it.

    The browser is only asked for the mask. The photo itself is read from the file that was dropped, so that
    what is not regenerated stays as it is, bit for bit, whatever the browser shows. What is begun is kept as
    a draft, and is there again after a reload.
    """

    def __init__(self, jobs: Jobs, blocks: gr.Blocks):
        self.jobs, self.model = jobs, jobs.engine.model
        self.drafts = Drafts(jobs.history.folder / "drafts")
        self.draft = gr.State("")  # its name
        self.photos = gr.State([])  # paths; the last is the present one
        with gr.Row():
            with gr.Column(scale=1, min_width=280):
                self.file = gr.File(
                    label="Drop a photo here", file_types=["image"], elem_id="edit-file"
                )
                self.label = class_search(
                    jobs.classes, "Class of the new content", elem_id="edit-class"
                )
                self.box = gr.Textbox(
                    label="Box instead of painting: top, left, height, width", elem_id="edit-box"
                )
                self.margins = gr.Textbox(
                    label="Extend the photo by: top, right, bottom, left", elem_id="edit-extend"
                )
                self.count = gr.Slider(
                    1, MAX_IMAGES, value=2, step=1, label="Variations", elem_id="edit-count"
                )
                self.seed, self.lock = seed_controls("edit")
                self.controls = SamplerControls("edit", self.model.num_tokens, editing=True)
                self.guesses = gr.Checkbox(True, label="Show guesses while decoding")
            with gr.Column(scale=2, min_width=280):
                self.editor = gr.ImageEditor(
                    label="Paint what is to be regenerated", type="pil", layers=False,
                    transforms=(), sources=(), format="png", height=480, elem_id="edit-editor",
                    # Less than any photo: paint on a photo below this size would be restored displaced.
                    canvas_size=(16, 16),
                    brush=gr.Brush(colors=[_BRUSH], default_size=40, color_mode="fixed"),
                )  # fmt: skip
                self.cover = gr.Image(
                    label="Tokens that will be regenerated (red), and the square that the model sees",
                    format="png", interactive=False, elem_id="edit-cover", visible=False,
                    buttons=["fullscreen"],
                )  # fmt: skip
                with gr.Row():
                    go = gr.Button("Regenerate", variant="primary", elem_id="edit-go")
                    stop = gr.Button("Cancel", elem_id="edit-cancel")
                self.view = ResultView("edit")
                self.view.seed = self.seed
                self.slider = gr.ImageSlider(
                    label="Before and after",
                    format="png",
                    elem_id="edit-slider",
                    visible=False,
                    height=420,
                )
                with gr.Row():
                    use = gr.Button("Use this result as input", elem_id="edit-use")
                    undo = gr.Button("Back to the photo before", elem_id="edit-undo")
        self.results = gr.State([])
        self.selected = gr.State(0)
        self._connect(go, stop, use, undo)
        asked = gr.Textbox(visible=False)  # carries the name from the browser
        blocks.load(
            self._restore, asked, [self.draft, *self.shown], js=NAME_OF_TAB, api_name=False,
            show_progress="hidden",
        )  # fmt: skip

    def _connect(self, go: gr.Button, stop: gr.Button, use: gr.Button, undo: gr.Button) -> None:
        self.shown = shown = [self.photos, self.editor, self.cover, self.box, self.margins]
        self.file.upload(self._upload, [self.draft, self.file], shown, api_name=False)
        watched = [self.photos, self.editor, self.box, self.margins]
        for component in (self.editor, self.box, self.margins):
            component.change(
                self._changed, [self.draft, *watched], self.cover, show_progress="hidden",
                api_name=False, trigger_mode="always_last", concurrency_limit=None,
            )  # fmt: skip
        inputs = [*watched, self.label, self.count, self.seed, self.lock, self.guesses]
        inputs += self.controls.components
        outputs = [*self.view.outputs, self.results, self.slider, self.selected]
        go.click(self._edit, inputs, outputs, api_name=False, **JOB_EVENT)
        connect_cancel(stop, self.jobs.engine, self.view)
        self.view.images.select(
            self._select, [self.photos, self.results], [self.slider, self.selected], api_name=False
        )
        results = [self.draft, self.photos, self.results, self.selected]
        use.click(self._use, results, shown, api_name=False)
        undo.click(
            self._undo, [self.draft, self.photos], shown, api_name=False, trigger_mode="multiple"
        )

    def _upload(self, name: str, path: str | None) -> dict[Any, Any]:
        if path is None:
            return {}
        with one_line_errors():
            return self._begin(name, [str(path)])

    def _begin(self, name: str, photos: list[str]) -> dict[Any, Any]:
        """A photo on which nothing is painted yet."""
        draft = Draft(photos)
        shown = self._show(draft)
        self.drafts.keep(name, draft)
        return shown

    def _restore(self, name: str) -> dict[Any, Any]:
        """What stood here before the page was reloaded."""
        draft = self.drafts.read(name)
        return {self.draft: name} | ({} if draft is None else self._show(draft))

    def _show(self, draft: Draft) -> dict[Any, Any]:
        photo, layers = pictures.to_send(_small(_read(draft.photos[-1]))), []
        if draft.mask is not None and draft.mask.shape == photo.size[::-1]:
            alpha = Image.fromarray(draft.mask).convert("L")
            layers = [Image.new("RGBA", photo.size, _BRUSH)]
            layers[0].putalpha(alpha)
        painted = {"background": photo, "layers": layers, "composite": photo}
        return {
            self.photos: draft.photos,
            self.editor: painted,
            self.cover: self._preview(draft.photos, painted, draft.box, draft.margins),
            self.box: draft.box,
            self.margins: draft.margins,
        }

    def _changed(self, name: str, photos: list[str], painted: dict | None, box: str, margins: str):
        if photos:
            layers = [np.asarray(layer.getchannel("A")) > 0 for layer in _layers(painted)]
            mask = np.logical_or.reduce(layers) if layers else None
            self.drafts.keep(name, Draft(photos, box, margins, mask))
        return self._preview(photos, painted, box, margins)

    def _preview(self, photos: list[str], painted: dict | None, box: str, margins: str) -> Any:
        """The photo with what the brush, the box or the margins really cover."""
        if not photos:
            return gr.update(visible=False)
        try:
            array = _read(photos[-1])
            array, pixels, given_box = _masked(array, painted, box, margins)
            crop = editing.choose_crop(array.shape[:2], pixels)
            if given_box is not None:
                size, patch = self.model.image_size, self.model.tokenizer.downsampling
                tokens = editing.box_token_mask(given_box, crop, size, patch)
            else:
                tokens = editing.pixel_token_mask(pixels, crop, self.model.side)
        except ValueError:
            return gr.update(visible=False)  # nothing painted yet, or half a box typed
        picture = pictures.covered_tokens(_small(array), array.shape[:2], crop, tokens)
        return gr.update(value=pictures.to_send(picture), visible=True)

    def _edit(self, photos, painted, box, margins, label, count, seed, lock, guesses, *values):
        seed = next_seed(seed, lock)
        with one_line_errors():
            if not photos:
                raise ValueError("there is no photo yet: drop one on the left")
            job = self._job(photos[-1], painted, box, margins, label, count, seed, values)
        yield self.view.begin(job.asked.output) | {
            self.seed: seed, self.results: [], self.slider: gr.update(visible=False),
            self.selected: 0,
        }  # fmt: skip
        for picture, line, entry in self.jobs.run(job, f"edit: {self.jobs.title(label)}", guesses):
            update = self.view.update(picture, line, entry)
            if entry is not None:
                results = [str(path) for path in entry.images]
                update |= {self.results: results, self.slider: _compared(photos[-1], results[0])}
            yield update

    def _job(self, photo, painted, box, margins, label, count, seed, values):
        """A job with its own copies of photo and mask beside the samples."""
        array = _read(photo)
        _, pixels, _ = _masked(array, painted, box, margins)
        if not pixels.any():
            raise ValueError("nothing is painted: paint what is to be regenerated, or give a box")
        settings = self.controls.settings(*values)
        job = self.jobs.job(label, count, seed, settings)
        folder = Path(job.asked.output)
        kept = folder / f"photo{Path(photo).suffix.lower()}"
        shutil.copyfile(photo, kept)
        asked = {"edit": str(kept)}
        if margins.strip():
            asked["extend"] = margins.replace(" ", "")
        elif box.strip():
            asked["box"] = box.replace(" ", "")
        else:
            Image.fromarray(pixels).save(folder / "mask.png")
            asked["mask"] = str(folder / "mask.png")
        return dataclasses.replace(job, asked=dataclasses.replace(job.asked, **asked))

    def _select(self, event: gr.SelectData, photos: list[str], results: list[str]):
        return {
            self.slider: _compared(photos[-1], results[event.index]),
            self.selected: event.index,
        }

    def _use(self, name: str, photos: list[str], results: list[str], selected: int):
        with one_line_errors():
            if not results:
                raise ValueError("there is no result yet")
            return self._begin(name, [*photos, results[selected]])

    def _undo(self, name: str, photos: list[str]) -> dict[Any, Any]:
        with one_line_errors():
            if len(photos) < 2:
                raise ValueError("this is the first photo")
            return self._begin(name, photos[:-1])


def _read(path: str) -> np.ndarray:
    """A photo as viewers show it, uint8 [H, W, 3].

    Raises:
      ValueError: it cannot be read, or has too many pixels.
    """
    try:
        with Image.open(path) as file:
            if file.width * file.height > MAX_PIXELS:
                raise ValueError(
                    f"the photo has {file.width} x {file.height} pixels; accepted: at most {MAX_PIXELS:,}"
                )
        return editing.as_picture(path)
    except (OSError, SyntaxError, Image.DecompressionBombError) as error:
        raise ValueError(
            f"this file is no image that can be read: {type(error).__name__}"
        ) from None


def _small(array: np.ndarray) -> Image.Image:
    """A photo at the size at which the browser edits it."""
    photo = Image.fromarray(array)
    scale = _EDITOR / max(photo.size)
    if scale >= 1:
        return photo
    return photo.resize(tuple(max(1, round(side * scale)) for side in photo.size))


def _masked(
    array: np.ndarray, painted: dict | None, box: str, margins: str
) -> tuple[np.ndarray, np.ndarray, Bbox | None]:
    """The photo, with margins if any, what is to be regenerated bool [H, W], and the box if there is one."""
    if margins.strip():
        array, pixels = editing.add_margins(
            array, four_numbers(margins, "margins", "top,right,bottom,left")
        )
        return array, pixels, None
    if box.strip():
        found = Bbox.parse(box)
        return array, editing.box_mask(found, array.shape[:2]), found
    pixels = np.zeros(array.shape[:2], bool)
    for layer in _layers(painted):
        alpha = layer.getchannel("A")
        if alpha.size != (array.shape[1], array.shape[0]):
            alpha = alpha.resize((array.shape[1], array.shape[0]), Image.Resampling.NEAREST)
        pixels |= np.asarray(alpha) > 0
    return array, pixels, None


def _layers(painted: dict | None) -> list[Image.Image]:
    """What is painted, RGBA, at the size of the browser's canvas."""
    return [layer.convert("RGBA") for layer in (painted or {}).get("layers") or []]


def _compared(before: str, after: str) -> Any:
    """Before and after, at a size for the page; of an extended photo the old one stands in its place."""
    first, second = Image.fromarray(_read(before)), Image.fromarray(_read(after))
    if first.size != second.size:
        first = first.resize(second.size)
    return gr.update(value=(pictures.enlarge(first), pictures.enlarge(second)), visible=True)
