"""What is compared: seeded models of a chosen size, or the models in given files, on both sides."""

import dataclasses
from pathlib import Path
from typing import Any

import ml_collections
import numpy as np
from PIL import Image

import convert
from maskgit_pt import VQVAE, Transformer
from maskgit_pt.configs import maskgit_class_cond_config
from maskgit_pt.utils import read_image
from parity import weights
from parity.jax_code import JaxCode
from parity.pairs import TokenizerPair, TransformerPair
from parity.seeded import MODEL_TYPES
from parity.stages import progress

SIZES = ("tiny", "256", "512")
PHOTO = Path(__file__).parents[1] / "tests" / "golden" / "photo.jpg"
_OFFICIAL_CODES = 1024


@dataclasses.dataclass(frozen=True)
class Subject:
    """Models to compare, and where they came from.

    Attributes:
      section: heading in the report.
      config: as official, with the sizes of these models.
      transformer, tokenizer: the pairs; None if not given.
      files: rows for the report: (what, path, sha256, parameters).
      checkpoints: the Google-format files, by kind.
      folders: what `convert` made of them.
      seeded: whether the weights are drawn, not trained.
    """

    section: str
    config: ml_collections.ConfigDict
    transformer: TransformerPair | None
    tokenizer: TokenizerPair | None
    files: tuple[tuple[str, str, str, int], ...]
    checkpoints: dict[str, Path]
    folders: dict[str, Path]
    seeded: bool

    @property
    def full_size(self) -> bool:
        return self.section not in ("tiny", "ports", "pack")


def config_of(size: str) -> ml_collections.ConfigDict:
    """The published configuration for 256 or 512 pixels, or the same network made small.

    "tiny": 8 x 8 tokens of 64 codes from 128 pixels, 10 classes, 3 layers of width 96 with 6 heads.
    "ports": the same with 2 residual blocks a level, which every public implementation can hold.
    "pack", for a pack of a few megabytes: 6 x 6 tokens of 32 codes from 24 pixels, 2 layers of width 48.
    """
    config = maskgit_class_cond_config.get_config()
    if size not in ("tiny", "ports", "pack"):
        config.image_size = int(size)
        return config
    config.image_size, config.num_class = 128, 10
    config.transformer.update(
        {"num_layers": 3, "num_embeds": 96, "intermediate_size": 384, "num_heads": 6}
    )
    config.vqvae.update(
        {"codebook_size": 64, "filters": 32, "num_res_blocks": 1, "embedding_dim": 32}
    )
    if size == "ports":
        config.vqvae.num_res_blocks = 2
    if size == "pack":
        config.image_size = 24
        config.transformer.update(
            {"num_layers": 2, "num_embeds": 48, "intermediate_size": 144, "num_heads": 4}
        )
        config.transformer.patch_size = 4
        config.vqvae.update(
            {"codebook_size": 32, "embedding_dim": 8, "channel_multipliers": (1, 1, 2)}
        )
    return config


def transformer_arguments(config: ml_collections.ConfigDict) -> dict[str, Any]:
    """The constructor arguments of the transformer that `config` describes."""
    network = config.transformer
    side = config.image_size // network.patch_size
    return {
        "vocab_size": config.vqvae.codebook_size + config.num_class + 1,
        "hidden_size": network.num_embeds,
        "num_hidden_layers": network.num_layers,
        "num_attention_heads": network.num_heads,
        "intermediate_size": network.intermediate_size,
        "max_position_embeddings": side**2 + 1,
    }


def seeded(code: JaxCode, size: str, folder: Path, seed: int = 0) -> Subject:
    """Draws weights, writes them to `folder` as Google's files, and loads those."""
    config = config_of(size)
    progress(f"{size}: drawing weights and writing them as Google-format checkpoints")
    drawn = {
        "transformer": weights.transformer_variables(code, transformer_arguments(config), seed),
        "tokenizer": weights.tokenizer_variables(code, config, seed),
    }
    files = {}
    for kind, variables in drawn.items():
        files[kind] = folder / f"seeded_{kind}_{size}_checkpoint"
        weights.write_checkpoint(variables, files[kind])
    return _load(code, size, config, files, folder, is_seeded=True)


