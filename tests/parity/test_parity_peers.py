"""Measuring other implementations: adapters, verdicts, and the page about them."""

import sys
from pathlib import Path
from types import SimpleNamespace
from unittest import mock

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from maskgit_pt.nets import maskgit_transformer
from parity.packs import models, pack
from parity.peers import adapters, command, measure
from parity.peers.adapters import Peer

PACK = Path(__file__).parents[1] / "golden" / "pack"


@pytest.fixture(scope="module")
def networks():
    opened = pack.read(PACK)
    return {kind: models.load(opened, kind) for kind in ("transformer", "tokenizer")}


def transformer(networks, gelu=None):
    def logits(ids):
        with mock.patch.object(maskgit_transformer, "gelu", gelu or maskgit_transformer.gelu):
            with torch.no_grad():
                return networks["transformer"](torch.from_numpy(ids))

    return SimpleNamespace(logits=logits)


def tokenizer(networks, shift=0.0):
    def decode(indices):
        with torch.no_grad():
            return networks["tokenizer"].decode_from_indices(torch.from_numpy(indices)) + shift

    def encode(images):
        with torch.no_grad():
            return (networks["tokenizer"].encode_to_indices(torch.from_numpy(images)),)

    return SimpleNamespace(encode=encode, decode=decode)


def broken(*_):
    raise RuntimeError("no such <thing>")


@pytest.fixture
def checkouts(tmp_path, networks, monkeypatch):
    """Implementations that are ours, with and without a mistake, in the place of others'."""

    def peer(name, kind, build):
        (tmp_path / "checkouts" / name).mkdir(parents=True)
        return Peer(name, kind, "hmorimitsu", lambda *_: build(), "a fake one")

    peers = [
        peer("a/sound", "transformer", lambda: transformer(networks)),
        peer("b/erf", "transformer", lambda: transformer(networks, F.gelu)),
        peer("c/sound", "tokenizer", lambda: tokenizer(networks)),
        peer("d/shifted", "tokenizer", lambda: tokenizer(networks, 0.02)),
        peer("e/broken", "tokenizer", broken),
        Peer("f/missing", "tokenizer", "hmorimitsu", broken, "nowhere"),
    ]
    monkeypatch.setattr(measure, "PEERS", peers)
    return tmp_path / "checkouts"


def test_verdicts_causes_and_the_page(checkouts, tmp_path, capsys):
    page = tmp_path / "new" / "ports.md"
    arguments = [f"--checkouts={checkouts}", f"--pack={PACK}", f"--output={page}", "--images=2"]
    assert command.run(arguments) == 0
    lines = capsys.readouterr().out.splitlines()
    found = dict(line.split(": ", 1) for line in lines if "/" in line and ", t" in line)
    assert found["a/sound, transformer"] == found["c/sound, tokenizer"] == "agrees"
    assert found["b/erf, transformer"] == found["d/shifted, tokenizer"] == "differs"
    assert "no such <thing>" in found["e/broken, tokenizer"]
    assert found["f/missing, tokenizer"] == "not run: no checkout was given"
    text = page.read_text()
    assert "GELU in its erf form" in text and "no such <thing>" in text
    rows = [line.split("|") for line in text.splitlines() if line.startswith("| [")]
    table = {row[1].split("]")[0].strip(" ["): (row[3].strip(), row[4].strip()) for row in rows}
    assert table["a/sound"] == table["c/sound"] == ("agrees", "2 of 2")
    assert table["d/shifted"] == ("**differs**", "0 of 2")
    assert table["e/broken"] == table["f/missing"] == ("not run", "")


def test_a_checkout_is_imported_without_a_trace(tmp_path, monkeypatch):
    folder = tmp_path / "theirs" / "nets"
    folder.mkdir(parents=True)
    (tmp_path / "theirs" / "__init__.py").write_text("raise ImportError('not needed')\n")
    (folder / "one.py").write_text("from theirs.nets import two\nVALUE = two.VALUE + 1\n")
    (folder / "two.py").write_text("VALUE = 1\n")
    mine = type(sys)("theirs")
    monkeypatch.setitem(sys.modules, "theirs", mine)
    before = list(sys.path)
    with adapters._importing(tmp_path, "theirs", "theirs.nets") as load:
        assert load("theirs.nets.one").VALUE == 2
    assert sys.path == before and sys.modules["theirs"] is mine
    assert not any(name.startswith("theirs.") for name in sys.modules)


def test_the_network_of_2023_is_compared_with_its_own_kind():
    ours = measure._draw_own_network()

    def logits(tokens, labels, error=0.0):
        kept = torch.zeros(len(labels), dtype=torch.bool)
        return ours(torch.from_numpy(tokens), torch.from_numpy(labels), kept) + error

    peer = adapters.PEERS[-1]
    assert peer.kind == measure.OWN_NETWORK
    assert measure._measure_own(peer, SimpleNamespace(logits=logits), ours).passed
    off = SimpleNamespace(logits=lambda *both: logits(*both, error=0.1))
    assert not measure._measure_own(peer, off, ours).passed


def test_bad_input_takes_one_line(tmp_path, capsys):
    assert command.run([]) == 2
    assert command.run(["--checkouts=nowhere"]) == 1
    assert command.run([f"--checkouts={tmp_path}", f"--pack={tmp_path}"]) == 1
    errors = capsys.readouterr().err.splitlines()
    assert len(errors) == 3 and all(": error: " in line for line in errors)


def test_every_adapter_names_a_format_that_is_written():
    from convert.formats.recognise import writers

    config = models.load(pack.read(PACK), "transformer").to_config()
    assert "hmorimitsu" in writers("maskgit_transformer", config)
    assert len({(peer.repository, peer.kind) for peer in adapters.PEERS}) == len(adapters.PEERS)
    assert np.all([peer.repository.count("/") == 1 for peer in adapters.PEERS])
