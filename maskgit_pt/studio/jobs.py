"""What the tabs of the page ask for: jobs of `maskgit_pt.sample` into the history, and running them."""

import dataclasses
from collections.abc import Iterator
from typing import Any

import gradio as gr
from PIL import Image

from maskgit_pt import sample
from maskgit_pt.decoding import Settings
from maskgit_pt.model_settings import ModelSettings
from maskgit_pt.studio.engine import Cancelled, Engine
from maskgit_pt.studio.history import Entry, History
from maskgit_pt.studio.view import MAX_IMAGES


class Jobs:
    """Makes jobs and runs them.

    Args:
      engine: with the model.
      models: how the model was loaded; goes into the commands of the history.
      history: where everything is kept.
    """

    def __init__(self, engine: Engine, models: ModelSettings, history: History):
        self.engine, self.models, self.history = engine, models, history
        self.classes = engine.model.classes

    def job(
        self, label: int, count: float, seed: float, decoding: Settings, **asked: Any
    ) -> sample.Job:
        """Returns a job that writes into a new folder of the history."""
        if label is None:
            raise ValueError("no class is chosen")
        if not 1 <= int(count) <= MAX_IMAGES:
            raise ValueError(f"images is {count}; accepted: 1 to {MAX_IMAGES}")
        output = self.history.new_folder()
        models = dataclasses.replace(self.models, labels=str(label), seed=int(seed))
        settings = sample.SampleSettings(
            num_samples=int(count), output=str(output), npz=False, **asked
        )
        return sample.Job(models, decoding, settings)

    def title(self, label: int) -> str:
        """What an entry of this class is called."""
        return self.classes.title(label)

    def run(
        self, job: sample.Job, title: str, show_guesses: bool
    ) -> Iterator[tuple[Image.Image | None, str, Entry | None]]:
        """Runs a job; yields the picture if it is a new one, a line about it, and at the end the entry.

        Raises:
          gr.Error: with one line of what went wrong.
        """
        line, entry = "", None
        output = job.asked.output
        try:
            for update in self.engine.run(
                job,
                lambda frames: self.history.keep(job, title, frames),
                lambda: self.history.discard(output),
                show_guesses,
            ):
                if isinstance(update, Entry):
                    entry = update
                    continue
                line = (
                    f"{job.asked.num_samples / update.seconds:.2f} images/s, {update.seconds:.1f} s"
                )
                yield update.picture, f"step {update.step} of {update.steps}", None
        except Cancelled as reason:
            yield None, str(reason), None
            return
        except (ValueError, OSError) as error:
            raise gr.Error(
                " ".join(str(error).split()), duration=30, print_exception=False
            ) from None
        yield None, line, entry
