"""Tables and plots of sweeps, beside published numbers."""

import csv
import dataclasses
import io
import json
from pathlib import Path
from typing import Any

from maskgit_pt.decoding import resolve
from maskgit_pt.files import write_atomically
from train import pages
from train.evaluation.report import column_title, markdown, metric_name, protocol_text, value_text
from train.evaluation.samples import METRICS
from train.sweeps import findings
from train.sweeps.cells import CASE, describe, title
from train.sweeps.cells import value_text as setting_text
from train.sweeps.studies import published_curve
from train.sweeps.sweep import Sweep

OURS = "this model"
SUFFIXES = (".md", ".csv", ".json", ".png")  # of the files that `write` makes
_REPORT = "Besnier & Chen 2023"
_MOST_TICKS = 10  # one for each value; more would run into each other


@dataclasses.dataclass
class Row:
    """A line of the table: of a cell, or published."""

    who: str
    labels: dict[str, Any]
    metrics: dict[str, float]
    images_per_second: float | None = None
    settings: dict[str, Any] = dataclasses.field(default_factory=dict)
    source: str = ""


def rows(sweep: Sweep) -> list[Row]:
    """All lines, published ones after the cell of the same settings."""
    found = []
    published = sweep.published()
    for i, (cell, result) in enumerate(zip(sweep.cells, sweep.results, strict=True)):
        rate, metrics = result["images_per_second"], result["metrics"]
        found.append(Row(OURS, cell.labels, metrics, rate, cell.resolved | {"seed": cell.seed}))
        for record, number in published:
            if number == i:
                labels = {
                    k: v for k, v in cell.labels.items() if k not in ("step", "model", "seed")
                }
                source = "; ".join(filter(None, (record.source, record.note)))
                found.append(Row(record.who, labels, record.metrics, None, cell.resolved, source))
    return found


def is_sweep(path: Path) -> bool:
    """Whether a file was written from `to_json`."""
    try:
        return {"axes", "cells"} <= set(json.loads(path.read_bytes()))
    except (OSError, ValueError, TypeError, RecursionError):
        return False


def write(sweep: Sweep, folder: Path) -> str:
    """Writes NAME.md, NAME.csv, NAME.json and NAME.png; returns the Markdown.

    Raises:
      ImportError: matplotlib is missing.
    """
    text = to_markdown(sweep)
    texts = {".json": to_json(sweep), ".csv": to_csv(sweep), ".md": text}
    for suffix, content in texts.items():  # names of files may hold bytes that are no text
        path = folder / f"{sweep.name}{suffix}"
        write_atomically(path, content.encode("utf-8", "surrogateescape"))
    draw(sweep, folder / f"{sweep.name}.png")
    return text


def to_markdown(sweep: Sweep) -> str:
    """The table, what is behind the published numbers, what was found, and the protocol."""
    whole, sweep = sweep, sweep.over_seeds()
    lines = rows(sweep)
    notes = list(dict.fromkeys(row.source for row in lines if row.source))
    with_settings = CASE in sweep.axes or not sweep.axes
    head = ["", *map(title, sweep.axes), *map(column_title, sweep.metrics), "images/s"]
    head += ["settings"] if with_settings else []
    table = [head, ["---"] * len(head)]
    for row in lines:
        number = f" [{notes.index(row.source) + 1}]" if row.source else ""
        cells = [row.who + number]
        cells += [setting_text(row.labels[a]) if a in row.labels else "" for a in sweep.axes]
        cells += [_metric(row, name) for name in sweep.metrics]
        cells += ["" if row.images_per_second is None else f"{row.images_per_second:.3g}"]
        cells += [_settings(row)] if with_settings else []
        table.append(cells)
    parts = [f"# {_capital(sweep.title)}", markdown(table).rstrip()]
    if whole.seeds > 1:
        parts.append(f"Mean ± standard deviation over {whole.seeds} seeds.")
    parts += [f"[{i}] {note}" for i, note in enumerate(notes, 1)]
    parts += findings.as_markdown(findings.judge(whole))
    if not sweep.comparable:
        parts.append(
            "These metrics are not of Inception's features: no FID, and not to be held against published "
            "numbers."
        )
    elif not notes:
        parts.append("No published numbers are known for these settings.")
    parts.append(f"Protocol: {protocol_text(common_protocol(whole))}")
    return "\n\n".join(parts) + "\n"


