"""Gives public implementations the weights of a pack, and measures how far they are from Google's code."""

import dataclasses
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

import convert
from maskgit_pt.libml import jax_random, parallel_decode
from maskgit_pt.nets.besnier_transformer import BesnierTransformer
from parity.checks.near_ties import GUMBEL_TEMPERATURE
from parity.compare import compare, to_numpy
from parity.packs import check, models
from parity.packs.pack import Pack
from parity.packs.theirs import Caller
from parity.peers.adapters import LAYOUT, PEERS, Peer
from parity.stages import progress

_SHOWN = (
    "transformer.logits",
    "tokenizer.encoder.conv_out",
    "tokenizer.indices",
    "tokenizer.images",
)


_HALF_LEVEL = 0.5 / 255
OWN_NETWORK = "besnier_transformer"


@dataclasses.dataclass(frozen=True)
class Row:
    """What was found about one network of one repository.

    Attributes:
      peer: which.
      commit: of the checkout, "" if it is not under git.
      passed: whether it computes Google's function to within the bounds; None if it could not be run.
      differences: (what, difference and bound) for each array compared.
      causes: of the differences.
      identical: how many images were the same.
      images: how many were made.
      trouble: why it could not be run.
    """

    peer: Peer
    commit: str = ""
    passed: bool | None = None
    differences: tuple[tuple[str, str], ...] = ()
    causes: tuple[str, ...] = ()
    identical: int = 0
    images: int = 0
    trouble: str = ""


def measure(
    pack: Pack, checkouts: Path, folder: Path, images: int, files: dict[str, str | None]
) -> list[Row]:
    """One row for every adapter.

    Args:
      pack: what Google's function gives.
      checkouts: holds OWNER/NAME for each repository; those that are missing are told.
      folder: for the weights in their formats.
      images: how many to make with each.
      files: the weights by kind, for packs that neither hold nor drew them.

    Raises:
      ValueError: weights are not at hand.
    """
    rows: list[Row] = []
    ours: dict[str, nn.Module] = {}
    for peer in PEERS:
        progress(f"{peer.repository}: {peer.kind} ...")
        checkout = checkouts / peer.repository
        if not checkout.is_dir():
            rows.append(Row(peer, trouble="no checkout was given"))
            continue
        if peer.kind not in ours:
            ours[peer.kind] = _load(pack, peer.kind, files.get(peer.kind))
        try:
            row = _measure(peer, checkout.resolve(), ours[peer.kind], pack, folder, images, files)
        except Exception as error:  # whatever their code raises is a finding
            text = f"{type(error).__name__}: {' '.join(str(error).split())}"
            row = Row(peer, trouble=text[:200])
        rows.append(dataclasses.replace(row, commit=_commit(checkout)))
    progress("")
    return rows


def _load(pack: Pack, kind: str, file: str | None) -> nn.Module:
    """Our network with the weights of the pack."""
    if kind == OWN_NETWORK:
        return _draw_own_network()
    found = models.load(pack, kind, file)
    if found is None:
        raise ValueError(f"{pack.folder}: holds no weights of a {kind}; give them (--{kind})")
    return found


def _their_weights(ours: nn.Module, folder: Path, peer: Peer) -> dict[str, Tensor]:
    """The weights in their names, by way of a file as they would load it."""
    own, theirs = folder / peer.kind, folder / f"{peer.format}_{peer.kind}"
    if not own.exists():
        ours.save_pretrained(own)
    if not theirs.exists():
        convert.convert(own, theirs, to=peer.format)
    file = theirs if theirs.is_file() else next(theirs.glob("*.bin"))
    found = torch.load(file, map_location="cpu", weights_only=True)
    return found.get("state_dict", found.get("model_state_dict", found))


