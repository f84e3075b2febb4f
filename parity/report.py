"""The report a person reads: one HTML page that needs nothing beside it, verdict first."""

import base64
import dataclasses
import html
import io
import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from maskgit_pt.files import write_atomically
from parity import report_figures
from parity.compare import Record
from parity.plan import Picture
from parity.report_style import STYLE
from parity.stages import Result, describe

_SHOWN_PIXELS = 256


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


def verdict(results: list[Result]) -> tuple[bool, str]:
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


def write(
    folder: str | Path,
    results: list[Result],
    pictures: list[Picture],
    context: Context,
    curves: Sequence[report_figures.Curve] = (),
) -> None:
    """Writes `folder`/index.html, whole or not at all."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    page = render(results, pictures, context, curves)
    write_atomically(folder / "index.html", page.encode("utf-8"))


def render(
    results: list[Result],
    pictures: list[Picture],
    context: Context,
    curves: Sequence[report_figures.Curve] = (),
) -> str:
    """The page."""
    passed, sentence = verdict(results)
    body = [
        f'<header class="{"pass" if passed else "fail"}"><p class="kicker">MaskGIT parity report</p>'
        f"<h1>{'PASS' if passed else 'FAIL'}</h1><p>{_e(sentence)}.</p>"
        f"<p class=other>maskgit_pt compared with: {_e(context.other)}</p></header>",
        _cards(results),
        "<h2>Stages</h2>",
        "<p>Each row shows the comparison nearest to its bound; open it for all of them. The "
        "relative error is relative to the largest magnitude in the array.</p>",
        _stage_table(results),
        _token_table(results),
        _control_table(results),
        report_figures.section(curves),
        _picture_section(pictures),
        _context_section(context),
    ]
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>MaskGIT parity: {'pass' if passed else 'FAIL'}</title>"
        f"<style>{STYLE}</style></head>\n<body><main>{''.join(body)}</main></body></html>\n"
    )


def _cards(results: list[Result]) -> str:
    records = [record for result in results for record in result.records if not record.control]

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

    tokens = [r for r in records if r.name.endswith("tokens of every step")]
    share = min((r.agreement or 0.0 for r in tokens), default=None)
    cards = [
        ("stages that agree", f"{sum(r.passed for r in results)} / {len(results)}"),
        ("largest logit difference, float32", largest(("logits",))),
        ("the same in float64", largest(("logits",), float32=False)),
        ("largest image difference, float32", largest(("images", "generation", "editing"))),
        ("tokens equal, worst decoding run", "-" if share is None else f"{share:.2%}"),
    ]
    inner = "".join(
        f"<div><b>{_e(value)}</b><span>{_e(name)}</span></div>" for name, value in cards
    )
    return f'<section class="cards">{inner}</section>'


def _stage_table(results: list[Result]) -> str:
    rows = []
    for result in results:
        worst = result.worst
        figures = ("", "", "", "")
        if worst is not None and not result.trouble:
            figures = (describe(result), "", "", "") if worst.control else _figures(worst)
        inner = "".join(_record_row(record) for record in result.records)
        detail = (
            f"<details><summary>{_e(result.title)}</summary>"
            f"<table class=records>{_RECORD_HEAD}{inner}</table></details>"
        )
        remark = "" if result.passed else f"<p class=why>{_e(describe(result))}</p>"
        cells = "".join(f"<td class=number>{_e(value)}</td>" for value in figures)
        rows.append(
            f"<tr><td>{_mark(result.passed)}</td><td class=section>{_e(result.section)}</td>"
            f"<td>{detail}{remark}</td><td class=number>{len(result.records)}</td>{cells}"
            f"<td class=number>{result.seconds:.1f} s</td></tr>"
        )
    head = "".join(
        f"<th>{name}</th>"
        for name in ("", "model", "stage", "compared", "max abs", "max rel", "bound", "at", "time")
    )
    return f'<div class=wide><table class="stages"><tr>{head}</tr>{"".join(rows)}</table></div>'


_RECORD_HEAD = (
    "<tr><th></th><th>what</th><th>max abs</th><th>max rel</th><th>bound</th><th>at</th>"
    "<th>remark</th></tr>"
)


def _record_row(record: Record) -> str:
    cells = "".join(f"<td class=number>{_e(value)}</td>" for value in _figures(record))
    name = f"<td>{_mark(record.passed)}</td><td>{_e(record.name)}</td>"
    return f"<tr>{name}{cells}<td>{_e(record.message)}</td></tr>"


def _figures(record: Record) -> tuple[str, str, str, str]:
    """Largest absolute and relative error, bound, place."""
    if record.max_abs is None:
        share = "" if record.agreement is None else f"{record.agreement:.2%} equal"
        where = "" if record.passed else _index(record.where)
        return (share, "", record.tolerance, where)
    where = _index(record.where)
    return (f"{record.max_abs:.2e}", f"{record.max_rel:.1e}", record.tolerance, where)


def _index(where: tuple[int, ...]) -> str:
    return ", ".join(map(str, where))


def _token_table(results: list[Result]) -> str:
    """Agreement for every decoding run: one row for each run and seed."""
    rows = []
    for result in results:
        for record in result.records:
            seed, _, what = record.name.partition(": ")
            if what != "tokens of every step":
                continue
            share = "-" if record.agreement is None else f"{record.agreement:.4%}"
            rows.append(
                f"<tr><td>{_mark(record.passed)}</td><td>{_e(result.section)}</td>"
                f"<td>{_e(result.title)}</td><td>{_e(seed)}</td>"
                f"<td class=number>{share}</td><td>{_e(record.message)}</td></tr>"
            )
    if not rows:
        return ""
    head = "".join(
        f"<th>{name}</th>" for name in ("", "model", "run", "seed", "tokens equal", "difference")
    )
    return (
        "<h2>Sampled tokens</h2><p>Share of equal tokens over all samples, steps and positions, with "
        "Gumbel temperature 4.5 and the random stream of the same JAX key.</p>"
        f"<div class=wide><table><tr>{head}</tr>{''.join(rows)}</table></div>"
    )


def _control_table(results: list[Result]) -> str:
    rows = []
    for result in results:
        for record in result.records:
            if record.control:
                found = _figures(record)[0]
                rows.append(
                    f"<tr><td>{_mark(record.passed)}</td><td>{_e(result.section)}</td>"
                    f"<td>{_e(record.name)}</td><td class=number>{_e(found)}</td>"
                    f"<td class=number>{_e(record.tolerance)}</td><td>{_e(record.message)}</td></tr>"
                )
    if not rows:
        return ""
    head = "".join(
        f"<th>{name}</th>" for name in ("", "model", "fault", "difference", "bound", "noticed by")
    )
    return (
        "<h2>Deliberate faults</h2><p>Each fault is put into the PyTorch port; the comparison it "
        "belongs to must fail, or it could not be trusted.</p>"
        f"<div class=wide><table><tr>{head}</tr>{''.join(rows)}</table></div>"
    )


def _picture_section(pictures: list[Picture]) -> str:
    if not pictures:
        return ""
    figures = "".join(_figure(picture) for picture in pictures)
    return (
        "<h2>Images</h2><p>Clipped to [0, 1]; the difference is the largest of the three channels, "
        "amplified as stated, black where there is none. Images above "
        f"{_SHOWN_PIXELS} pixels are shown smaller (differences by their maximum). Seeded weights "
        f"decode to textures, not to objects.</p><div class=pictures>{figures}</div>"
    )


def _figure(picture: Picture) -> str:
    difference = np.abs(np.float64(picture.ours) - np.float64(picture.theirs)).max(-1)
    largest = float(difference.max())
    factor = _amplification(largest)
    panels = [] if picture.original is None else [("original", _shrink(picture.original))]
    panels += [
        ("JAX", _shrink(picture.theirs)),
        ("PyTorch", _shrink(picture.ours)),
        (f"difference x {factor:.0e}", _shrink_by_maximum(difference)[..., None] * factor),
    ]
    cells = "".join(
        f'<div><img alt="{_e(name)}" src="{_png(pixels)}"><span>{_e(name)}</span></div>'
        for name, pixels in panels
    )
    caption = f"{picture.title}: largest difference {largest:.1e}"
    return f"<figure><figcaption>{_e(caption)}</figcaption><div class=row>{cells}</div></figure>"


def _amplification(largest: float) -> float:
    """The largest of 1, 2, 5, 10, 20, ... that keeps `largest` at 1 or below."""
    if not 0 < largest < 1:
        return 1.0
    power = 10.0 ** math.floor(-math.log10(largest))
    return next(power * digit for digit in (5, 2, 1) if power * digit * largest <= 1 or digit == 1)


def _shrink(image: np.ndarray) -> np.ndarray:
    """Averages blocks of pixels of [H, W, 3] until the side is at most 256."""
    step = max(1, image.shape[0] // _SHOWN_PIXELS)
    blocks = image.reshape(image.shape[0] // step, step, image.shape[1] // step, step, -1)
    return blocks.mean((1, 3))


def _shrink_by_maximum(values: np.ndarray) -> np.ndarray:
    step = max(1, values.shape[0] // _SHOWN_PIXELS)
    return values.reshape(values.shape[0] // step, step, values.shape[1] // step, step).max((1, 3))


def _png(image: np.ndarray) -> str:
    """[H, W, 1 or 3] in [0, 1] -> data URI."""
    pixels = np.uint8(np.round(255 * np.clip(np.nan_to_num(image), 0, 1)))
    buffer = io.BytesIO()
    Image.fromarray(pixels.squeeze()).save(buffer, "PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()


def _context_section(context: Context) -> str:
    facts = [("command", context.command), *context.facts]
    rows = "".join(f"<tr><th>{_e(name)}</th><td>{_e(value)}</td></tr>" for name, value in facts)
    parts = [f"<h2>How it was run</h2><table class=facts>{rows}</table>"]
    if context.files:
        files = "".join(
            f"<tr><td>{_e(what)}</td><td>{_e(path)}</td><td class=number>{parameters:,}</td>"
            f"<td class=hash>{_e(digest)}</td></tr>"
            for what, path, digest, parameters in context.files
        )
        head = "<tr><th>weights</th><th>file</th><th>parameters</th><th>sha256</th></tr>"
        parts.append(f"<div class=wide><table>{head}{files}</table></div>")
    if context.notes:
        notes = "".join(f"<li>{_e(note)}</li>" for note in context.notes)
        parts.append(f"<h3>Supplied to run the official code on today's JAX</h3><ul>{notes}</ul>")
    left_out = "".join(
        f"<tr><td>{_e(a)}</td><td>{_e(b)}</td></tr>" for a, b in context.not_compared
    )
    parts.append(
        "<h2>Not compared</h2><table class=facts><tr><th>what</th><th>why</th></tr>"
        f"{left_out}</table>"
    )
    return "".join(parts)


def _mark(passed: bool) -> str:
    return '<i class="ok">&#10003;</i>' if passed else '<i class="bad">&#10007;</i>'


def _e(text: object) -> str:
    return html.escape(str(text))
