"""What reports are made of: HTML templates, images as text, and figures."""

import base64
import io
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from maskgit_pt.files import write_atomically


def render(
    template: str,
    packages: Sequence[str] = ("train",),
    filters: dict[str, Callable] | None = None,
    **values: Any,
) -> str:
    """A filled template; values are escaped in HTML, not in Markdown.

    Args:
      template: the name of a file in `templates/` of one of the packages, looked for in their order.
      packages: that hold templates.
      filters: for the template.
      **values: what the template names.

    Raises:
      ImportError: jinja2 is missing.
    """
    try:
        import jinja2
    except ImportError:
        raise ImportError(
            "jinja2 is not installed; it comes with the extras 'train' and 'jax': "
            "pip install 'maskgit_pt[train]'"
        ) from None
    environment = jinja2.Environment(
        loader=jinja2.ChoiceLoader([jinja2.PackageLoader(name) for name in packages]),
        autoescape=jinja2.select_autoescape(["html"]),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= filters or {}
    return environment.get_template(template).render(values)


def image_url(image: Image.Image | np.ndarray) -> str:
    """An image, or uint8 [H, W, 3], as the text of a `src`, losslessly."""
    if isinstance(image, np.ndarray):
        image = Image.fromarray(image)
    data = io.BytesIO()
    image.save(data, "PNG")
    return f"data:image/png;base64,{base64.b64encode(data.getvalue()).decode()}"


def panels(count: int, width: float, height: float, margin: float = 0.0) -> tuple[Any, list[Any]]:
    """A matplotlib figure and its panels, at most three in a row.

    Args:
      count: of the panels.
      width, height: of a panel, in inches.
      margin: height of the figure beyond its panels, for a title and a legend.

    Raises:
      ImportError: matplotlib is missing.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise ImportError(
            "matplotlib is not installed; it comes with the extra 'train': pip install 'maskgit_pt[train]'"
        ) from None
    columns = min(3, count)
    rows = -(-count // columns)
    figure = Figure(figsize=(width * columns, height * rows + margin), layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False).flatten().tolist()
    for axis in axes[count:]:
        axis.remove()
    return figure, axes[:count]


def save_figure(figure: Any, path: Path, dpi: int) -> None:
    """Writes a figure as a PNG file, whole or not at all."""
    data = io.BytesIO()
    figure.savefig(data, format="png", dpi=dpi)
    write_atomically(path, data.getvalue())
