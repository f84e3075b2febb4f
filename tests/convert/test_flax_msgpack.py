"""`convert.flax_msgpack` against Flax itself, and against bytes that are wrong."""

import io

import msgpack
import numpy as np
import pytest

from convert import flax_msgpack
from convert.files import dtypes, flax_scanner


def sample_tree() -> dict:
    """Sorted keys, as Flax writes them; every kind of leaf."""
    rng = np.random.default_rng(0)
    arrays = {
        name: (rng.standard_normal((3, 5)) * 50).astype(name)
        for name in dtypes.NAMES
        if name != "bfloat16"
    }
    return {
        "arrays": dict(sorted(arrays.items())),
        "complex": 1.5 - 2j,
        "empty": {},
        "fortran": np.asfortranarray(rng.standard_normal((4, 3))),
        "lengths": {
            str(n).zfill(6): np.arange(n, dtype=np.uint8)
            for n in (0, 1, 2, 12, 200, 255, 256, 65_500, 65_536)
        },
        "none": None,
        "numbers": {"a": 0, "b": -1, "c": -33, "d": 2**40, "e": 2**64 - 1, "f": 0.1, "g": True},
        "scalar": np.float32(3.25),
        "shapes": {"a": np.array(7.0), "b": np.zeros((0, 3)), "c": np.ones((1, 1, 2, 1))},
        "strided": rng.standard_normal((6, 6))[::2, 1::2],
        "text": "häuser" * 60,
    }


def assert_same(ours, theirs):
    if isinstance(theirs, dict):
        assert list(ours) == list(theirs)
        for key in theirs:
            assert_same(ours[key], theirs[key])
    elif isinstance(theirs, np.ndarray | np.generic):
        assert type(ours) is type(theirs) and ours.dtype == theirs.dtype
        np.testing.assert_array_equal(ours, theirs)
    else:
        assert ours == theirs and type(ours) is type(theirs)


def test_bytes_are_those_of_flax(monkeypatch):
    serialization = pytest.importorskip("flax.serialization", reason="needs the extra 'jax'")
    for chunk_bytes in (2**30, 100, 24, 7):
        monkeypatch.setattr(serialization, "MAX_CHUNK_SIZE", chunk_bytes)
        data = serialization.to_bytes(sample_tree())
        assert flax_msgpack.dumps(sample_tree(), chunk_bytes) == data
        assert_same(flax_msgpack.loads(data), serialization.from_bytes(None, data))


def test_bfloat16_is_that_of_flax():
    serialization = pytest.importorskip("flax.serialization", reason="needs the extra 'jax'")
    jnp = pytest.importorskip("jax.numpy", reason="needs the extra 'jax'")
    array = jnp.linspace(-3, 3, 12, dtype=jnp.bfloat16).reshape(3, 4)
    data = serialization.to_bytes({"a": array})
    ours = flax_msgpack.loads(data)
    assert ours["a"].dtype == dtypes.BFLOAT16 and ours["a"].shape == (3, 4)
    np.testing.assert_array_equal(ours["a"]["bfloat16"], np.asarray(array).view(np.uint16))
    assert dtypes.to_tensor(ours["a"]).tolist() == array.tolist()
    assert flax_msgpack.dumps(ours) == flax_msgpack.dumps({"a": np.asarray(array)}) == data
    with pytest.raises(TypeError):
        ours["a"] + ours["a"]


@pytest.mark.parametrize("chunk_bytes", [2**30, 100])
def test_round_trip(chunk_bytes):
    tree = sample_tree() | {"list": [1, [np.arange(3), None], "x"], "unsorted": {"b": 1, "a": 2}}
    data = flax_msgpack.dumps(tree, chunk_bytes)
    again = flax_msgpack.loads(data)
    assert_same(again["arrays"], {k: np.ascontiguousarray(v) for k, v in tree["arrays"].items()})
    assert flax_msgpack.dumps(again, chunk_bytes) == data
    assert list(again["unsorted"]) == ["b", "a"]


def test_arrays_are_views():
    data = flax_msgpack.dumps({"a": np.arange(1000)})
    array = flax_msgpack.loads(data)["a"]
    assert not array.flags.owndata and not array.flags.writeable


def test_official_files(google_file):
    data = google_file.read_bytes()
    assert flax_msgpack.dumps(flax_msgpack.loads(data)) == data


def test_flatten_and_nest():
    tree = {"b": {"x": 1, "a": {"y": 2}}, "a": 3}
    flat = dict(flax_msgpack.flatten(tree))
    assert list(flat.items()) == [("b/x", 1), ("b/a/y", 2), ("a", 3)]
    assert flax_msgpack.nest(flat) == tree
    for wrong in ({"a/b": 1}, {"": 1}, {"a": {}}):
        with pytest.raises(ValueError):
            dict(flax_msgpack.flatten(wrong))


@pytest.mark.parametrize(
    ("leaf", "reason"),
    [
        (np.array([object()]), "object"),
        (np.array(["text"]), "<U4"),
        (np.zeros(2, ">f4"), ">f4"),
        (np.zeros(2, [("a", "f4"), ("b", "f4")]), "'a'"),
        (np.array(["2020-01-01"], "datetime64[D]"), "datetime64"),
        ({1, 2}, "set"),
        ({3: 1}, "key 3"),
    ],
)
def test_what_cannot_be_written_is_named(leaf, reason):
    with pytest.raises(ValueError, match="branch/leaf") as caught:
        flax_msgpack.dumps({"branch": {"leaf": leaf}})
    assert reason in str(caught.value)


def array_bytes(shape, dtype, data) -> msgpack.ExtType:
    return msgpack.ExtType(1, msgpack.packb((shape, dtype, data), use_bin_type=True))


