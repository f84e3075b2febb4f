"""The report a person reads: one HTML page that needs nothing beside it, verdict first."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from maskgit_pt.files import write_atomically
from parity import report_figures
from parity.compare import Record
from parity.stages import Result, describe
from train import pages


@dataclasses.dataclass(frozen=True)
class Context:
    """What a reader needs to judge and repeat the run.

    Attributes:
      other: what the PyTorch port was compared with.
      notes: what was changed in it to run it.
      command: the command line.
      facts: rows of name and value: versions, machine, seeds, picture.
      files: rows of (what, path, sha256, parameters).
      not_compared: rows of what is left out and why.
    """

    other: str
    notes: tuple[str, ...]
    command: str
    facts: tuple[tuple[str, str], ...]
    files: tuple[tuple[str, str, str, int], ...]
    not_compared: tuple[tuple[str, str], ...]


def verdict(results: Sequence[Result]) -> tuple[bool, str]:
    """Whether everything agrees, and a sentence that says so."""
    records = [record for result in results for record in result.records]
    compared = sum(not record.control for record in records)
    controls = [record for record in records if record.control]
    failed = [result for result in results if not result.passed]
    if failed or not results:
        names = "; ".join(f"{r.section}: {r.title}" for r in failed[:4])
        more = f" and {len(failed) - 4} more" if len(failed) > 4 else ""
        return False, f"{len(failed)} of {len(results)} stages do not agree: {names}{more}"
    return True, (
        f"All {compared} comparisons in {len(results)} stages agree; "
        f"{len(controls)} of {len(controls)} deliberate faults were noticed"
    )


def write(folder: str | Path, results: Sequence[Result], context: Context) -> None:
    """Writes `folder`/index.html, whole or not at all."""
    passed, sentence = verdict(results)
    records = [(result, record) for result in results for record in result.records]
    write_page(
        folder,
        "report.html",
        passed=passed,
        sentence=sentence,
        results=results,
        context=context,
        cards=_cards(results),
        decoding=[pair for pair in records if pair[1].name.endswith(": tokens of every step")],
        controls=[pair for pair in records if pair[1].control],
        plots=[report_figures.plot(curve) for result in results for curve in result.curves],
        pictures=[report_figures.panels(one) for result in results for one in result.pictures],
        shown_pixels=report_figures.SHOWN_PIXELS,
    )


def write_page(folder: str | Path, template: str, **values: Any) -> None:
    """Fills a template of parity/templates, with all values escaped, as `folder`/index.html.

    Args:
      folder: made if it is missing.
      template: the file's name. `page.html` is the frame and asks for `passed` and `sentence`;
        `tables.html` and `figures.html` hold macros for results, images and curves.
      **values: what the template names.
    """
    page = render(template, **values)
    Path(folder).mkdir(parents=True, exist_ok=True)
    write_atomically(Path(folder) / "index.html", page.encode("utf-8"))


def render(template: str, **values: Any) -> str:
    """A filled template of parity/templates; values are escaped in HTML, not in Markdown."""
    filters = {
        "capitalize_first": lambda text: text[:1].upper() + text[1:],
        "describe": describe,
        "figures": _figures,
        "worst_figures": _worst_figures,
    }
    return pages.render(template, ("parity", "train"), filters, **values)


def _cards(results: Sequence[Result]) -> list[tuple[str, str]]:
    def largest(names: tuple[str, ...], float32: bool = True) -> str:
        found = [
            record.max_abs
            for result in results
            for record in result.records
            if record.max_abs is not None
            and not record.control
            and record.name.startswith(names)
            and ("float64" in result.title) != float32
        ]
        return f"{max(found):.1e}" if found else "-"

    records = [record for result in results for record in result.records]
    tokens = [r for r in records if r.name.endswith("tokens of every step") and not r.control]
    share = min((r.agreement or 0.0 for r in tokens), default=None)
    return [
        ("stages that agree", f"{sum(r.passed for r in results)} / {len(results)}"),
        ("largest logit difference, float32", largest(("logits",))),
        ("the same in float64", largest(("logits",), float32=False)),
        ("largest image difference, float32", largest(("images", "generation", "editing"))),
        ("tokens equal, worst decoding run", "-" if share is None else f"{share:.2%}"),
    ]


def _worst_figures(result: Result) -> tuple[str, str, str, str]:
    """The figures of the comparison nearest to its bound; of faults, how many were noticed."""
    if result.worst is None or result.trouble:
        return ("", "", "", "")
    return (describe(result), "", "", "") if result.worst.control else _figures(result.worst)


def _figures(record: Record) -> tuple[str, str, str, str]:
    """Largest absolute and relative error, bound, place."""
    where = ", ".join(map(str, record.where))
    if record.max_abs is None:
        share = "" if record.agreement is None else f"{record.agreement:.2%} equal"
        return (share, "", record.tolerance, "" if record.passed else where)
    return (f"{record.max_abs:.2e}", f"{record.max_rel:.1e}", record.tolerance, where)
