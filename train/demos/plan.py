"""The demo from beginning to end: which commands, with how many steps."""

import json
from pathlib import Path
from typing import Any

from maskgit_pt.files import write_atomically
from maskgit_pt.progress import duration
from train import pages
from train.demos import pace, page, scores
from train.demos.images import DATA_SETS, Part, write_tar
from train.demos.settings import DemoSettings
from train.demos.stages import Command, Stages, spread
from train.evaluation import manifold

_NUM_SAMPLES = {"digits": 1000}
_DEFAULT_SAMPLES = 2000
_SHOWN_STEPS = 3  # images whose steps are drawn
# Naeem et al. 2020: the fewest for which equal distributions cover more than 95 % of each other, 1 - 2^-k.
_NEIGHBOURS = 5


class Plan:
    """One demo.

    Args:
      settings: what was asked for.
      folder: where everything goes.
      stages: what has been done there.
    """

    def __init__(self, settings: DemoSettings, folder: Path, stages: Stages):
        self.settings, self.folder, self.stages = settings, folder, stages
        self.data = DATA_SETS[settings.data]
        # As readers of the tar files number them.
        self.class_names = tuple(sorted(self.data.class_names))
        self.num_samples = settings.num_samples or _NUM_SAMPLES.get(settings.data, _DEFAULT_SAMPLES)
        self.tokenizer_recipe, self.recipe = (
            pace.recipe(name) for name in (self.data.tokenizer_recipe, self.data.recipe)
        )
        sizes = (self.tokenizer_recipe.batch_size, self.recipe.batch_size)
        self.processes = settings.processes or pace.processes_for(sizes)
        wanted = [recipe.precision for recipe in (self.tokenizer_recipe, self.recipe)]
        self.float32 = "bfloat16" in wanted and not pace.bfloat16_units()
        self.parts: dict[str, Part] | None = None

    def run(self) -> dict[str, Any]:
        """Does what has not been done yet; returns the report."""
        stages = self.stages
        if self.float32:
            print("this CPU has no bfloat16 units: training in float32", flush=True)
        counts = stages.work("images", self.write_images)
        stages.commands("classifier", self.classifier())
        steps = self.steps_of_recipes()
        if self.settings.minutes is not None:
            stages.commands("rate", *self.measurement())
            steps["tokenizer"] = stages.work(
                "steps of the tokenizer", lambda: self.fitting(counts)
            )["steps"]
        stages.commands("tokenizer", *self.tokenizer(steps["tokenizer"]))
        stages.commands("tokens", self.tokens())
        if self.settings.minutes is not None:
            again = stages.work("steps of the transformer", lambda: self.remaining(counts))
            steps["transformer"] = again["steps"]
        stages.commands("transformer", *self.transformer(steps["transformer"]))
        stages.commands("samples", *self.samples())
        stages.commands("scores", *self.evaluations())
        distances = stages.work("neighbours", self.neighbours)
        report = self.report(counts, distances)
        write_atomically(
            self.folder / "report.json", (json.dumps(report, indent=2) + "\n").encode()
        )
        self.write_page(report)
        return report

    def load(self) -> dict[str, Part]:
        """The parts of the data set."""
        if self.parts is None:
            asked = self.settings
            self.parts = self.data.load(asked.files, asked.download, asked.seed)
            if asked.few:
                self.parts = {name: part.few(asked.few) for name, part in self.parts.items()}
        return self.parts

    def write_images(self) -> dict[str, Any]:
        """Writes a tar file for each part; returns how many images each has."""
        parts = self.load()
        (self.folder / "images").mkdir(exist_ok=True)
        for name, part in parts.items():
            write_tar(self.tar(name), part, self.data.class_names)
            print(f"{self.tar(name)}: {len(part.labels)} images", flush=True)
        return {name: len(part.labels) for name, part in parts.items()}

    def tar(self, part: str) -> Path:
        """The tar file of a part."""
        return self.folder / "images" / f"{part}.tar"

    @property
    def seed(self) -> str:
        """The flag of training commands."""
        return f"--config.seed={self.settings.seed}"

    def classifier(self) -> Command:
        """What judges the samples."""
        flip = ["--flip"] if self.data.flip else []
        return [
            "maskgit-classifier", f"--images={self.tar('train')}", f"--test={self.tar('test')}",
            f"--output={self.folder / 'classifier'}", "--overwrite", "--threads=1", *flip,
            f"--num_train_steps={self.settings.classifier_steps}", f"--seed={self.settings.seed}",
        ]  # fmt: skip

    def train(self, recipe: str, output: Path, *flags: str) -> Command:
        """A training command, without what belongs to one stage."""
        precision = ["--config.precision=float32"] if self.float32 else []
        command = ["maskgit-train", f"--config={recipe}", f"--output={output}", *precision, *flags]
        return spread([*command, self.seed, "--threads=1"], self.processes)

    def train_tokenizer(self, output: Path, *flags: str) -> Command:
        """Stage 1."""
        images = f"--config.data.images={self.tar(self.data.training_part)}"
        changed = [f"--config.{setting}" for setting in self.settings.tokenizer_config]
        return self.train(
            self.data.tokenizer_recipe,
            output,
            images,
            "--config.eval_features=off",
            *flags,
            *changed,
        )

    def train_transformer(self, output: Path, tokens: Path, *flags: str) -> Command:
        """Stage 2."""
        changed = [f"--config.{setting}" for setting in self.settings.config]
        return self.train(
            self.data.recipe, output, f"--config.data.tokens={tokens}", *flags, *changed
        )

    def tokenizer(self, steps: int) -> list[Command]:
        """Trains it, takes it out, draws its curves."""
        run, output = self.folder / "tokenizer_run", self.folder / "tokenizer"
        return [
            self.train_tokenizer(run, *pace.shortened(self.tokenizer_recipe, steps)),
            ["maskgit-export", str(run), "--overwrite", f"--output={output}"],
            ["maskgit-plot", str(run)],
        ]

    def tokens(self) -> Command:
        """The training images as tokens."""
        return [
            "maskgit-tokenize", f"--images={self.tar('train')}", "--crops=1", "--crop=center",
            f"--image_size={self.recipe.image_size}", f"--tokenizer={self.folder / 'tokenizer'}",
            f"--output={self.folder / 'tokens'}",
        ]  # fmt: skip

    def transformer(self, steps: int) -> list[Command]:
        """Trains it, takes it out, draws its curves."""
        run, output = self.folder / "transformer_run", self.folder / "transformer"
        tokenizer = f"--config.tokenizer={self.folder / 'tokenizer'}"
        flags = pace.shortened(self.recipe, steps)
        return [
            self.train_transformer(run, self.folder / "tokens", tokenizer, *flags),
            ["maskgit-export", str(run), "--overwrite", f"--output={output}"],
            ["maskgit-plot", str(run)],
        ]

    def samples(self) -> list[Command]:
        """Those that are scored, and a few with their steps."""
        settings = [f"--{name}={value}" for name, value in sorted(self.recipe.sampling.items())]
        settings += [f"--seed={self.settings.seed}"]
        settings += [f"--{kind}={self.folder / name}" for kind, name in (
            ("model", "transformer"), ("tokenizer", "tokenizer"))]  # fmt: skip
        labels = f"--labels=0-{len(self.class_names) - 1}"
        several = ["maskgit-sample", *settings, labels, f"--num_samples={self.num_samples}",
                   f"--output={self.folder / 'samples'}", "--threads=1"]  # fmt: skip
        with_steps = ["maskgit-sample", *settings, "--labels=1,5,8", f"--num_samples={_SHOWN_STEPS}",
                      f"--output={self.folder / 'steps'}", "--show_steps", "--threads=1"]  # fmt: skip
        return [spread(several, self.processes), with_steps]

    def evaluations(self) -> list[Command]:
        """Scores of the samples, their floor, and the tokenizer's."""

        def evaluate(name: str, *flags: str) -> Command:
            features = f"--features=classifier:{self.folder / 'classifier'}"
            output = f"--output={self.folder / 'scores' / name}"
            return ["maskgit-evaluate", *flags, features, f"--name={name}", output, "--cache="]

        def compare(name: str, images: Path, count: int) -> list[Command]:
            """With all test images; the overlap, which hangs on the numbers of both, with as many."""
            flags = [
                f"--samples={images}",
                f"--num_samples={count}",
                f"--reference={self.tar('test')}",
            ]
            overlap = evaluate(
                f"{name}_overlap", *flags, f"--num_reference={min(count, counts['test'])}",
                f"--metrics={','.join(manifold.METRICS)}", f"--neighbours={_NEIGHBOURS}",
            )  # fmt: skip
            return [evaluate(name, *flags, f"--metrics={','.join(scores.METRICS)}"), overlap]

        counts = self.stages.done["images"]["noted"]
        generated = self.folder / "samples" / "samples.npz"
        return [
            *compare("generated", generated, self.num_samples),
            *compare("floor", self.tar("train"), min(self.num_samples, counts["train"])),
            evaluate("tokenizer", f"--tokenizer={self.folder / 'tokenizer'}", f"--images={self.tar('test')}",
                     f"--image_size={self.recipe.image_size}"),
        ]  # fmt: skip

    def neighbours(self) -> dict[str, Any]:
        """How near samples come to training images."""
        train, test = (self.load()[name].images for name in ("train", "test"))
        return scores.neighbours(self.folder, train, test)

    def report(self, counts: dict[str, int], distances: dict[str, Any]) -> dict[str, Any]:
        """All figures."""
        found = scores.collect(self.folder, len(self.class_names))
        about = {"data": self.settings.data, "images": counts, "seed": self.settings.seed}
        about |= {"minutes": self.settings.minutes, "processes": self.processes}
        about |= {"trained_in": "float32" if self.float32 else self.recipe.precision}
        return about | found | distances | {"seconds": round(self.stages.seconds, 1)}

    # How many steps.

    def write_page(self, report: dict[str, Any]) -> None:
        """Writes index.html.

        Raises:
          ImportError: jinja2 is missing.
        """
        folder, names = self.folder, self.class_names
        images, labels = scores.samples(folder)
        text = pages.render(
            "demo.html",
            data=self.data,
            report=report,
            class_names=names,
            float32=self.float32,
            zoom=max(1, page.ZOOMED // images.shape[1]),
            rows=[page.side_by_side(images[labels == c][:page.COLUMNS]) for c in range(len(names))],
            strips=[page.url(path) for path in sorted((folder / "steps").glob("*_steps.png"))],
            neighbours=page.neighbours(images, labels, names, self.load()["train"].images),
            curves=[(name, page.url(folder / f"{name}_run" / "curves.png"))
                    for name in ("tokenizer", "transformer")],
            scores=[(title, note, report[key], report[f"{key}_of_training_images"])
                    for key, title, note in page.SCORES],
            total=duration(report["seconds"]),
            stages=self.stages.rows(),
        )  # fmt: skip
        write_atomically(folder / "index.html", text.encode())

    def steps_of_recipes(self) -> dict[str, int]:
        """As the recipes have them."""
        return {
            "tokenizer": self.tokenizer_recipe.num_train_steps,
            "transformer": self.recipe.num_train_steps,
        }

    def measurement(self) -> list[Command]:
        """A few steps of each stage; the second one's on tokens of noise."""
        rate, recipe = self.folder / "rate", self.tokenizer_recipe
        patch = 2 ** (len(recipe.vqvae.channel_multipliers) - 1)
        tokens, side = rate / "tokens", recipe.image_size // patch
        codes = recipe.vqvae.codebook_size
        pace.write_random_tokens(tokens, side, codes, self.class_names, recipe.image_size)
        every = pace.MEASURED_STEPS
        flags = [f"--config.num_train_steps={2 * every}", f"--config.log_every_steps={every}",
                 "--config.eval_every_steps=0"]  # fmt: skip
        return [
            self.train_tokenizer(rate / "tokenizer", *flags),
            self.train_transformer(rate / "transformer", tokens, *flags),
        ]

    def rates(self) -> pace.Rates:
        """As they were measured."""
        rate = self.folder / "rate"
        return pace.Rates(pace.rate_of(rate / "tokenizer"), pace.rate_of(rate / "transformer"))

    def work(self) -> dict[str, float]:
        """Seconds of each stage, with its recipe's steps."""
        rates, steps = self.rates(), self.steps_of_recipes()
        return {
            "tokenizer": steps["tokenizer"] * self.tokenizer_recipe.batch_size / rates.tokenizer,
            "transformer": steps["transformer"] * self.recipe.batch_size / rates.transformer,
        }

    def left(self, counts: dict[str, int], after_tokens: bool) -> float:
        """Seconds that are left for training."""
        passes = self.recipe.sampling.steps * (2 if self.recipe.sampling.guidance else 1)
        train = 0 if after_tokens else counts["train"]
        sizes = pace.Sizes(train, counts["test"], self.num_samples, passes)
        return self.settings.minutes * 60 - self.stages.seconds - sizes.seconds(self.rates())

    def fitting(self, counts: dict[str, int]) -> dict[str, Any]:
        """The tokenizer's steps, if both recipes are stretched alike."""
        work = self.work()
        by = pace.stretch(self.left(counts, after_tokens=False), work)
        return self._told("tokenizer", by)

    def remaining(self, counts: dict[str, int]) -> dict[str, Any]:
        """The transformer's steps, in the time that is left by now."""
        work = {"transformer": self.work()["transformer"]}
        by = pace.stretch(self.left(counts, after_tokens=True), work)
        return self._told("transformer", by)

    def _told(self, stage: str, by: float) -> dict[str, Any]:
        wanted = self.steps_of_recipes()[stage]
        steps = max(pace.FEWEST_STEPS, int(wanted * by))
        few = "; too few to learn much: give it more --minutes" if by < 0.2 else ""
        print(f"{stage}: {steps} steps, {by:.2g} times the recipe's{few}", flush=True)
        return {"steps": steps}
