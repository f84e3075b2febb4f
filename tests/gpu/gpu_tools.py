"""What the parts share: sizes, reports, networks, clocks."""

import contextlib
import dataclasses
import json
import statistics
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, ClassVar, Self

import ml_collections
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from maskgit_pt.configs import vqgan_config
from maskgit_pt.nets.maskgit_transformer import Transformer
from maskgit_pt.nets.vqgan_tokenizer import VQVAE
from maskgit_pt.pipeline import MaskGIT

ROOT = Path(__file__).parents[2]


@dataclasses.dataclass(frozen=True)
class Size:
    """How large the networks and batches of all parts are.

    Attributes:
      layers, width, heads: of the transformer, whose head width is 48 in either size.
      filters, multipliers, blocks: of the tokenizer, which halves an image's sides once for each multiplier
        after the first.
      codes, classes, side: K, classes, tokens along one side.
      images: how many are compared with the CPU's.
      batch: for images/s.
      train_batches: images a training step.
      repeats: timed calls.
    """

    layers: int = 24
    width: int = 768
    heads: int = 16
    filters: int = 128
    multipliers: tuple[int, ...] = (1, 1, 2, 2, 4)
    blocks: int = 2
    codes: int = 1024
    classes: int = 1000
    side: int = 16
    images: int = 20
    batch: int = 64
    train_batches: tuple[int, ...] = (32, 64, 256)
    repeats: int = 10

    @property
    def is_full(self) -> bool:
        """Whether this is `FULL`, here or in another process."""
        return self == FULL

    @property
    def image_size(self) -> int:
        return self.side * 2 ** (len(self.multipliers) - 1)


FULL = Size()
TOY = Size(
    layers=2, width=96, heads=2, filters=32, multipliers=(1, 2), blocks=1, codes=64, classes=10, side=4,
    images=2, batch=3, train_batches=(2, 4), repeats=1,
)  # fmt: skip


class Figures(dict):
    """Figures by name, noted in a file as they come: a part that hangs or dies has told what it found."""

    file: ClassVar[Path | None] = None

    def __setitem__(self, name: str, value: Any) -> None:
        super().__setitem__(name, value)
        if self.file is not None:
            with self.file.open("a") as file:
                file.write(json.dumps({name: value}, default=str) + "\n")

    def __ior__(self, others: Mapping[str, Any]) -> Self:
        for name, value in others.items():
            self[name] = value
        return self

    @classmethod
    def noted(cls, file: Path) -> dict[str, Any]:
        """What the file says."""
        lines = file.read_text().splitlines() if file.exists() else []
        return {name: value for line in lines for name, value in json.loads(line).items()}


@dataclasses.dataclass
class Report:
    """Figures, and sentences about what is wrong."""

    figures: Figures = dataclasses.field(default_factory=Figures)
    wrong: list[str] = dataclasses.field(default_factory=list)

    def check(self, right: bool, sentence: str) -> None:
        if not right:
            self.wrong.append(sentence)


def tokenizer_config(size: Size) -> ml_collections.ConfigDict:
    config = vqgan_config.get_config()
    config.image_size = size.image_size
    config.vqvae.update(
        codebook_size=size.codes, filters=size.filters, num_res_blocks=size.blocks,
        channel_multipliers=size.multipliers,
    )  # fmt: skip
    return config


def make_model(size: Size, side: int | None = None) -> MaskGIT:
    """Both networks on the CPU, float32, seeded; logits as spread as trained ones."""
    torch.manual_seed(0)
    transformer = Transformer(
        size.codes + size.classes + 1, size.width, size.layers, size.heads, 4 * size.width,
        max_position_embeddings=(side or size.side) ** 2 + 1,
    )  # fmt: skip
    with torch.no_grad():  # a standard deviation of about 10
        transformer.embed.word_embeddings.weight.mul_(10 / (0.02 * size.width**0.5))
    return MaskGIT(transformer, VQVAE(tokenizer_config(size)))


def on(model: MaskGIT, device: torch.device, dtype: torch.dtype = torch.float32) -> MaskGIT:
    """A copy of the networks."""
    transformer = Transformer.from_config(model.transformer.to_config())
    transformer.load_state_dict(model.transformer.state_dict())
    tokenizer = VQVAE(model.tokenizer.config)
    tokenizer.load_state_dict(model.tokenizer.state_dict())
    return MaskGIT(transformer.to(device, dtype), tokenizer.to(device, dtype)).arrange()


class _BlockingCopies(TorchDispatchMode):
    def __torch_dispatch__(
        self, function: Any, types: Any, args: tuple = (), kwargs: dict | None = None
    ) -> Any:
        kwargs = kwargs or {}
        result = function(*args, **kwargs)
        if function is torch.ops.aten._to_copy.default and not kwargs.get("non_blocking"):
            devices = args[0].device.type, result.device.type
            if devices[0] != devices[1]:
                raise RuntimeError(f"a copy from {devices[0]} to {devices[1]} is waited for")
        return result


@contextlib.contextmanager
def no_waiting(device: torch.device) -> Iterator[None]:
    """Raises RuntimeError where the host would wait for the device.

    The device "meta" stands in for a GPU where there is none: its numbers cannot be read at all.
    """
    if device.type == "meta":
        with _BlockingCopies():
            yield
        return
    mode = torch.cuda.set_sync_debug_mode if device.type == "cuda" else lambda _: None
    mode("error")
    try:
        yield
    finally:
        mode("default")


def synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def milliseconds(call: Callable[[], Any], device: torch.device, repeats: int) -> float:
    """The median of so many calls after two to warm up, each waited for."""
    times = []
    for number in range(-2, repeats):
        synchronize(device)
        start = time.perf_counter()
        call()
        synchronize(device)
        if number >= 0:
            times.append(1e3 * (time.perf_counter() - start))
    return statistics.median(times)


def peak_gib(call: Callable[[], Any], device: torch.device) -> float | None:
    """The most memory that PyTorch held during a call, in GiB; None on a CPU."""
    if device.type != "cuda":
        call()
        return None
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats(device)
    call()
    synchronize(device)
    return torch.cuda.max_memory_allocated(device) / 2**30


def make_meta(size: Size) -> tuple[Transformer, VQVAE]:
    """Both networks without data."""
    with torch.device("meta"):
        transformer = Transformer(
            size.codes + size.classes + 1, size.width, size.layers, size.heads, 4 * size.width,
            max_position_embeddings=size.side**2 + 1,
        )  # fmt: skip
        return transformer.eval(), VQVAE(tokenizer_config(size)).eval()
