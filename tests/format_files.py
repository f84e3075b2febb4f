"""The files of other projects that `tests/golden/formats` keeps, byte for byte as they were recorded.

They hold the same few sets of weights in many layouts. So each is kept as its bytes around the
tensors, and where the tensors' numbers come from: an official checkpoint (with an order of axes), or
`numbers.xz`. Every file put together has the SHA-256 of the recorded one, or nothing is given out.
"""

import base64
import hashlib
import json
import lzma
from pathlib import Path

import numpy as np
from recorded import GOLDEN

from convert import flax_msgpack

PACKED = GOLDEN / "formats"


def unpack(folder: Path) -> Path:
    """Writes all files into `folder` and returns it."""
    files = json.loads(lzma.decompress((PACKED / "files.json.xz").read_bytes()))
    planes = np.frombuffer(lzma.decompress((PACKED / "numbers.xz").read_bytes()), np.uint8)
    numbers = np.ascontiguousarray(planes.reshape(4, -1).T).view("<f4").ravel()
    checkpoints: dict[str, dict] = {}

    def array(source: str, name: str, axes: list[int]) -> bytes:
        if source not in checkpoints:
            path = folder / source if (folder / source).is_file() else GOLDEN / source
            checkpoints[source] = dict(flax_msgpack.flatten(flax_msgpack.loads(path.read_bytes())))
        return np.ascontiguousarray(checkpoints[source][name].transpose(axes)).tobytes()

    for name, entry in files.items():
        data = b"".join(
            base64.b64decode(where[0])
            if kind == "raw"
            else numbers[where[0] : where[0] + where[1]].tobytes()
            if kind == "numbers"
            else array(*where)
            for kind, *where in entry["pieces"]
        )
        assert hashlib.sha256(data).hexdigest() == entry["sha256"], name
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    return folder
