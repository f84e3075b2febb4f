"""Public implementations of MaskGIT's networks, each imported from a checkout that the user gives.

Nothing of theirs is part of this project: an adapter says where their classes stand, how they are
built, and how they are called. Weights reach them through `convert`, in their own names.
"""

import contextlib
import dataclasses
import importlib
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import ml_collections
import numpy as np
import torch
from torch import Tensor, nn

State = dict[str, Tensor]
LAYOUT = "NCHW"  # of the images of all of them


@dataclasses.dataclass(frozen=True)
class Peer:
    """One network of a public repository.

    Attributes:
      repository: owner and name on GitHub, and where it lies below the folder of checkouts.
      kind: "transformer" or "tokenizer".
      format: the name that `convert` has for its weights.
      build: (checkout, config of the network, weights) -> an object with `logits`, or `encode` and
        `decode`, as `maskgit-parity check --code` calls them.
      about: a sentence for the reader.
    """

    repository: str
    kind: str
    format: str
    build: Callable[[Path, dict[str, Any], State], Any]
    about: str


@contextlib.contextmanager
def _importing(checkout: Path, *shells: str) -> Iterator[Callable[[str], ModuleType]]:
    """Imports from a checkout, and takes its modules out of `sys.modules` again.

    Args:
      checkout: goes first on the path.
      *shells: packages whose `__init__.py` is not run, because it imports what the networks do not
        need: training, downloads, other models.
    """
    tops = {path.stem for path in checkout.iterdir() if path.suffix in ("", ".py")}

    def of_checkout() -> list[str]:
        return [name for name in sys.modules if name.partition(".")[0] in tops]

    before = {name: sys.modules.pop(name) for name in of_checkout()}
    for name in shells:
        sys.modules[name] = ModuleType(name)
        sys.modules[name].__path__ = [str(checkout / name.replace(".", "/"))]
    sys.path.insert(0, str(checkout))
    try:
        yield importlib.import_module
    finally:
        sys.path.remove(str(checkout))
        for name in of_checkout():
            del sys.modules[name]
        sys.modules.update(before)


class _Tokenizer:
    """Encoder, quantizer and decoder of taming's kind, behind the two functions of a check.

    Args:
      parts: their modules "encoder", "decoder" and "quantize".
      state: weights for all of them.
      indices_of: what the quantizer returns -> indices.
      look_up: (quantizer, indices [B, h, w]) -> features [B, C, h, w].
    """

    LAYOUT = LAYOUT

    def __init__(
        self,
        parts: dict[str, nn.Module],
        state: State,
        indices_of: Callable[[Any], Tensor],
        look_up: Callable[[nn.Module, Tensor], Tensor],
    ):
        self.parts, self.indices_of, self.look_up = nn.ModuleDict(parts), indices_of, look_up
        self.parts.load_state_dict(state)
        self.parts.eval()

    @torch.no_grad()
    def encode(self, images: np.ndarray) -> tuple[Tensor, Tensor]:
        """[B, 3, H, W] -> indices [B, h, w] and features [B, C, h, w]."""
        features = self.parts["encoder"](torch.from_numpy(images))
        indices = self.indices_of(self.parts["quantize"](features))
        return indices.reshape(len(features), *features.shape[2:]), features

    @torch.no_grad()
    def decode(self, indices: np.ndarray) -> Tensor:
        """[B, h, w] -> [B, 3, H, W]."""
        return self.parts["decoder"](
            self.look_up(self.parts["quantize"], torch.from_numpy(indices))
        )


def _hmorimitsu_transformer(checkout: Path, config: dict[str, Any], state: State) -> Any:
    with _importing(checkout) as load:
        network = load("maskgit.nets.bidirectional_transformer").BidirectionalTransformer(
            num_image_tokens=config["max_position_embeddings"],
            num_codebook_vectors=config["vocab_size"],
            dim=config["hidden_size"],
            hidden_dim=config["intermediate_size"],
            num_heads=config["num_attention_heads"],
            attention_dropout=0.0,
            hidden_dropout=0.0,
            n_layers=config["num_hidden_layers"],
        )
    network.load_state_dict(state)
    network.eval()

    @torch.no_grad()
    def logits(ids: np.ndarray) -> Tensor:
        return network(torch.from_numpy(np.where(ids < 0, config["vocab_size"] - 1, ids)))

    return SimpleNamespace(logits=logits, LAYOUT=LAYOUT)


