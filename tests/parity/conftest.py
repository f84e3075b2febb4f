"""Fixtures for the tests of packs."""

import json
import shutil
from pathlib import Path

import pytest
from safetensors.numpy import save_file

import convert
from parity.packs import models, pack

GOLDEN = Path(__file__).parents[1] / "golden" / "pack"


@pytest.fixture(scope="session")
def pack_folder(tmp_path_factory) -> Path:
    """The recorded pack with its weights, drawn again, in it."""
    folder = tmp_path_factory.mktemp("packs") / "pack"
    shutil.copytree(GOLDEN, folder)
    (folder / "weights").mkdir()
    opened = pack.read(folder)
    files = {}
    for kind in ("transformer", "tokenizer"):
        models.load(opened, kind).save_pretrained(folder.parent / kind)
        google = folder / "weights" / f"{kind}_checkpoint"
        convert.convert(folder.parent / kind, google, to="flax")
        plain = f"weights/{kind}.safetensors"
        save_file(convert.read_flat(google), folder / plain)
        files[plain] = pack.describe_file(folder / plain)
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["files"] |= files
    (folder / "manifest.json").write_text(json.dumps(manifest))
    return folder


@pytest.fixture(scope="session")
def opened(pack_folder):
    return pack.read(pack_folder)


@pytest.fixture(scope="session")
def networks_of_pack(opened):
    """Transformer and tokenizer of the pack."""
    return models.load(opened, "transformer"), models.load(opened, "tokenizer")
