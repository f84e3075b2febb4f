"""Google's files: Flax MessagePack of `{"params": {...}}`, under the official names; see `flax_msgpack`."""

from collections.abc import Mapping
from pathlib import Path

from torch import Tensor

from convert import flax_msgpack, infer, rules
from convert.checkpoint import Checkpoint
from convert.files.tensors import Shape, as_bytes
from convert.formats.container import Container
from convert.formats.format import Format
from convert.formats.state_dicts import StateDict
from convert.rows import Outgoing, Row, Rows


class Flax(Format):
    NAME = "flax"
    DESCRIPTION = "Flax msgpack file (Google's own format)"
    HOLDS = "Google's transformer, tokenizer or discriminator"
    MODEL_TYPES = ("maskgit_transformer", "maskgit_vqvae", "maskgit_discriminator")
    PACKINGS = ("flax",)
    KEEPS_ORDER = True

    def rows_of_file(self, shapes: Mapping[str, Shape], stated: dict) -> Rows:
        return {name: Row((name,)) for name in shapes}

    def rows_of_model(self, model_type: str, config: dict) -> Rows:
        names = rules.published_order(
            piece.official for piece in rules.target(model_type, config)[1]
        )
        return {name: Row((name,)) for name in names}

    def likeness(self, state: StateDict, container: Container) -> float:
        """As the names show, in any packing but Orbax', which is a format of its own."""
        own = (container.packing == "Orbax") == (self.PACKINGS == ("Orbax",))
        return infer.likeness(state.tensors, self.MODEL_TYPES) if own else 0.0

    def official_layout(
        self, container: Container, tensors: Mapping[str, Tensor]
    ) -> tuple[list[str], dict[str, tuple[int, ...]]]:
        return list(tensors), container.chunks

    def rows_to_write(self, model_type: str, config: dict) -> Rows:
        if model_type not in self.MODEL_TYPES:
            raise ValueError(
                f"Google's format holds {', '.join(self.MODEL_TYPES)}; this is a {model_type}"
            )
        return super().rows_to_write(model_type, config)

    def pack(self, source: Checkpoint, path: Path, tensors: Outgoing, packing: str) -> None:
        def leaf(name: str) -> flax_msgpack.LazyArray:
            dtype, shape = tensors.layout[name]
            read = tensors.parts(name)
            return flax_msgpack.LazyArray(
                dtype, shape, lambda: as_bytes(next(read)), source.chunks.get(name)
            )

        # In the order of the file that the weights once came from.
        tree = flax_msgpack.nest({name: leaf(name) for name in source.tensors})
        with open(path, "xb") as file:
            flax_msgpack.dump(tree, file.write)


FORMAT = Flax()