def to_csv(sweep: Sweep) -> str:
    """A line a row of the table."""
    lines = rows(sweep)
    deviations = [name for name in sweep.results[0]["metrics"] if name.endswith("_std")]
    metrics = [*sweep.metrics, *deviations]
    settings = list(dict.fromkeys(name for row in lines for name in row.settings))
    settings = [name for name in settings if name not in sweep.axes]
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["who", *sweep.axes, *metrics, "images_per_second", *settings, "source"])
    for row in lines:
        values = [row.labels.get(axis, "") for axis in sweep.axes]
        values += [row.metrics.get(name, "") for name in metrics]
        values += ["" if row.images_per_second is None else row.images_per_second]
        values += [row.settings.get(name, "") for name in settings]
        writer.writerow([row.who, *values, row.source])
    return text.getvalue()


def to_json(sweep: Sweep) -> str:
    """Everything, with each cell's own protocol."""
    own = [
        {"labels": cell.labels, "settings": cell.resolved, "seed": cell.seed} | result
        for cell, result in zip(sweep.cells, sweep.results, strict=True)
    ]
    published = [
        dataclasses.asdict(record) | {"settings": resolve(record.settings)}
        for record, _ in sweep.published()
    ]
    document = {
        "name": sweep.name, "title": sweep.title, "axes": sweep.axes, "cells": own,
        "published": published, "findings": findings.as_json(findings.judge(sweep)),
        "protocol": common_protocol(sweep),
    }  # fmt: skip
    return json.dumps(document, indent=2, ensure_ascii=False) + "\n"


def common_protocol(sweep: Sweep) -> dict[str, Any]:
    """What is the same in all cells; the rest stands in the table."""
    first, *others = (result["protocol"] for result in sweep.results)
    for other in others:
        first = _same(first, other)
    return first


def _same(one: dict[str, Any], other: dict[str, Any]) -> dict[str, Any]:
    found = {}
    for key in one.keys() & other.keys():
        if isinstance(one[key], dict) and isinstance(other[key], dict):
            found[key] = _same(one[key], other[key])
        elif one[key] == other[key]:
            found[key] = one[key]
    return {key: found[key] for key in one if key in found}


def _metric(row: Row, name: str) -> str:
    if name not in row.metrics:
        return ""
    if row.source:  # as it was published
        return f"{row.metrics[name]:.2f}" if name == "fid" else f"{row.metrics[name]:g}"
    return value_text(name, row.metrics)


def _settings(row: Row) -> str:
    hidden = ("seed", *row.labels)
    return describe({k: v for k, v in row.settings.items() if k not in hidden})


def draw(sweep: Sweep, path: Path) -> None:
    """A panel for each metric over the first axis, a line for each combination of the others.

    Raises:
      ImportError: matplotlib is missing.
    """
    seeds, sweep = sweep.seeds, sweep.over_seeds()
    metrics = sweep.metrics
    figure, axes = pages.panels(len(metrics), 4.6, 3.4, margin=0.8)
    handles = {}
    for axis, metric in zip(axes, metrics, strict=True):
        _draw_panel(axis, sweep, metric)
        for handle, label in zip(*axis.get_legend_handles_labels(), strict=True):
            handles.setdefault(label, handle)
    handles = dict(sorted(handles.items(), key=lambda item: item[0].startswith("published")))
    if len(handles) > 1:
        figure.legend(
            handles.values(), handles.keys(), loc="outside lower center", ncols=min(4, len(handles)),
            fontsize="small", frameon=False,
        )  # fmt: skip
    first = sweep.results[0]["protocol"]
    count, size = first["samples"]["count"], first["samples"]["size"]
    features = first["features"]["name"]
    about = f"{count:,} samples a point, {size} px, features: {features}"
    about += "" if sweep.comparable else " (not FID)"
    about += f", mean and deviation of {seeds} seeds" if seeds > 1 else ""
    figure.suptitle(f"{_capital(sweep.title)}\n{about}", fontsize="medium")
    pages.save_figure(figure, path, dpi=120)


def _capital(text: str) -> str:
    return text[0].upper() + text[1:]