def _measure(
    peer: Peer, checkout: Path, ours: nn.Module, pack: Pack, folder: Path, images: int,
    files: dict[str, str | None],
) -> Row:  # fmt: skip
    code = peer.build(checkout, ours.to_config(), _their_weights(ours, folder, peer))
    if peer.kind == OWN_NETWORK:
        return _measure_own(peer, code, ours)
    report = check.check(pack, Caller(code, pack, LAYOUT).collect(), files=files)
    troubles = [result.trouble for result in report.results if result.trouble]
    if troubles:
        return Row(peer, trouble="; ".join(troubles)[:200])
    records = {record.name: record for result in report.results for record in result.records}
    differences = []
    for name in _SHOWN:
        if name in records:
            record = records[name]
            found = f"{record.agreement:.2%} equal" if record.max_abs is None else (
                f"{record.max_abs:.1e} (bound {record.tolerance})"
            )  # fmt: skip
            differences.append((name.partition(".")[2], found))
    same = _same_samples if peer.kind == "transformer" else _same_reconstructions
    return Row(
        peer,
        passed=report.passed,
        differences=tuple(differences),
        causes=tuple(map(str, report.causes)),
        identical=sum(same(code, ours, pack, seed) for seed in range(images)),
        images=images,
    )


def _draw_own_network() -> nn.Module:
    """The transformer of Besnier & Chen (2023), small, with weights far from their initial ones."""
    sizes = {"num_codes": 32, "num_classes": 10, "num_tokens": 64, "hidden_size": 48}
    sizes |= {"num_hidden_layers": 3, "num_attention_heads": 4, "intermediate_size": 96}
    model = BesnierTransformer(**sizes).eval()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            parameter.add_(noise * 0.15)
    return model


def _measure_own(peer: Peer, code: Any, ours: nn.Module) -> Row:
    """Their network against ours of the same kind; Google's function is another one."""
    config, rng = ours.to_config(), np.random.default_rng(0)
    tokens = rng.integers(0, config["num_codes"] + 1, (4, config["num_tokens"]))  # masks among them
    labels = rng.integers(0, config["num_classes"], 4)
    with torch.inference_mode():
        kept = torch.zeros(len(labels), dtype=torch.bool)
        expected = ours(torch.from_numpy(tokens), torch.from_numpy(labels), kept)
        found = to_numpy(code.logits(tokens, labels))
    record = compare("logits", found, expected, rtol=1e-5)
    difference = record.message or f"{record.max_abs:.1e} (bound {record.tolerance})"
    return Row(peer, passed=record.passed, differences=(("logits", difference),))


def _same_samples(code: Any, ours: nn.Module, pack: Pack, seed: int) -> bool:
    """Whether official decoding with their logits ends in the tokens that it ends in with ours."""
    ids = torch.from_numpy(pack.whole("ids")[:1].astype(np.int64))
    codes = int(pack.manifest["model"]["codes"])
    start = torch.full_like(ids, -1)
    start[:, 0] = codes + seed % (ours.to_config()["vocab_size"] - codes - 1)

    def decode(logits: Callable[[Tensor], Tensor]) -> Tensor:
        key = jax_random.PRNGKey(seed, partitionable=True)
        return parallel_decode.decode(
            start, key, lambda ids: logits(ids)[..., :codes], num_iter=8,
            choice_temperature=GUMBEL_TEMPERATURE,
        )[:, -1]  # fmt: skip

    with torch.inference_mode():
        return torch.equal(decode(ours), decode(lambda ids: code.logits(ids.numpy())))


def _same_reconstructions(code: Any, ours: nn.Module, pack: Pack, seed: int) -> bool:
    """Whether an image becomes the same codes, and these the same pixels to half an 8-bit level."""
    side = pack.whole("images").shape[1]
    coarse = np.random.default_rng(seed).integers(0, 256, (side // 8, side // 8, 3), np.uint8)
    pixels = np.float32(Image.fromarray(coarse).resize((side, side), Image.BICUBIC)) / 255
    images = np.ascontiguousarray(pixels.transpose(2, 0, 1)[None])
    with torch.inference_mode():
        indices = ours.encode_to_indices(torch.from_numpy(images))
        expected = ours.decode_from_indices(indices).numpy()
        found = to_numpy(code.encode(images)[0])
        decoded = to_numpy(code.decode(indices.numpy()))

    # Rounded to 8 bits, a pixel between two levels may go either way.
    difference = np.abs(np.clip(decoded, 0, 1) - np.clip(expected, 0, 1)).max()
    return np.array_equal(found, indices) and difference <= _HALF_LEVEL


def _commit(checkout: Path) -> str:
    """The commit of a checkout; "" if git or the history is not there."""
    try:
        found = subprocess.run(
            ["git", "-C", str(checkout), "rev-parse", "HEAD"], capture_output=True, text=True
        )
    except OSError:
        return ""
    return found.stdout.strip() if found.returncode == 0 else ""