def _hmorimitsu_tokenizer(checkout: Path, config: dict[str, Any], state: State) -> Any:
    settings = ml_collections.ConfigDict({"vqvae": config["vqvae"]}, convert_dict=True)
    settings.vqvae.input_dim = 3
    with _importing(checkout) as load:
        network = load("maskgit.nets.vqgan_tokenizer").VQVAE(config=settings)
    network.load_state_dict(state)
    network.eval()

    @torch.no_grad()
    def encode(images: np.ndarray) -> tuple[Tensor, Tensor]:
        _, found = network.encode({"image": torch.from_numpy(images)})
        features = found["raw"]
        return found["encoding_indices"].reshape(len(images), *features.shape[2:]), features

    @torch.no_grad()
    def decode(indices: np.ndarray) -> Tensor:
        return network.decode_from_indices(torch.from_numpy(indices))

    return SimpleNamespace(encode=encode, decode=decode, LAYOUT=LAYOUT)


def _sizes(config: dict[str, Any]) -> dict[str, Any]:
    """Our settings under the names that open-muse and its descendants use."""
    vqvae = config["vqvae"]
    levels = len(vqvae["channel_multipliers"])
    return {
        "num_channels": 3,
        "hidden_channels": vqvae["filters"],
        "channel_mult": list(vqvae["channel_multipliers"]),
        "num_resolutions": levels,
        "num_res_blocks": vqvae["num_res_blocks"],
        "z_channels": vqvae["embedding_dim"],
        "token_size": vqvae["embedding_dim"],
        "resolution": 256,  # only a shape that nobody reads is made from it
        "dropout": 0.0,
        "resample_with_conv": vqvae.get("conv_downsample", False),
        "sample_with_conv": vqvae.get("conv_downsample", False),
    }


def _like_open_muse(module: str, *shells: str) -> Callable[[Path, dict[str, Any], State], Any]:
    """The tokenizer that open-muse wrote and others took over."""

    def build(checkout: Path, config: dict[str, Any], state: State) -> _Tokenizer:
        vqvae, sizes = config["vqvae"], SimpleNamespace(**_sizes(config))
        with _importing(checkout, *shells) as load:
            if "muse" in shells:  # its base classes only load and save
                base = ModuleType("muse.modeling_utils")
                base.ConfigMixin = base.ModelMixin = type("Base", (), {})
                base.ModelMixin = type("Module", (nn.Module,), {})
                base.register_to_config = lambda function: function
                sys.modules["muse.modeling_utils"] = base
            theirs = load(module)
        parts = {
            "encoder": theirs.Encoder(sizes),
            "decoder": theirs.Decoder(sizes),
            "quantize": theirs.VectorQuantizer(
                vqvae["codebook_size"], vqvae["embedding_dim"], 0.25
            ),
        }
        return _Tokenizer(
            parts,
            state,
            indices_of=lambda found: found[1],
            look_up=lambda quantize, ids: quantize.get_codebook_entry(ids.flatten(1)),
        )

    return build


def _maskbit(checkout: Path, config: dict[str, Any], state: State) -> _Tokenizer:
    vqvae, sizes = config["vqvae"], SimpleNamespace(**_sizes(config))
    shells = ("modeling", "modeling.modules", "modeling.quantizer")
    with _importing(checkout, *shells) as load:
        nets, quantizer = load("modeling.modules.autoencoder"), load("modeling.quantizer.quantizer")
    parts = {
        "encoder": nets.ConvEncoder(sizes),
        "decoder": nets.ConvDecoderLegacy(sizes),
        "quantize": quantizer.SimpleVectorizer(vqvae["codebook_size"], vqvae["embedding_dim"]),
    }
    return _Tokenizer(
        parts,
        state,
        indices_of=lambda found: found[1]["min_encoding_indices"],
        look_up=lambda quantize, ids: quantize.get_codebook_entry(ids).movedim(-1, 1),
    )


