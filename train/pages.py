"""HTML pages that need nothing beside them: templates, and images as text."""

import base64
import io
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from PIL import Image


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
