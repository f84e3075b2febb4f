"""The example notebook runs, with small networks, and is stored without outputs."""

import base64
import io
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient
from PIL import Image
from recorded import OFFICIAL

ROOT = Path(__file__).parent.parent
NOTEBOOK = ROOT / "examples" / "maskgit_demo.ipynb"
PHOTO = ROOT / "tests" / "golden" / "photo.jpg"
VARIABLES = ("MASKGIT_MODEL", "MASKGIT_TOKENIZER", "MASKGIT_PHOTO")
PICTURES = {  # cell id -> how many pictures it shows
    "generate": 1,
    "jax": 1,
    "samplers": 5,
    "guidance": 1,
    "steps": 1,
    "picture": 1,
    "edit": 1,
    "extend": 1,
    "reconstruct": 1,
}


@pytest.fixture(scope="module")
def run_notebook(tmp_path_factory):
    """Runs the notebook under the given variables, anew in one kernel; returns it with its outputs."""
    folder = str(tmp_path_factory.mktemp("jupyter"))
    with pytest.MonkeyPatch.context() as patch:
        for name in VARIABLES:
            patch.delenv(name, raising=False)
        patch.setenv("IPYTHONDIR", folder)
        patch.setenv("JUPYTER_RUNTIME_DIR", folder)
        patch.setenv("HF_HUB_OFFLINE", "1")
        resources = {"metadata": {"path": str(NOTEBOOK.parent)}}
        client = NotebookClient(
            nbformat.v4.new_notebook(), timeout=300, kernel_name="python3", resources=resources
        )

        def run(**variables: str) -> nbformat.NotebookNode:
            client.nb = notebook = nbformat.read(NOTEBOOK, as_version=4)
            fresh = f"%reset -f\nimport os\nos.environ.update({variables!r})"
            notebook.cells.insert(0, nbformat.v4.new_code_cell(fresh))
            client.reset_execution_trackers()
            for index, cell in enumerate(notebook.cells):
                client.execute_cell(cell, index)
            return notebook

        with client.setup_kernel():
            yield run


def pictures(notebook: nbformat.NotebookNode) -> dict[str, list[Image.Image]]:
    """The pictures that each cell shows; cells without any are left out."""
    found = {}
    for cell in notebook.cells:
        for output in cell.get("outputs", []):
            if "image/png" in output.get("data", {}):
                data = io.BytesIO(base64.b64decode(output.data["image/png"]))
                found.setdefault(cell.id, []).append(Image.open(data).convert("RGB"))
    return found


def text(notebook: nbformat.NotebookNode) -> str:
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    return "".join(output.text for output in outputs if output.output_type == "stream")


def check_pictures(notebook: nbformat.NotebookNode) -> None:
    shown = pictures(notebook)
    assert {cell: len(images) for cell, images in shown.items()} == PICTURES
    for cell, images in shown.items():
        for image in images:
            assert image.width >= 256, cell
            assert any(low < high for low, high in image.getextrema()), f"{cell}: one flat colour"


def test_stored_without_outputs():
    notebook = nbformat.read(NOTEBOOK, as_version=nbformat.NO_CONVERT)
    nbformat.validate(notebook)
    assert notebook.nbformat == 4
    assert notebook.metadata.kernelspec.name == "python3"
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert all(cell.outputs == [] and cell.execution_count is None for cell in code)


def test_runs_with_random_networks(run_notebook):
    notebook = run_notebook()
    check_pictures(notebook)
    assert "the pictures below are noise" in text(notebook)
    assert "90: lorikeet" in text(notebook)


def test_runs_with_files_of_google_and_a_photo(run_notebook):
    notebook = run_notebook(
        MASKGIT_MODEL=str(OFFICIAL / "tiny_transformer_checkpoint"),
        MASKGIT_TOKENIZER=str(OFFICIAL / "tiny_tokenizer_checkpoint"),
        MASKGIT_PHOTO=str(PHOTO),
    )
    check_pictures(notebook)
    assert "16 x 16 px, 4 x 4 tokens of 32 codes, 10 classes" in text(notebook)
    assert "noise" not in text(notebook)
    assert pictures(notebook)["picture"][0].size == Image.open(PHOTO).size
