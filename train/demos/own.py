"""The demo on images of one's own: a trained model learns their classes (`train/configs/finetune.py`)."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch

from maskgit_pt import MaskGIT
from maskgit_pt.files import write_atomically
from maskgit_pt.pretrained import read_config
from maskgit_pt.progress import duration
from train import pages, settings
from train.data.tokens import TokenShards
from train.demos import pace, page, scores
from train.demos.settings import DemoSettings
from train.demos.stages import Command, Stages
from train.run import checkpoints, early_stop
from train.run.metrics import read_metrics

STEPS, GUIDANCE = 8, 2  # of a sample
_OF_A_CLASS = 8  # samples


class OwnPlan:
    """A fine-tuning from beginning to end: which commands.

    Args:
      asked: what was asked for; `data` is the folder of images.
      start: trained weights, a folder, a file or a hub id.
      folder: where everything goes.
      stages: what has been done there.
    """

    def __init__(self, asked: DemoSettings, start: str, folder: Path, stages: Stages):
        self.asked, self.start, self.folder, self.stages = asked, start, folder, stages
        self.run_folder, self.model = folder / "run", folder / "model"
        self.float32 = not torch.cuda.is_available() and not pace.bfloat16_units()

    def run(self) -> dict[str, Any]:
        """Does what has not been done yet; returns the report."""
        stages = self.stages
        size = stages.work("weights", self.look_at_weights)["image_size"]
        stages.commands("tokens", self.tokens(size))
        stages.commands("training", self.training(size), ["maskgit-plot", str(self.run_folder)])
        step = stages.work("best step", self.best)["step"]
        stages.commands("model", ["maskgit-export", str(self.run_folder), f"--step={step}", "--overwrite",
                                  f"--output={self.model}"])  # fmt: skip
        names = TokenShards.open(self.folder / "tokens").class_names
        stages.commands("samples", self.samples(names))
        report = self.report(names, step)
        write_atomically(
            self.folder / "report.json", (json.dumps(report, indent=2) + "\n").encode()
        )
        self.write_page(report, names)
        return report

    def look_at_weights(self) -> dict[str, int]:
        """Loads both networks once, to know that they fit, and for which images they are."""
        return {"image_size": MaskGIT.from_pretrained(self.start, self.asked.tokenizer).image_size}

    def tokens(self, image_size: int) -> Command:
        """The images as tokens."""
        return [
            "maskgit-tokenize", f"--images={self.asked.data}", f"--image_size={image_size}", "--crops=10",
            "--crop=random+flip", f"--tokenizer={self.asked.tokenizer}", f"--output={self.folder / 'tokens'}",
        ]  # fmt: skip

    def training(self, image_size: int) -> Command:
        """From the weights, until the held-out loss no longer falls."""
        flags = ["--config.precision=float32"] * self.float32
        flags += ["--config.compile=False", "--threads=1"] * (not torch.cuda.is_available())
        return [
            "maskgit-train", "--config=finetune", f"--output={self.run_folder}",
            f"--config.init_from={self.start}", f"--config.tokenizer={self.asked.tokenizer}",
            f"--config.data.tokens={self.folder / 'tokens'}", f"--config.image_size={image_size}",
            f"--config.seed={self.asked.seed}", *flags, *(f"--config.{s}" for s in self.asked.config),
        ]  # fmt: skip

    def best(self) -> dict[str, int]:
        """The step with the least held-out loss, or the last one."""
        best = early_stop.best_step(self.run_folder, settings.read(self.run_folder))
        return {"step": best or checkpoints.steps(self.run_folder)[-1]}

    def samples(self, names: list[str]) -> Command:
        """Some of every class of the folder."""
        known = read_config(self.model / "config.json")["class_names"]
        labels = ",".join(str(known.index(name)) for name in names)
        count = self.asked.num_samples or _OF_A_CLASS * len(names)
        return [
            "maskgit-sample", f"--model={self.model}", f"--tokenizer={self.asked.tokenizer}",
            f"--labels={labels}", f"--num_samples={count}", f"--steps={STEPS}", f"--guidance={GUIDANCE}",
            f"--seed={self.asked.seed}", f"--output={self.folder / 'samples'}",
        ]  # fmt: skip

    def report(self, names: list[str], step: int) -> dict[str, Any]:
        """All figures."""
        losses = {line["step"]: line["eval_loss"] for line in read_metrics(self.run_folder)
                  if "eval_loss" in line}  # fmt: skip
        return {
            "data": self.asked.data,
            "from": self.start,
            "classes": names,
            "exported_step": step,
            "held_out_loss": losses,
            "seconds": round(self.stages.seconds, 1),
        }

    def write_page(self, report: dict[str, Any], names: list[str]) -> None:
        """Writes index.html."""
        images, labels = scores.samples(self.folder)
        known = read_config(self.model / "config.json")["class_names"]
        text = pages.render(
            "own.html",
            report=report,
            rows=[(name, page.side_by_side(images[labels == known.index(name)])) for name in names],
            curves=page.url(self.run_folder / "curves.png"),
            zoom=max(1, page.ZOOMED // np.shape(images)[1]),
            total=duration(report["seconds"]),
            stages=self.stages.rows(),
        )  # fmt: skip
        write_atomically(self.folder / "index.html", text.encode())