def chunked(sizes, *arrays, **others) -> dict:
    return {
        "__msgpack_chunked_array__": True,
        "shape": {str(i): n for i, n in enumerate(sizes)},
        "chunks": {str(i): array for i, array in enumerate(arrays)},
    } | others


FLOATS = array_bytes((2,), "float32", bytes(8))


@pytest.mark.parametrize(
    ("leaf", "reason"),
    [
        (array_bytes((2, 3), "float32", bytes(20)), "takes 24 bytes, not 20"),
        (array_bytes((2**40, 2**40), "float32", b""), "absurdly large"),
        (array_bytes((2**62, 2**62, 0), "float32", b""), "absurdly large"),
        (array_bytes((-1,), "float32", b""), "whole numbers"),
        (array_bytes((1.5,), "float32", b""), "whole numbers"),
        (array_bytes(((1,),), "float32", b""), "whole numbers"),
        (array_bytes((True,), "int8", b"1"), "whole numbers"),
        (array_bytes((1,) * 33, "int8", b"1"), "at most 32"),
        (array_bytes(7, "int8", b"1"), "a shape must be"),
        (array_bytes((1,), "object", bytes(8)), "dtype 'object'"),
        (array_bytes((1,), "<U1", bytes(4)), "dtype '<U1'"),
        (array_bytes((1,), ">f4", bytes(4)), "dtype '>f4'"),
        (array_bytes((1,), "float8_e4m3", bytes(1)), "dtype 'float8_e4m3'"),
        (array_bytes((1,), "no\nline", bytes(1)), r"no\\nline"),
        (array_bytes((1,), 3, bytes(1)), "dtype must be a string"),
        (array_bytes((1,), "int8", 3), "data must be bytes"),
        (msgpack.ExtType(1, msgpack.packb([[1], "int8"])), "shape, dtype, bytes"),
        (msgpack.ExtType(1, array_bytes((1,), "int8", b"1").data + b"x"), "1 bytes too many"),
        (msgpack.ExtType(1, b""), "needs 1 bytes"),
        (msgpack.ExtType(3, FLOATS.data), "NumPy scalar"),
        (msgpack.ExtType(2, msgpack.packb((1.0, 2))), "complex"),
        (msgpack.ExtType(4, b"x"), "extension type 4 is unknown"),
        (chunked((3,), FLOATS), "do not add up"),
        (chunked((2,), array_bytes((1, 2), "float32", bytes(8))), "flat arrays"),
        (chunked((3,), FLOATS, array_bytes((1,), "int8", b"1")), "differ in dtype"),
        (chunked((0,)), "must hold"),
        (chunked((2,), FLOATS, extra=1), "must hold"),
        (chunked((2,), FLOATS, shape=[2]), "must hold"),
        (chunked((2,), FLOATS, chunks={"1": FLOATS}), "must hold"),
        (chunked((2,), FLOATS, shape={"0": "2"}), "whole numbers"),
        (chunked((2,), FLOATS, __msgpack_chunked_array__=1), "must hold"),
        ({1: 2}, "expected a name"),
        ("x" * (2**20 + 1), "bytes of text"),
        ([0] * 100_001, "more than 100,000 values"),
    ],
)
def test_wrong_leaves_are_named(leaf, reason):
    data = msgpack.packb({"branch": {"leaf": leaf}}, use_bin_type=True)
    with pytest.raises(ValueError, match=reason) as caught:
        flax_msgpack.loads(data)
    assert str(caught.value).startswith("branch/leaf (byte ")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "needs 1 bytes"),
        (b"\x81\xa1a\xc1", "0xc1 is not MessagePack"),
        (b"\x82\xa1a\x01\xa1a\x02", "a .byte 6.: occurs twice"),
        (b"\x81\xa1a\x01\x00", "1 bytes follow"),
        (b"\x81\xa2\xff\xfe\x01", "not UTF-8"),
        (b"\x81\xda\x04\x01" + b"k" * 1025 + b"\x01", "expected a name"),
        (b"\x81\xa1a\xd4\xff\x00", "extension type -1 is unknown"),
        (b"\xdf\xff\xff\xff\xff", "needs 8,589,934,590 bytes"),
        (b"\x81\xa1a\xdd\xff\xff\xff\xff", "needs 4,294,967,295 bytes"),
        (b"\x81\xa1a\xc6\xff\xff\xff\xff", "needs 4,294,967,295 bytes"),
        (b"\x81\xa1a\xc9\xff\xff\xff\xff\x01", "needs 4,294,967,295 bytes"),
        (b"\x81\xa1a\xdb\xff\xff\xff\xff", "needs 4,294,967,295 bytes"),
        (b"\x81\xa1k" * 100_000, "nested deeper than 64"),
        (b"\x91" * 100_000, "nested deeper than 64"),
    ],
)
def test_wrong_structure_is_located(data, reason):
    with pytest.raises(ValueError, match=reason) as caught:
        flax_msgpack.loads(data)
    assert len(str(caught.value)) < 500


def test_every_truncation_is_noticed():
    data = flax_msgpack.dumps(sample_tree() | {"lengths": {}}, 100)
    for length in range(len(data)):
        with pytest.raises(ValueError):
            flax_msgpack.loads(data[:length])


def test_scanning_reads_headers_only():
    data = flax_msgpack.dumps({"a": np.zeros(1_000_000), "b": np.zeros(1_000_000)})
    read = 0

    class Counting(io.BytesIO):
        def read(self, count=-1):
            nonlocal read
            read += count
            return super().read(count)

    tree = flax_scanner.scan(Counting(data), len(data))
    assert tree["b"].shape == (1_000_000,) and read < 200
