"""What the tabs show of a job, and what they ask alike."""

import random
from pathlib import Path
from typing import Any

import gradio as gr
from PIL import Image

from maskgit_pt.studio import pictures
from maskgit_pt.studio.engine import Engine
from maskgit_pt.studio.history import Entry

MAX_IMAGES = 16  # of one job
# Options of an event that runs a job. Jobs wait for each other in the engine: there they can be cancelled.
JOB_EVENT: dict[str, Any] = {"concurrency_limit": None, "show_progress": "hidden"}


class ResultView:
    """Where a job is watched and its result stands: picture, scrubber, images, command."""

    def __init__(self, name: str):
        self.picture = gr.Image(
            label="Step by step",
            format="png",
            interactive=False,
            visible=False,
            buttons=["download", "fullscreen"],
            elem_id=f"{name}-picture",
        )
        self.line = gr.Textbox(label="Progress", interactive=False, elem_id=f"{name}-line")
        self.scrubber = gr.Slider(
            1, 2, value=1, step=1, label="Look at a step again", visible=False,
            elem_id=f"{name}-scrubber",
        )  # fmt: skip
        self.images = gr.Gallery(
            label="Images",
            columns=4,
            visible=False,
            format="png",
            height="auto",
            object_fit="contain",
            elem_id=f"{name}-images",
        )
        self.command = code_box(visible=False, elem_id=f"{name}-command")
        self.folder = gr.State("")
        self.seed: gr.Number | None = None
        self.scrubber.change(
            _frame, [self.folder, self.scrubber], self.picture, show_progress="hidden",
            api_name=False,
        )  # fmt: skip

    @property
    def outputs(self) -> list[Any]:
        """Everything that `begin` and `update` set."""
        own = [self.picture, self.line, self.scrubber, self.images, self.command, self.folder]
        return own if self.seed is None else [*own, self.seed]

    def begin(self, folder: str) -> dict[Any, Any]:
        """The values of `outputs` when the job that writes into `folder` begins."""
        hidden = gr.update(visible=False)
        return {
            self.picture: gr.update(value=None, visible=True),
            self.line: "waiting for the model",
            self.scrubber: hidden,
            self.images: hidden,
            self.command: hidden,
            self.folder: folder,
        }

    def update(self, picture: Image.Image | None, line: str, entry: Entry | None) -> dict[Any, Any]:
        """The values of `outputs` after a step, and with an entry at the end."""
        values: dict[Any, Any] = {self.line: line}
        if picture is not None:
            values[self.picture] = pictures.to_send(picture)
        if entry is not None:
            count = len(entry.steps)
            values |= {
                self.scrubber: gr.update(
                    minimum=1, maximum=max(count, 2), value=count, visible=count > 1
                ),
                self.images: gr.update(value=[str(path) for path in entry.images], visible=True),
                self.command: gr.update(value=entry.command, visible=True),
            }
        return values


def connect_cancel(button: gr.Button, engine: Engine, *views: ResultView) -> None:
    """Lets a button end the jobs of these views, whether they run or wait in line.

    The job itself then says so, as its last word. Gradio's own way, `cancels`, ends the event instead, and
    what the event had sent before may still arrive after "cancelled".
    """

    def cancel(*folders: str) -> None:
        for folder in filter(None, folders):
            engine.cancel(folder)

    button.click(
        cancel, [view.folder for view in views], None, queue=False, show_progress="hidden",
        api_name=False,
    )  # fmt: skip


def _frame(folder: str, step: float) -> Any:
    if not folder:
        return gr.update()
    path = Path(folder) / "steps" / f"{int(step) - 1:03d}.png"
    return str(path) if path.is_file() else gr.update()


def code_box(
    label: str = "The command that makes the same files", language: str = "shell", **options: Any
) -> gr.Code:
    """Shows a command or code, to be copied."""
    shape = {"lines": 1, "max_lines": 8, "wrap_lines": True}
    return gr.Code(label=label, language=language, **shape, **options)


def seed_controls(name: str) -> tuple[gr.Number, gr.Checkbox]:
    """A seed, and whether it stays for the next job."""
    seed = gr.Number(42, label="Seed", precision=0, minimum=0, elem_id=f"{name}-seed")
    return seed, gr.Checkbox(True, label="Keep this seed", elem_id=f"{name}-lock")


def next_seed(seed: float | None, lock: bool) -> int:
    """The seed of a job: as given, or a new one."""
    return int(seed or 0) if lock else random.randrange(2**31)


class one_line_errors:
    """Shows a ValueError or OSError on the page, in one line."""

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind, error, trace) -> None:
        if isinstance(error, ValueError | OSError):
            raise gr.Error(
                " ".join(str(error).split()), duration=30, print_exception=False
            ) from None
