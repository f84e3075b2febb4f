"""The vectors in `tests/golden/mage`, recorded from LTH14/mage, and their tiny network."""

import functools
import io
import json
import lzma
import math

import numpy as np
import torch
import torch.nn.functional as F
from recorded import GOLDEN
from torch import Tensor

from maskgit_pt.nets.mage import Mage

FOLDER = GOLDEN / "mage"
# Attention heads of the tiny network, and groups of its norms: what its file does not tell.
HEADS, DECODER_HEADS, GROUPS = 3, 4, 4
VQVAE = {
    "quantizer": "vq", "codebook_size": 32, "embedding_dim": 8, "filters": 8, "num_res_blocks": 1,
    "middle_blocks": 2, "norm_groups": GROUPS, "channel_multipliers": [1, 2], "conv_downsample": False,
    "activation_fn": "swish", "norm_type": "GN",
}  # fmt: skip


@functools.cache
def recorded(name: str) -> dict[str, np.ndarray]:
    """Loads `tests/golden/mage/NAME.npz`."""
    with np.load(FOLDER / f"{name}.npz") as file:
        return dict(file)


@functools.cache
def full_size() -> dict:
    """Names and shapes of the published files."""
    return json.loads((FOLDER / "full_size_keys.json").read_text())


@functools.cache
def published_bytes() -> bytes:
    """A file as its authors publish it."""
    return lzma.decompress((FOLDER / "tiny_mage.pth.xz").read_bytes())


def published() -> dict[str, torch.Tensor]:
    """What `published_bytes` holds under "model"."""
    return torch.load(io.BytesIO(published_bytes()), weights_only=True)["model"]


def model(dtype: torch.dtype = torch.float32) -> Mage:
    """The tiny network with its tokenizer, in evaluation mode; its tensors put in by `convert`."""
    from convert.formats import BY_NAME

    net = Mage(
        num_codes=32, num_tokens=16, hidden_size=48, num_hidden_layers=2, num_attention_heads=HEADS,
        decoder_hidden_size=48, decoder_num_layers=2, decoder_num_heads=DECODER_HEADS, patch_size=2,
        vqvae=VQVAE,
    )  # fmt: skip
    rows = BY_NAME["mage-vit"].rows_to_write("mage", net.to_config())
    theirs = published()
    net.load_state_dict({row.officials[0]: theirs[name] for name, row in rows.items()})
    return net.to(dtype).eval()


def choose_masked(noise: Tensor, ratio: float) -> tuple[Tensor, Tensor]:
    """Which tokens are masked, and which of them the encoder does not see.

    Args:
      noise: uniform [B, n]; of equal numbers the first counts as less.
      ratio: of the masked tokens, 0.5 to 1; the same for the whole batch.

    Returns:
      masked, dropped: bool [B, n]; ceil(n ratio) and ceil(n / 2) in every row, those of least noise.
    """
    n = noise.shape[1]
    rank = noise.argsort(dim=-1, stable=True).argsort(-1)
    return rank < math.ceil(n * ratio), rank < math.ceil(n * 0.5)


def masked_loss(logits: Tensor, codes: Tensor, masked: Tensor) -> tuple[Tensor, Tensor]:
    """Cross-entropy over the codes with label smoothing .1.

    Args:
      logits: [B, n, K].
      codes, masked: int64 and bool [B, n].

    Returns:
      The mean over all masked tokens of the batch, and the loss of every token [B, n].
    """
    losses = F.cross_entropy(logits.mT, codes, reduction="none", label_smoothing=0.1)
    return (losses * masked).sum() / masked.sum(), losses


def near(ours, theirs, f64: bool) -> None:
    """Fails where a recorded array is missed by more than its precision allows."""
    ours = np.asarray(ours.detach() if isinstance(ours, torch.Tensor) else ours)
    assert ours.shape == theirs.shape
    assert np.abs(ours - theirs).max() <= (1e-10 if f64 else 5e-5)


def assert_gradients(net: Mage, case: int) -> None:
    """Compares the gradients of a float64 network with those of a recorded training pass, 0 or 1."""
    vectors = recorded("training")
    grads = {n: p.grad for n, p in net.named_parameters() if p.grad is not None}
    assert sorted(grads) == list(vectors[f"case{case}_grad_names"])
    norms = [grads[name].norm().item() for name in sorted(grads)]
    near(np.array(norms), vectors[f"case{case}_grad_norms_f64"], True)
    if case:
        return
    for name, theirs in vectors.items():
        if name.startswith("case0_grad_f64:"):
            flat = grads[name.partition(":")[2]].flatten()
            near(flat[:: max(1, len(flat) // 96)], theirs, True)
    words = grads["token_emb.word_embeddings.weight"]
    rows = torch.from_numpy(vectors["case0_grad_word_rows"])
    assert torch.equal(words.abs().sum(1).nonzero()[:, 0], rows)
    near(words[rows].norm(dim=1), vectors["case0_grad_word_rows_norm_f64"], True)
    near(words[108], vectors["case0_grad_word_class_row_f64"], True)
    near(words[1032], vectors["case0_grad_word_mask_row_f64"], True)