def _mage(checkout: Path, config: dict[str, Any], state: State) -> _Tokenizer:
    vqvae = config["vqvae"]
    sizes = {
        "ch": vqvae["filters"],
        "out_ch": 3,
        "in_channels": 3,
        "ch_mult": tuple(vqvae["channel_multipliers"]),
        "num_res_blocks": vqvae["num_res_blocks"],
        "attn_resolutions": [16],
        "resolution": 256,
        "z_channels": vqvae["embedding_dim"],
        "double_z": False,
        "dropout": 0.0,
    }
    with _importing(checkout) as load:
        nets, vq = (
            load("taming.modules.diffusionmodules.model"),
            load("taming.modules.vqvae.quantize"),
        )
    parts = {
        "encoder": nets.Encoder(**sizes),
        "decoder": nets.Decoder(**sizes),
        "quantize": vq.VectorQuantizer2(vqvae["codebook_size"], vqvae["embedding_dim"], beta=0.25),
    }

    def look_up(quantize: nn.Module, ids: Tensor) -> Tensor:
        return quantize.get_codebook_entry(ids.flatten(), (*ids.shape, vqvae["embedding_dim"]))

    return _Tokenizer(parts, state, indices_of=lambda found: found[2][2], look_up=look_up)


def _besnier(checkout: Path, config: dict[str, Any], state: State) -> Any:
    with _importing(checkout, "Network") as load:
        module = load("Network.transformer")
    if not hasattr(module, "MaskTransformer"):
        raise ValueError("the network of 2023 is in the commits up to 674ef1d, not in this one")
    side = round(config["num_tokens"] ** 0.5)
    network = module.MaskTransformer(
        img_size=16 * side,
        hidden_dim=config["hidden_size"],
        codebook_size=config["num_codes"],
        depth=config["num_hidden_layers"],
        heads=config["num_attention_heads"],
        mlp_dim=config["intermediate_size"],
        dropout=0.0,
        nclass=config["num_classes"],
    )
    network.load_state_dict(state)
    network.eval()

    @torch.no_grad()
    def logits(tokens: np.ndarray, labels: np.ndarray) -> Tensor:
        grid, kept = torch.from_numpy(tokens).reshape(-1, side, side), torch.zeros(len(labels))
        return network(grid, torch.from_numpy(labels), kept.bool())

    return SimpleNamespace(logits=logits, LAYOUT=LAYOUT)


PEERS = (
    Peer(
        "hmorimitsu/maskgit-torch", "transformer", "hmorimitsu", _hmorimitsu_transformer,
        "a port of code and weights",
    ),
    Peer(
        "hmorimitsu/maskgit-torch", "tokenizer", "hmorimitsu", _hmorimitsu_tokenizer,
        "a port of code and weights",
    ),
    Peer(
        "huggingface/open-muse", "tokenizer", "open-muse",
        _like_open_muse("muse.modeling_maskgit_vqgan", "muse"),
        "Google's tokenizer for models of its own",
    ),
    Peer(
        "bytedance/1d-tokenizer", "tokenizer", "titok",
        _like_open_muse("modeling.modules.maskgit_vqgan", "modeling", "modeling.modules"),
        "TiTok, which learns from the codes of Google's tokenizer; its code came from open-muse",
    ),
    Peer(
        "xyfJASON/maskgit-pytorch", "tokenizer", "titok",
        _like_open_muse(
            "models.stage1.maskgit.maskgit_vqgan", "models", "models.stage1", "models.stage1.maskgit"
        ),
        "a retraining on Google's tokenizer, whose code and weights came through TiTok",
    ),
    Peer(
        "markweberdev/maskbit", "tokenizer", "maskbit", _maskbit,
        "MaskBit, with Google's tokenizer as a baseline",
    ),
    Peer(
        "LTH14/mage", "tokenizer", "mage", _mage,
        "MAGE, with a tokenizer of Google's architecture and other weights",
    ),
    Peer(
        "valeoai/Maskgit-pytorch", "besnier_transformer", "besnier", _besnier,
        "the reproduction of 2023, a network of its own: it is compared with ours of that kind",
    ),
)  # fmt: skip
