"""The page: its tabs, and what happens when something on it is pressed."""

import gradio as gr

from maskgit_pt.model_settings import ModelSettings
from maskgit_pt.studio import pictures
from maskgit_pt.studio.controls import SamplerControls, class_search
from maskgit_pt.studio.edit_tab import EditTab
from maskgit_pt.studio.engine import MAX_JOBS, Engine
from maskgit_pt.studio.history import History
from maskgit_pt.studio.jobs import Jobs
from maskgit_pt.studio.view import (
    JOB_EVENT,
    MAX_IMAGES,
    ResultView,
    code_box,
    connect_cancel,
    next_seed,
    one_line_errors,
    seed_controls,
)

CSS = """
.gradio-container {width: 100% !important; max-width: 1200px !important; margin: auto !important}
@media (max-width: 600px) {
  .gradio-container, .gradio-container .app, .gradio-container main {
    max-width: 100vw !important; padding: 6px !important; box-sizing: border-box}
  .gradio-container main *, .gradio-container main {min-width: 0}
  .grid-container {grid-template-columns: repeat(2, minmax(0, 1fr)) !important}
}
#notice {opacity: .8}
.grid-wrap, .grid-wrap.fixed-height {min-height: 0 !important; max-height: none !important}
.gallery-item .thumbnail-lg {max-height: 420px}
"""
TINY_CSS = ".gradio-container img {image-rendering: pixelated}"  # for images of few pixels

SHOW_API = "() => document.querySelector('footer .show-api').click()"  # an address does not open it


