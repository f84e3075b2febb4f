"""Command line: `maskgit-studio`, a page in the browser to generate and edit."""

import dataclasses
import os
import subprocess
import sys
from pathlib import Path

from absl import flags

from maskgit_pt import command_line
from maskgit_pt.command_line import UsageError
from maskgit_pt.model_settings import ModelSettings
from maskgit_pt.settings import define_flags, from_flags, setting

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
    page, notice = _import_page(), ""
    if asked.demo:
        folder = demo_model(Path(asked.output))
        models = dataclasses.replace(
            models, model=str(folder / "transformer"), tokenizer=str(folder / "tokenizer")
        )
        notice = "This is a small model of handwritten digits (8 x 8 pixels), for trying the page."
    serve(make_page(page, models, asked, notice), asked)
    return 0


def serve(made, asked: StudioSettings, **options):
    """Serves a page from `make_page`; returns it. `options` are further ones of Gradio's `launch`."""
    blocks = made.build()
    blocks.launch(
        server_name=os.environ.get("GRADIO_SERVER_NAME", asked.host),  # set on a Space
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


def make_page(page, models: ModelSettings, asked: StudioSettings, notice: str):
    """Loads the model; returns the page."""
    from maskgit_pt.studio.engine import Engine
    from maskgit_pt.studio.history import History

    device = models.pick_device()
    model = models.load(device)
    if models.compile:
        model.compile()
    engine = Engine(model, asked.time_limit)
    return page.Page(engine, models, History(Path(asked.output).resolve()), notice)


def demo_model(output: Path) -> Path:
    """Trains the digits by the project's own command, once; returns the folder with both networks."""
    folder = output / "demo"
    if not (folder / "report.json").is_file():
        print(
            f"Training a small model of handwritten digits into {folder}, a few minutes:",
            flush=True,
        )
        output.mkdir(parents=True, exist_ok=True)
        # -P: a folder `train` of the user's is not meant.
        command = [sys.executable, "-P", "-m", "train.digits", f"--output={folder}"]
        if subprocess.run(command).returncode:
            raise ValueError("the demo model could not be trained; see the message above")
    return folder


def _import_page():
    os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")
    try:
        from maskgit_pt.studio import page
    except ImportError as error:
        raise ImportError(
            f"{error.name} is missing; it comes with the extra 'demo': pip install 'maskgit_pt[demo]'"
        ) from None
    return page


def cli() -> int:
    """Entry point of `maskgit-studio`."""
    return command_line.run(main, FLAGS, PROGRAM, USAGE)


if __name__ == "__main__":
    sys.exit(cli())