def from_files(code: JaxCode, files: dict[str, Path], folder: Path) -> Subject:
    """Loads Google-format files, by kind: "transformer", "tokenizer" or both."""
    return _load(code, "files", config_of("256"), files, folder, is_seeded=False)


def _load(
    code: JaxCode,
    section: str,
    config: ml_collections.ConfigDict,
    files: dict[str, Path],
    folder: Path,
    is_seeded: bool,
) -> Subject:
    """Converts the files, loads the folders in PyTorch and the files themselves in Flax."""
    pairs: dict[str, Any] = {"transformer": None, "tokenizer": None}
    folders, rows = {}, []
    for kind, file in files.items():
        progress(f"{section}: converting {file.name}")
        folders[kind] = folder / f"{section}_{kind}"
        summary = convert.convert(file, folders[kind])
        if summary.model_type != MODEL_TYPES[kind]:
            raise ValueError(f"{file}: a {summary.model_type}, given as --{kind}")
        if summary.input_format != "flax":
            raise ValueError(
                f"{file}: {summary.input_format} format; accepted: Google's Flax files (maskgit-convert "
                f"--input={file} --output=FILE --to=flax makes one)"
            )
        what = f"{kind}, seeded" if is_seeded else kind
        rows.append((what, str(file), summary.input_sha256, summary.parameters))
    if "tokenizer" in files:
        ours = VQVAE.from_pretrained(folders["tokenizer"])
        variables = weights.read_checkpoint(files["tokenizer"])
        pairs["tokenizer"] = TokenizerPair(ours, code, variables)
        config.vqvae.update(ours.to_config()["vqvae"])
    if "transformer" in files:
        ours = Transformer.from_pretrained(folders["transformer"])
        codes = _number_of_codes(ours, pairs["tokenizer"], files["transformer"])
        variables = weights.read_checkpoint(files["transformer"])
        pairs["transformer"] = TransformerPair(ours, code, variables, codes)
        patch = pairs["tokenizer"].ours.downsampling if pairs["tokenizer"] else 16
        config.image_size = pairs["transformer"].side * patch
        config.num_class = pairs["transformer"].classes
    return Subject(
        section=section,
        config=config,
        files=tuple(rows),
        checkpoints=dict(files),
        folders=folders,
        seeded=is_seeded,
        **pairs,
    )


def _number_of_codes(ours: Transformer, tokenizer: TokenizerPair | None, file: Path) -> int:
    vocabulary = ours.to_config()["vocab_size"]
    codes = tokenizer.config.vqvae.codebook_size if tokenizer else _OFFICIAL_CODES
    if codes + 2 > vocabulary:
        raise ValueError(
            f"{file}: vocabulary of {vocabulary}, too small for {codes} codes, the classes and the "
            "mask; give the --tokenizer that belongs to it"
        )
    return codes


def load_picture(path: str | Path | None, size: int) -> tuple[np.ndarray, str]:
    """A square picture, float32 [1, 3, size, size] in [0, 1], and what it is.

    Args:
      path: any picture file, of which the largest square in the middle is taken; None: the photograph
        among the tests, or seeded noise where the tests are not at hand.
      size: pixels along one side.
    """
    if path is None and not PHOTO.is_file():
        noise = np.random.default_rng(0).random((size // 8, size // 8, 3))
        blocks = Image.fromarray(np.uint8(255 * noise)).resize((size, size), Image.BICUBIC)
        pixels = np.float32(blocks) / 255
        return np.ascontiguousarray(pixels.transpose(2, 0, 1)[None]), "seeded noise"
    path = Path(path or PHOTO)
    pixels = read_image(path).numpy()
    side = min(pixels.shape[1:])
    top, left = ((length - side) // 2 for length in pixels.shape[1:])
    square = pixels[:, top : top + side, left : left + side]
    picture = Image.fromarray(np.uint8(np.round(255 * square.transpose(1, 2, 0))))
    resized = np.float32(picture.resize((size, size), Image.BICUBIC)) / 255
    return np.ascontiguousarray(resized.transpose(2, 0, 1)[None]), path.name