class Page(Jobs):
    """Builds the page.

    Args:
      engine, models, history: see `Jobs`.
      notice: a line under the title, e.g. that the model is a small one for trying.
    """

    def __init__(self, engine: Engine, models: ModelSettings, history: History, notice: str = ""):
        super().__init__(engine, models, history)
        self.notice = notice

    @property
    def css(self) -> str:
        """The style sheet: pixels of tiny images stay squares."""
        return CSS + (TINY_CSS if self.engine.model.image_size < pictures.LEAST else "")

    def build(self) -> gr.Blocks:
        """Returns the page, not yet served."""
        with gr.Blocks(title="maskgit studio", analytics_enabled=False) as blocks:
            gr.Markdown(f"# maskgit studio\n{self.notice}", elem_id="notice")
            with gr.Tabs():
                with gr.Tab("Generate"):
                    self._generate_tab()
                with gr.Tab("Edit"):
                    EditTab(self, blocks)
                with gr.Tab("Compare"):
                    self._compare_tab()
                with gr.Tab("History") as history:
                    self._history_tab(blocks, history)
        return blocks.queue(default_concurrency_limit=1, max_size=MAX_JOBS)

    def _generate_tab(self) -> None:
        with gr.Row():
            with gr.Column(scale=1, min_width=280):
                label = class_search(self.classes, elem_id="generate-class")
                count = gr.Slider(
                    1, MAX_IMAGES, value=4, step=1, label="Images", elem_id="generate-count"
                )
                seed, lock = seed_controls("generate")
                controls = SamplerControls("generate", self.engine.model.num_tokens)
                guesses = gr.Checkbox(True, label="Show guesses while decoding")
                with gr.Row():
                    go = gr.Button("Generate", variant="primary", elem_id="generate-go")
                    stop = gr.Button("Cancel", elem_id="generate-cancel")
            with gr.Column(scale=2, min_width=280):
                view = ResultView("generate")
        inputs = [label, count, seed, lock, guesses, *controls.components]

        def generate(label, count, seed, lock, guesses, *values):
            seed = next_seed(seed, lock)
            with one_line_errors():
                job = self.job(label, count, seed, controls.settings(*values))
            yield view.begin(job.asked.output) | {view.seed: seed}
            for picture, line, entry in self.run(job, self.title(label), guesses):
                yield view.update(picture, line, entry)

        view.seed = seed
        go.click(generate, inputs, view.outputs, api_name="generate", **JOB_EVENT)
        connect_cancel(stop, self.engine, view)

    def _compare_tab(self) -> None:
        with gr.Row():
            label = class_search(self.classes, elem_id="compare-class")
            count = gr.Slider(
                1, MAX_IMAGES, value=4, step=1, label="Images", elem_id="compare-count"
            )
            seed, lock = seed_controls("compare")
        with gr.Row():
            go = gr.Button("Compare", variant="primary", elem_id="compare-go")
            stop = gr.Button("Cancel", elem_id="compare-cancel")
        with gr.Row():
            sides = []
            for name, sampler in (("A", "official"), ("B", "halton")):
                with gr.Column(min_width=280):
                    gr.Markdown(f"### {name}")
                    controls = SamplerControls(
                        f"compare-{name}", self.engine.model.num_tokens, sampler=sampler
                    )
                    sides.append((name, controls, ResultView(f"compare-{name}")))
        middle = 1 + len(sides[0][1].names)

        def compare(label, count, seed, lock, *values):
            seed = next_seed(seed, lock)
            parts = values[:middle], values[middle:]
            with one_line_errors():
                settings = [s[1].settings(*part) for s, part in zip(sides, parts, strict=True)]
            yield sides[1][2].begin("")
            for (name, _, view), decoding in zip(sides, settings, strict=True):
                with one_line_errors():
                    job = self.job(label, count, seed, decoding)
                yield view.begin(job.asked.output) | {view.seed: seed}
                for picture, line, entry in self.run(job, f"{self.title(label)}, {name}", True):
                    yield view.update(picture, line, entry)
                if entry is None:  # cancelled, or its time is up
                    yield {side.line: line for _, _, side in sides}
                    break

        for _, _, view in sides:
            view.seed = seed
        inputs = [label, count, seed, lock, *sides[0][1].components, *sides[1][1].components]
        outputs = list(dict.fromkeys([*sides[0][2].outputs, *sides[1][2].outputs]))
        go.click(compare, inputs, outputs, api_name="compare", **JOB_EVENT)
        connect_cancel(stop, self.engine, *(view for _, _, view in sides))

    def _history_tab(self, blocks: gr.Blocks, tab: gr.Tab) -> None:
        folders = gr.State([])
        chosen = gr.State("")
        refresh = gr.Button("Refresh")
        gallery = gr.Gallery(
            label="Everything that was made, newest first", columns=6, height="auto",
            allow_preview=False, object_fit="contain", elem_id="history-gallery",
        )  # fmt: skip
        with gr.Column(visible=False) as details:
            images = gr.Gallery(label="Images", columns=4, elem_id="history-images", format="png")
            command = code_box()
            code = gr.Code(
                label="The same in Python", language="python", lines=1, max_lines=8, wrap_lines=True
            )
            api = gr.Button("How a program calls this page", elem_id="history-api")
            api.click(None, js=SHOW_API)
            download = gr.DownloadButton(
                "Download (images with metadata, settings)", elem_id="history-download"
            )

        def listed():
            entries = self.history.entries()
            shown = [(str(e.images[0]), f"{e.folder.name} {e.title}") for e in entries if e.images]
            return {
                gallery: shown,
                folders: [str(entry.folder) for entry in entries if entry.images],
            }

        def show(event: gr.SelectData, folders):
            with one_line_errors():
                entry = self.history.entry(folders[event.index])
            return {
                details: gr.update(visible=True),
                images: [str(path) for path in entry.images],
                command: entry.command,
                code: entry.python,
                download: str(self.history.download(entry)),
                chosen: str(entry.folder),
            }

        outputs = [gallery, folders]
        for event in (refresh.click, tab.select, blocks.load):
            event(listed, None, outputs, show_progress="hidden", api_name=False)
        gallery.select(
            show, [folders], [details, images, command, code, download, chosen], api_name=False
        )
