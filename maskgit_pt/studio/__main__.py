"""Command line: `maskgit-studio`, a page in the browser to generate and edit."""

import contextlib
import dataclasses
import importlib.util
import os
import sys
from pathlib import Path

from absl import flags

from maskgit_pt import command_line
from maskgit_pt.command_line import UsageError
from maskgit_pt.model_settings import ModelSettings
from maskgit_pt.settings import define_flags, from_flags, setting
from maskgit_pt.studio import demo

PROGRAM = "maskgit-studio"
USAGE = """\
Serves a page to generate images, to paint on photos, and to compare samplers.

  maskgit-studio --model=maskgit256 --tokenizer=tokenizer256
  maskgit-studio --demo

--demo needs no weights: it trains a small model of handwritten digits first, in a few minutes, and keeps it.
Everything that is made stands in --output, each entry with the command that makes the same files."""


@dataclasses.dataclass(frozen=True)
class StudioSettings:
    """What this program asks besides `ModelSettings`."""

    demo: bool = setting(False, "Train or load a small model of handwritten digits.")
    output: str = setting("studio", "Folder for everything that is made.")
    host: str = setting(
        "127.0.0.1",
        "Address to listen on. 0.0.0.0 lets others on the network in, who can then use this machine.",
    )
    port: int | None = setting(None, "Default: the first free one from 7860 on.", least=1)
    share: bool = setting(False, "Also a public address, through Gradio's servers.")
    time_limit: int = setting(600, "Seconds that one job may take.", least=1)
    open_browser: bool = setting(False, "Open the page in a browser.")


FLAGS = flags.FlagValues()
define_flags(ModelSettings, FLAGS, without=("labels", "seed"))
define_flags(StudioSettings, FLAGS)


def main() -> int:
    """Serves the page until it is interrupted."""
    asked = from_flags(StudioSettings, FLAGS)
    models = from_flags(ModelSettings, FLAGS, labels=None, seed=42)
    if asked.demo == bool(models.model):
        raise UsageError("one of --model and --demo is needed")
    _check_gradio()
    notice = ""
    if asked.demo:
        asked = dataclasses.replace(asked, port=asked.port or demo.free_port(_host(asked)))
        folder = demo.model(Path(asked.output), _host(asked), asked.port)
        models = dataclasses.replace(
            models, model=str(folder / "transformer"), tokenizer=str(folder / "tokenizer")
        )
        notice = "This is a small model of handwritten digits (8 x 8 pixels), for trying the page."
    serve(make_page(models, asked, notice), asked)
    return 0


def serve(made, asked: StudioSettings, **options):
    """Serves a page from `make_page`; returns it. `options` are further ones of Gradio's `launch`."""
    blocks = made.build()
    _import_matplotlib()
    blocks.launch(
        server_name=_host(asked),
        server_port=asked.port,
        share=asked.share,
        inbrowser=asked.open_browser,
        max_file_size="50mb",
        allowed_paths=[str(Path(asked.output).resolve())],
        head=f"<style>{made.css}</style>",
        ssr_mode=False,
        footer_links=["api"],
        show_error=True,
        **options,
    )
    return blocks


def _import_matplotlib() -> None:
    """Where it is installed, Gradio does so in the first event, and for a second answers nobody."""
    os.environ.setdefault("MPLBACKEND", "agg")  # else it looks for a screen, which takes longest
    with contextlib.suppress(ImportError):
        importlib.import_module("matplotlib")


def _host(asked: StudioSettings) -> str:
    return os.environ.get("GRADIO_SERVER_NAME", asked.host)  # set on a Space


def make_page(models: ModelSettings, asked: StudioSettings, notice: str):
    """Loads the model; returns the page."""
    from maskgit_pt.studio import page
    from maskgit_pt.studio.engine import Engine
    from maskgit_pt.studio.history import History

    device = models.pick_device()
    model = models.load(device)
    if models.compile:
        model.compile()
    engine = Engine(model, asked.time_limit)
    return page.Page(engine, models, History(Path(asked.output).resolve()), notice)


def _check_gradio() -> None:
    """Raises ImportError, which says what to install, if Gradio is missing."""
    os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")
    if importlib.util.find_spec("gradio") is None:
        raise ImportError(
            "gradio is missing; it comes with the extra 'demo': pip install 'maskgit_pt[demo]'"
        )


def cli() -> int:
    """Entry point of `maskgit-studio`."""
    return command_line.run(main, FLAGS, PROGRAM, USAGE)


if __name__ == "__main__":
    sys.exit(cli())
