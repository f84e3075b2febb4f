"""A whole comparison: loads both sides, runs every stage, prints the verdict, writes the report."""

import concurrent.futures
import contextlib
import dataclasses
import functools
import importlib.metadata
import multiprocessing
import os
import platform
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from parity import jax_code, official, plan, report, subjects
from parity.jax_code import JaxCode
from parity.plan import Options
from parity.stages import Result, Stage, run_stages, summary_line
from parity.subjects import Subject
from parity.training.plan import TokenizerTraining


@dataclasses.dataclass(frozen=True)
class Request:
    """What to compare.

    Attributes:
      files: Google-format files by kind, "transformer" and "tokenizer"; empty: seeded weights.
      size: of the seeded models, one of `subjects.SIZES`.
      official: a checkout of google-research/maskgit to compare with; None: the reference.
      image: a picture file for the tokenizer; None: the one among the tests.
      options: of the decoding runs.
      report: the folder for the report; None: no report.
      command: the command line, for the report.
    """

    files: dict[str, Path]
    size: str
    official: Path | None
    image: Path | None
    options: Options
    report: Path | None
    command: str


def run(request: Request) -> int:
    """Compares; 0 if all agree, 1 otherwise."""
    started = time.perf_counter()
    if request.report:
        request.report.mkdir(parents=True, exist_ok=True)  # not after minutes of work
    code = _load(request.official)
    with tempfile.TemporaryDirectory(prefix="maskgit_parity_") as folder:
        models = _subjects(request, code, Path(folder))
        with _beside(_train_tokenizer, request.official) as training:
            results = [_told(result) for result in run_stages(_stages(request, code, models))]
            results += map(_told, training())
    return _conclude(request, code, models, results, time.perf_counter() - started)


def _load(checkout: Path | None) -> JaxCode:
    return official.load(checkout) if checkout else jax_code.load_reference()


@contextlib.contextmanager
def _beside(function: Callable[..., Any], *arguments: Any) -> Iterator[Callable[[], Any]]:
    """Starts `function` in a process of its own, if there is a core for it; gives its result.

    Most of the time goes into compiling, which one process does on one core.
    """
    if os.cpu_count() == 1:
        yield functools.partial(function, *arguments)
        return
    context = multiprocessing.get_context("spawn")  # JAX's threads do not survive a fork
    with concurrent.futures.ProcessPoolExecutor(1, mp_context=context) as pool:
        yield pool.submit(function, *arguments).result


def _train_tokenizer(checkout: Path | None) -> list[Result]:
    """The stages of the tokenizer's training, which need no subject."""
    with tempfile.TemporaryDirectory(prefix="maskgit_parity_") as folder:
        training = TokenizerTraining(_load(checkout), Path(folder) / "images")
        return list(run_stages(training.stages()))


def _subjects(request: Request, code: JaxCode, folder: Path) -> list[Subject]:
    """What to compare: the small models always; after them the large ones, if any."""
    large = []
    if request.files:  # loaded first: a fault in a file shows at once
        large.append(subjects.from_files(code, request.files, folder))
    elif request.size != "tiny":
        large.append(subjects.seeded(code, request.size, folder))
    return [subjects.seeded(code, "tiny", folder), *large]


def _stages(request: Request, code: JaxCode, models: list[Subject]) -> list[Stage]:
    stages = plan.code_stages(code)
    for model in models:
        picture, _ = subjects.load_picture(request.image, model.config.image_size)
        stages += plan.subject_stages(model, picture, request.options)
    return stages


def _told(result: Result) -> Result:
    print(summary_line(result), flush=True)
    return result


def _conclude(
    request: Request, code: JaxCode, models: list[Subject], results: list[Result], seconds: float
) -> int:
    """Writes the report and prints the verdict."""
    if request.report:
        context = report.Context(
            other=code.title,
            notes=code.notes,
            command=request.command,
            facts=_facts(request, seconds),
            files=tuple(row for model in models for row in model.files),
            not_compared=plan.NOT_COMPARED,
        )
        report.write(request.report, results, context)
        print(f"report: {request.report / 'index.html'}")
    passed, sentence = report.verdict(results)
    for note in code.notes:
        print(f"note: {note}")
    print(f"compared with: {code.title}")
    print(f"{'PASS' if passed else 'FAIL'}: {sentence} ({seconds:.0f} s)")
    return 0 if passed else 1


def _facts(request: Request, seconds: float) -> tuple[tuple[str, str], ...]:
    return (
        *versions(),
        ("seeds", ", ".join(map(str, request.options.seeds))),
        ("samples a decoding run", str(request.options.batch_size)),
        ("picture", subjects.load_picture(request.image, 16)[1]),
        ("time", f"{seconds:.0f} s"),
    )


def versions() -> tuple[tuple[str, str], ...]:
    """Rows of name and value: versions of the packages, machine, date."""
    names = ("maskgit_pt", "torch", "jax", "jaxlib", "flax", "optax", "numpy")

    def version(name: str) -> str:
        try:
            return importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            return "not installed as a package"

    found = ", ".join(f"{name} {version(name)}" for name in names)
    return (
        ("versions", f"Python {platform.python_version()}, {found}"),
        ("machine", f"{platform.machine()}, {platform.system()}"),
        ("date", time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime())),
    )