def _draw_panel(axis: Any, sweep: Sweep, metric: str) -> None:
    along = next(iter(sweep.axes), "")
    values = sweep.axes.get(along, [""])
    numeric = all(type(value) in (int, float) for value in values)
    place = {value: value if numeric else i for i, value in enumerate(values)}
    lines: dict[str, list[tuple[float, float, float]]] = {}
    for row in rows(sweep):
        if row.who == OURS:
            point = (place[row.labels.get(along, "")], row.metrics[metric],
                     row.metrics.get(f"{metric}_std", 0.0))  # fmt: skip
            lines.setdefault(_line(sweep, row.labels), []).append(point)
    colors = {name: f"C{i % 10}" for i, name in enumerate(lines)}
    for name, points in lines.items():
        x, y, deviation = zip(*sorted(points), strict=True)
        axis.errorbar(
            x, y, deviation if any(deviation) else None, fmt="o-" if numeric else "o", label=name,
            color=colors[name], markersize=4, linewidth=1.2, capsize=2, zorder=3,
        )  # fmt: skip
    if sweep.comparable:
        _draw_published(axis, sweep, metric, place, colors)
    else:
        _draw_beside(axis, sweep, metric, place, numeric)
    if numeric and len(values) <= _MOST_TICKS:
        axis.set_xticks(values, [setting_text(value) for value in values])
    elif numeric:
        axis.xaxis.set_major_formatter(lambda x, _: f"{x / 1000:g}k" if x >= 10_000 else f"{x:g}")
    else:
        axis.set_xticks(range(len(values)), [setting_text(value) for value in values])
        axis.margins(x=0.15)
        if max(len(setting_text(value)) for value in values) > 8:
            axis.tick_params(axis="x", rotation=20)
    better = "lower" if metric.endswith(("fid", "distance")) else "higher"
    axis.set_title(f"{column_title(metric)} ({better} is better)", fontsize="medium")
    axis.set_xlabel(title(along) if along != CASE else "")
    axis.grid(alpha=0.3)


def _draw_published(
    axis: Any, sweep: Sweep, metric: str, place: dict[Any, float], colors: dict[str, str]
) -> None:
    """Stars; a line across where the first axis is none of the published settings.

    Args:
      place: value of the first axis -> place.
      colors: of the lines by name; a star has its line's where there are several.
    """
    along = next(iter(sweep.axes), "")
    names = list(dict.fromkeys(record.who for record, _ in sweep.published()))
    for record, number in sweep.published():
        if metric not in record.metrics:
            continue
        label, value = f"published: {record.who}", record.metrics[metric]
        color = f"C{len(names) - names.index(record.who)}"
        labels = sweep.cells[number].labels
        if along in ("step", "model", "seed"):
            axis.axhline(value, color=color, linestyle="--", linewidth=1, label=label)
            continue
        if len(colors) > 1:
            color = colors[_line(sweep, labels)]
        axis.plot(place[labels.get(along, "")], value, "*", color=color, markersize=11, label=label,
                  alpha=0.7, zorder=2, markeredgecolor="black", markeredgewidth=0.5)  # fmt: skip


def _draw_beside(
    axis: Any, sweep: Sweep, metric: str, place: dict[Any, float], numeric: bool
) -> None:
    """The report's own values of a study, on an axis of their own: other images, other features."""
    extractor = sweep.results[0]["protocol"]["features"]["name"]
    names = {metric_name(name, extractor): name for name in METRICS}
    image_size, curve = max(
        ((size, published_curve(sweep.name, size)) for size in (256, 512)), key=lambda c: len(c[1])
    )
    points = {at: m[names[metric]] for at, m in curve.items() if names.get(metric) in m}
    points = {at: value for at, value in points.items() if numeric or at in place}
    if not points:
        return
    beside = axis.twinx()
    x = [at if numeric else place[at] for at in points]
    beside.plot(x, list(points.values()), "*--", color="C1", markersize=9, linewidth=0.8, alpha=0.7)
    beside.tick_params(axis="y", colors="C1", labelsize="x-small")
    beside.margins(y=0.3)
    label = f"published: {_REPORT}, ImageNet {image_size} px (right axis)"
    axis.plot([], [], "*--", color="C1", label=label)


def _line(sweep: Sweep, labels: dict[str, Any]) -> str:
    """The name of the line that a cell is on."""
    return describe({name: labels[name] for name in list(sweep.axes)[1:]}) or OURS
