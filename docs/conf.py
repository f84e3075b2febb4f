"""Settings of the documentation: `sphinx-build -W docs docs/_build` (extra `docs`)."""

import sys
from pathlib import Path

import maskgit_pt

sys.path.insert(0, str(Path(__file__).parent))

project = "maskgit_pt"
version = release = maskgit_pt.__version__
extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx.ext.viewcode",
]
html_theme = "furo"
html_title = "maskgit_pt"
exclude_patterns = ["_build", "tensor_tables.md"]
myst_heading_anchors = 3
myst_enable_extensions = ["dollarmath"]

autodoc_member_order = "bysource"
autodoc_typehints = "signature"
# What the documentation does not need to import.
autodoc_mock_imports = ["jax", "flax", "optax", "torchvision", "torch_fidelity"]
napoleon_google_docstring = True


def setup(app) -> None:
    """Makes the page that comes from the code."""
    import tensor_tables

    tensor_tables.write(Path(__file__).parent / "tensor_tables.md")
