"""PyTorch files that want to do harm, by accident or by intent: nothing is run, one line says what."""

import argparse
import collections
import datetime
import functools
import io
import logging
import os
import pathlib
import pickle
import random
import re
import struct
import subprocess
import sys
import typing
import zipfile
import zlib
from pathlib import Path

import fresh_python
import numpy as np
import pytest
import torch

import convert
from convert import __main__ as command
from convert.files import limited, torch_file

ROOT = Path(__file__).parents[2]


class Call:
    """Pickles as a call of `function(*arguments)`."""

    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


def nested(depth: int):
    value = Call(os.system, "touch HARM")
    for _ in range(depth):
        value = Call(collections.OrderedDict, [("a", value)])
    return value


ATTACKS = {
    "system": (Call(os.system, "touch HARM"), r"tries to run os.system \(posix.system\)"),
    "eval": (Call(eval, "open('HARM', 'w')"), "tries to run builtins.eval"),
    "exec": (Call(exec, "open('HARM', 'w')"), "tries to run builtins.exec"),
    "open": (Call(open, "HARM", "w"), "open"),
    "popen": (Call(subprocess.Popen, ["touch", "HARM"]), "tries to run subprocess.Popen"),
    "import": (Call(__import__, "antigravity"), "tries to run builtins.__import__"),
    "nested": (nested(20), "tries to run os.system"),
    "getattr": (
        Call(getattr, Call(__import__, "os"), "system"),
        "tries to run builtins.__import__",
    ),
    "method": (
        Call(pathlib.Path("HARM").touch),
        "tries to run (pathlib.PosixPath.touch|builtins.getattr)",
    ),
    "partial": (Call(functools.partial(os.system, "touch HARM")), "tries to run os.system"),
    "load": (Call(torch.load, "HARM"), "tries to run torch.serialization.load"),
    "bytearray": (
        Call(bytearray, 10**12),
        "takes more memory than|tries to run builtins.bytearray",
    ),
    "bytes": (
        Call(bytes, 10**12),
        "asks for a buffer of 1,000,000,000,000 bytes|tries to run builtins.bytes",
    ),
    "zeros": (
        Call(torch.zeros, 10**12),
        "tries to run (torch._C._VariableFunctionsClass.zeros|builtins.getattr)",
    ),
    "numbers": (Call(torch.FloatTensor, 10**12), "tries to run torch.FloatTensor"),
    "numpy": (Call(np.zeros, 10**12), "tries to run numpy.zeros"),
    "reduce": (
        Call(functools.reduce, os.system, ["touch HARM"]),
        "tries to run os.system",
    ),
    "log": (Call(logging.FileHandler, "HARM"), "tries to run logging.FileHandler"),
    "unknown": (Call(zlib.decompress, b"x"), "tries to run zlib.decompress"),
}


def saved(content, legacy: bool = False) -> bytes:
    stream = io.BytesIO()
    torch.save(content, stream, _use_new_zipfile_serialization=not legacy)
    return stream.getvalue()


def refusal(file: Path, capsys, *arguments: str) -> str:
    """The error of the command line, which must be one line and leave nothing behind."""
    before = sorted(file.parent.iterdir())
    sys.argv[1:] = [f"--input={file}", f"--output={file.parent / 'out'}", *arguments]
    assert command.cli() == 1
    captured = capsys.readouterr()
    assert captured.err.startswith(f"maskgit-convert: error: {file}: "), captured.err
    assert captured.err.count("\n") == 1 and not captured.out and len(captured.err) < 1000
    assert sorted(file.parent.iterdir()) == before
    return captured.err


@pytest.mark.parametrize("name", ATTACKS)
@pytest.mark.parametrize("packed", ["zip", "legacy", "pickle", "pickle 0", "beside weights"])
def test_nothing_is_run(name, packed, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["convert"])
    attack, reason = ATTACKS[name]
    if packed.startswith("pickle"):
        data = pickle.dumps({"a": attack}, protocol=0 if packed.endswith("0") else 4)
    elif packed == "beside weights":
        data = saved({"state_dict": {"tok_emb.weight": torch.zeros(2)}, "callbacks": attack})
    else:
        data = saved({"state_dict": {"a": attack}}, legacy=packed == "legacy")
    (tmp_path / "file.ckpt").write_bytes(data)
    message = refusal(tmp_path / "file.ckpt", capsys)
    assert re.search(reason, message), message
    if "memory" not in message:
        assert "not read: its pickle " in message and "nothing of it was run" in message
    assert [path.name for path in tmp_path.iterdir()] == ["file.ckpt"]


def test_text_pickle_is_reported(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["convert"])
    file = tmp_path / "file.ckpt"
    for text in (
        b"cos\nsystem\n(S'touch HARM'\ntR.",
        b"(S'touch HARM'\nios\nsystem\n.",
        b"\x8c\x02os\x8c\x06system\x93\x8c\x01a\x85R.",
        b"Vos\nVsystem\n\x93)R.",
    ):
        file.write_bytes(text)
        assert "tries to run os.system" in refusal(file, capsys)


def settings() -> dict:
    """What Lightning and others put beside the weights."""
    values = {
        "namespace": argparse.Namespace(lr=1e-4, nested=argparse.Namespace(path=pathlib.Path("a"))),
        "defaults": collections.defaultdict(list, a=[1]),
        "counter": collections.Counter("abba"),
        "when": datetime.datetime(2023, 10, 31),
        "partial": functools.partial(torch.nn.GELU, approximate="tanh"),
        "numbers": np.arange(3),
        "number": np.float64(3),
        "dtype": torch.bfloat16,
        "device": torch.device("cpu"),
        "shape": torch.Size([1, 2]),
        "set": {1, 2},
        "frozen": frozenset("ab"),
        "bytes": bytearray(b"abc"),
        "complex": 1j,
        "slice": slice(1, 2),
        "long": 2**200,
        "error": ValueError("x"),
        "generator": np.random.default_rng(0),
        "types": [typing.Any, dict[str, int], int | None, typing.Union[int, str]],  # noqa: UP007
        "module": torch.nn.Linear(2, 2),
    }
    return values


@pytest.mark.parametrize("legacy", [False, True])
def test_harmless_objects_stay_inert(legacy, tmp_path, foreign_files, monkeypatch):
    """Weights with other people's settings import; their classes are not even looked for."""
    state = torch.load(foreign_files / "formats" / "mage_vqgan.ckpt", weights_only=True)
    values = settings()
    if legacy:  # the old layout stores the source of modules beside them, which torch.load refuses
        del values["module"], values["partial"]
    content = {"epoch": 3, "global_step": 70, "state_dict": state, "hyper_parameters": values}
    file = tmp_path / "last.ckpt"
    file.write_bytes(saved(content, legacy))
    with pytest.raises(pickle.UnpicklingError):
        torch.load(file, weights_only=True)
    summary = convert.convert(file, tmp_path / "out")
    assert summary.warnings == (f"left out: hyper_parameters (a dict of {len(values)})",)
    ours = convert.read_flat(tmp_path / "out")
    expected = convert.read_flat(foreign_files / "formats" / "mage_vqgan.ckpt")
    assert all(np.array_equal(ours[key], expected[key]) for key in expected)
    things = torch_file.read(file).things
    assert things["argparse.Namespace"] == 2
    assert legacy or "torch.nn.modules.linear.Linear" in things
    tree = torch_file.read(file).tree["hyper_parameters"]
    assert tree.keys() == values.keys() and tree["long"] == 2**200
    assert tree["defaults"] == {"a": [1]} and tree["set"] == {1, 2}


def test_stand_ins_are_gone_afterwards(tmp_path):
    before = torch.serialization.get_safe_globals()
    torch.save({"a": argparse.Namespace(), "b": torch.ones(2)}, tmp_path / "file")
    assert torch_file.read(tmp_path / "file").tree["b"].tolist() == [1, 1]
    assert set(torch.serialization.get_safe_globals()) == set(before)


def test_step_is_shown(tmp_path, foreign_files, capsys, monkeypatch):
    state = torch.load(foreign_files / "formats" / "mage_vqgan.ckpt", weights_only=True)
    (tmp_path / "a.ckpt").write_bytes(
        saved({"global_step": 70_000, "state_dict": state, "hyper_parameters": settings()})
    )
    monkeypatch.setattr(sys, "argv", ["convert", f"--inspect={tmp_path / 'a.ckpt'}"])
    assert command.cli() == 0
    out = capsys.readouterr().out
    assert "step:         70,000" in out and "argparse.Namespace (2)" in out


def all_files(folder: Path) -> list[Path]:
    names = ("*.ckpt", "*.bin", "*.pth")
    files = [path for name in names for path in folder.rglob(name)]
    return files + [ROOT / "tests" / "golden" / "besnier" / "tiny_maskgit.pth"]


def assert_same(ours, theirs) -> None:
    if isinstance(theirs, dict):
        assert list(ours) == list(theirs)
        for key, value in theirs.items():
            assert_same(ours[key], value)
    elif isinstance(theirs, list | tuple):
        assert len(ours) == len(theirs)
        for one, other in zip(ours, theirs, strict=True):
            assert_same(one, other)
    elif isinstance(theirs, torch.Tensor):
        assert ours.dtype == theirs.dtype and ours.stride() == theirs.stride()
        assert torch.equal(ours, theirs.detach())
    else:
        assert ours == theirs


def test_reads_what_pytorch_reads(foreign_files, tmp_path):
    """Both layouts; what is mapped is there again after its memory was given back."""
    files = all_files(foreign_files)
    assert len(files) == 8
    for number, path in enumerate(files):
        theirs = torch.load(path, weights_only=True)
        ours = torch_file.read(path)
        assert_same(ours.tree, theirs)
        ours.release()
        assert_same(ours.tree, theirs)
        old = tmp_path / str(number)
        torch.save(theirs, old, _use_new_zipfile_serialization=False)
        assert torch_file.read(old).layout == "legacy"
        assert_same(torch_file.read(old).tree, theirs)


def with_attribute(tensor: torch.Tensor) -> torch.Tensor:
    tensor.no_decay = True
    return tensor


def test_every_kind_of_tensor(tmp_path):
    base = torch.arange(60.0).view(3, 4, 5)
    content = {
        "part": base[1:, 1:3],
        "turned": base.permute(2, 0, 1),
        "empty": torch.zeros(0, 3),
        "scalar": torch.tensor(3.0),
        "parameter": torch.nn.Parameter(torch.ones(2)),
        "attribute": with_attribute(torch.arange(3.0)),
        "both": with_attribute(torch.nn.Parameter(torch.ones(2))),
        **{
            str(dtype): torch.ones(2, 3).to(dtype)
            for dtype in (
                torch.float16, torch.bfloat16, torch.float64, torch.int8, torch.uint8, torch.int16,
                torch.int32, torch.int64, torch.bool, torch.complex64, torch.uint16, torch.uint32,
                torch.float8_e5m2,
            )
        },
    }  # fmt: skip
    torch.save(content, tmp_path / "file")
    assert_same(torch_file.read(tmp_path / "file").tree, content)


def tensor_pickle(shape, stride, storage_count=2, start=0, key="0") -> bytes:
    """A pickle of {"a": tensor} with any numbers."""

    def integers(values):
        return b"(" + b"".join(b"\x8a\x08" + struct.pack("<q", v) for v in values) + b"t"

    storage = b"(X\x07\x00\x00\x00storagectorch\nFloatStorage\nX" + struct.pack("<I", len(key))
    storage += (
        key.encode() + b"X\x03\x00\x00\x00cpu\x8a\x08" + struct.pack("<q", storage_count) + b"tQ"
    )
    arguments = b"(" + storage + b"\x8a\x08" + struct.pack("<q", start) + integers(shape)
    arguments += integers(stride) + b"\x89ccollections\nOrderedDict\n)Rt"
    return b"\x80\x02}X\x01\x00\x00\x00actorch._utils\n_rebuild_tensor_v2\n" + arguments + b"Rs."


def archive(data_pkl: bytes, storage: bytes = bytes(8), method=zipfile.ZIP_STORED) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", method) as file:
        file.writestr("x/data.pkl", data_pkl)
        file.writestr("x/data/0", storage)
        file.writestr("x/version", b"3\n")
    return stream.getvalue()


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (archive(tensor_pickle([2**40, 2**40], [0, 0])), "damaged: RuntimeError"),
        (archive(tensor_pickle([2**20], [0])), "share their numbers|known format"),
        (archive(tensor_pickle([3], [1])), "Trying to resize storage that is not resizable"),
        (
            archive(tensor_pickle([2], [1], start=1)),
            "Trying to resize storage that is not resizable",
        ),
        (archive(tensor_pickle([-2], [1])), "damaged: RuntimeError"),
        (archive(tensor_pickle([2], [-1])), "damaged: RuntimeError"),
        (archive(tensor_pickle([2], [1, 1])), "damaged: RuntimeError"),
        (archive(tensor_pickle([2**40], [1], storage_count=2**40)), "damaged: RuntimeError"),
        (archive(tensor_pickle([2], [1], storage_count=-1)), "damaged: |known format"),
        (archive(tensor_pickle([2], [1], key="1")), "failed locating file data/1: file not found"),
        (archive(tensor_pickle([2], [1]), bytes(2**24), zipfile.ZIP_DEFLATED), "is compressed"),
        (archive(b"\x80\x02" + b"]" * 1_500_000 + b"."), "more than 1,000,000 instructions"),
        (archive(b"\x80\x02" + b"]" * 2**23 + b"."), "data.pkl has 8,388,611 bytes; accepted: "),
        (archive(b"\x80\x02X\xff\xff\xff\x7fa."), "its pickle is damaged"),
        (archive(b"\x80\x05\x96\xff\xff\xff\xff\xff\x00\x00\x00."), "its pickle is damaged"),
        (archive(b"\x80\x02Nr\xff\xff\xff\x7f."), "holds a NoneType, not tensors by name"),
        (archive(b"\x80\x02\x82\x01."), "Unsupported operand 130"),
        (archive(b"\x80\x05\x97."), "Unsupported operand 151"),
        (archive(b"\x80\x02}"), "its pickle is damaged"),
        (archive(b"\x80\x02NQ."), "persistent_load id must be tuple"),
        (archive(b"\x80\x02]]s."), "damaged: IndexError"),
        (archive(b"\x80\x02}]Ns."), "damaged: TypeError"),
        (archive(b"\x80\x02\x8a\xff" + b"\x7f" * 255 + b"."), "not tensors by name"),
    ],
)
def test_damaged(data, reason, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["convert"])
    (tmp_path / "file").write_bytes(data)
    message = refusal(tmp_path / "file", capsys)
    assert re.search(reason, message), message


def test_a_flipped_bit_in_a_tensor(tmp_path):
    data = bytearray(saved({"a": torch.arange(1000.0)}))
    at = data.index(torch.tensor(500.0).numpy().tobytes())
    data[at] ^= 1
    (tmp_path / "file").write_bytes(data)
    with pytest.raises(ValueError, match=r"data/0 does not have its checksum \(CRC-32\)"):
        torch_file.read(tmp_path / "file")


def test_numbers_out_of_nothing(tmp_path):
    """195 bytes that ask for 4 TB, in the old layout."""
    kind = pickle.dumps({}, protocol=2)
    data = saved({}, legacy=True)
    program = tensor_pickle([2**40], [1], storage_count=2**40)
    (tmp_path / "file").write_bytes(data.replace(kind, program, 1))
    assert len(data) < 400
    with pytest.raises(ValueError, match="memory|damaged"):
        torch_file.read(tmp_path / "file")


# Each makes something large out of little, again and again. M: a list of 200,000; C: a class.
M, C = b"](" + b"N" * 200_000 + b"eq\x00", b"cargparse\nNamespace\nq\x01"
AGAIN = {
    "arguments that are a list": M + C + b"h\x01h\x00R" * 50_000 + b".",
    "arguments that are a text": b"X\0\0\0\1" + b"x" * 2**24 + b"q\x00" + C + b"h\x01h\x00R" * 99 + b".",
    "many arguments": b"(" + b"N" * 200_000 + b"tq\x00ctorch._utils\n_rebuild_parameter\nq\x01"
    + b"h\x01h\x00R0" * 50_000 + b"N.",
    "bytes": b"\x96\0\0\0\1\0\0\0\0" + bytes(2**24) + b"\x85q\x00c__builtin__\nbytes\nq\x01"
    + b"h\x01h\x00R" * 50_000 + b".",
    "a long name": b"X\1\0\0\0aX\0\0\x80\0" + b"b" * 2**23 + b"\x93q\x00" + b"h\x00)\x81" * 50_000 + b".",
    "a long identity": b"(X\7\0\0\0storagectorch\nFloatStorage\nX\1\0\0\0000X\1\0\0\0cK\2"
    + b"N" * 200_000 + b"tq\x00" + b"h\x00Q0" * 50_000 + b"N.",
    "a key that holds itself": b"}" + C + b")\x81q\x02" + b"h\x01h\x02h\x02\x86\x81q\x02" * 40 + b"Ns.",
    "a deep key": b"}" + C + b")\x81q\x02" + b"h\x01h\x02\x85\x81q\x02" * 50_000 + b"Ns.",
    "a deep tensor": b"ctorch._tensor\n_rebuild_from_type_v2\nq\x00)" + b"q\x01h\x00Nh\x01\x87" * 50_000
    + b"R.",
}  # fmt: skip


AGAIN["copies of copies"] = (
    b"ccollections\nOrderedDict\nq\x00]q\x01(" + b"(K\x01K\x01t" * 100_000 + b"e"
    + b"h\x00h\x01R" * 2_000 + b"N."
)  # fmt: skip


def test_out_of_little(tmp_path, monkeypatch):
    """Refused, before time or memory are gone."""
    files = {name: archive(b"\x80\x02" + program) for name, program in AGAIN.items()}
    files["keys of storages that hold themselves"] = saved({}, legacy=True).removesuffix(
        pickle.dumps([], protocol=2)
    ) + (b"\x80\x02](]q\x00" + b"h\x00h\x00\x86q\x00" * 40 + b"e.")
    for name, data in files.items():
        (tmp_path / name).write_bytes(data)
    limited_to(*(tmp_path / name for name in files))


def test_zip_bombs(tmp_path):
    """Two entries of the directory point to one member: the quoted-overlap bomb. And a wild directory."""
    data = archive(tensor_pickle([2], [1]), bytes(3000))
    at = data.index(b"PK\x01\x02")
    second = data.index(b"PK\x01\x02", at + 4)
    overlap = bytearray(data)
    overlap[at + 42 : at + 46] = overlap[second + 42 : second + 46]
    huge = bytearray(data)
    end = data.rindex(b"PK\x05\x06")
    huge[end + 12 : end + 16] = b"\xff\xff\xff\x7f"
    for damaged in (overlap, huge):
        (tmp_path / "file").write_bytes(damaged)
        with pytest.raises(ValueError, match="its zip archive|its member .* does not have"):
            torch_file.read(tmp_path / "file")


@pytest.mark.filterwarnings("ignore:Duplicate name")
@pytest.mark.parametrize(
    ("names", "reason"),
    [
        (["x/data.pkl", "x/data.pkl"], "two members of one name"),
        (["x/data.pkl", "y/data.pkl"], "has 2 members data.pkl; accepted: one"),
        (["../../../HARM/data.pkl"], "not read: its pickle tries to run os.system (posix.system)"),
        (["x/data.pkl", "x/constants.pkl"], "is a TorchScript program"),
    ],
)
def test_members_of_archives(names, reason, tmp_path, capsys, monkeypatch):
    """Nothing is unpacked; a name that is not called does nothing and is told."""
    monkeypatch.setattr(sys, "argv", ["convert"])
    with zipfile.ZipFile(tmp_path / "file", "w") as file:
        for name in names:
            file.writestr(name, b"\x80\x02}X\1\0\0\0acposix\nsystem\ns.")
    assert reason in refusal(tmp_path / "file", capsys)


@pytest.fixture
def in_process(monkeypatch):
    """Reads without a process of its own, which takes longer than such small files do."""
    monkeypatch.setattr(limited, "run", lambda function, size: function())


def test_truncated_anywhere(tmp_path, in_process):
    state = {"quant_conv.weight": torch.zeros(2), "b": torch.arange(100.0)}
    for legacy in (False, True):
        data = saved({"state_dict": state}, legacy)
        file = tmp_path / "file.ckpt"
        for length in [*range(1, len(data), 13), len(data) - 1]:
            file.write_bytes(data[:length])
            with pytest.raises(ValueError) as caught:
                convert.load_checkpoint(file)
            assert str(caught.value).startswith(str(file)) and "\n" not in str(caught.value)


LIMITED = """
import resource, sys
import convert
from convert.files import limited
limited._CPU_SECONDS = 1
with open("/proc/self/statm") as statm:
    used = int(statm.read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + 384 * 2**20,) * 2)
for path in sys.argv[1:]:
    try:
        convert.load_checkpoint(path)
    except ValueError as error:
        print(str(error))
"""


def limited_to(*files: Path) -> None:
    """Files that must be refused, each in one line, with 384 MiB and in a minute."""
    done = fresh_python.run(LIMITED, *files, seconds=60)
    assert done.returncode == 0, done.stderr[-2000:]
    lines = done.stdout.splitlines()
    assert len(lines) == len(files), done.stdout
    for file, line in zip(files, lines, strict=True):
        assert line.startswith(f"{file}: ") and len(line) < 1000, line


def test_no_memory_blow_up(tmp_path):
    bombs = {
        "deflated": archive(b"\x80\x02}.", bytes(2**27), zipfile.ZIP_DEFLATED),
        "pickle": archive(bytes([0x5D]) * 2**25),
        "memo": archive(b"\x80\x02Nr\xff\xff\xff\x7f."),
        "shared": archive(b"\x80\x02]q\x00" + b"(h\x00h\x00tq\x00" * 200_000 + b"."),
        "sizes": archive(tensor_pickle([2**40, 2**40], [0, 0])),
        "text": archive(b"L" + b"9" * 2**24 + b"L\n."),
    }
    files = []
    for name, data in bombs.items():
        files.append(tmp_path / name)
        files[-1].write_bytes(data)
    limited_to(*files)


def test_mutations(tmp_path, in_process):
    """500 damaged files are read or refused in one line."""
    small = {f"encoder.down.0.block.{i}.norm1.weight": torch.ones(3) for i in range(3)}
    originals = [
        saved({"state_dict": small, "hyper_parameters": argparse.Namespace(a=1)}, legacy)
        for legacy in (False, True)
    ]
    rng = random.Random(0)
    file = tmp_path / "file.ckpt"
    for number in range(500):
        data = bytearray(originals[number % 2])
        # Of an archive, mostly the pickle; it is shorter than the rest.
        limit = 900 if number % 3 else len(data)
        for _ in range(rng.choice((1, 1, 2, 4))):
            at = rng.randrange(min(limit, len(data)))
            data[at : at + rng.randrange(3)] = rng.randbytes(rng.randrange(3))
        file.write_bytes(data)
        read_or_refused(file)


def read_or_refused(file: Path) -> None:
    try:
        convert.load_checkpoint(file)
    except ValueError as error:
        message = str(error)
        assert message.startswith(str(file)) and "\n" not in message and len(message) < 2000


@pytest.mark.filterwarnings("ignore:invalid escape sequence")  # a text of protocol 0
def test_mutated_programs(tmp_path, foreign_files, in_process):
    """200 damaged pickles in archives that are sound, so that all of each is run."""
    original = foreign_files / "formats" / "hmorimitsu_maskgit.ckpt"
    with zipfile.ZipFile(original) as file:
        members = {name: file.read(name) for name in file.namelist()}
    (name,) = (name for name in members if name.endswith("/data.pkl"))
    program, rng = members[name], random.Random(1)
    pieces = [
        b"cposix\nsystem\n", b"cbuiltins\ngetattr\n", b"R", b"\x81", b"b", b"o", b"t", b")", b"(", b"h\x00",
        b"\x93", b"Q", b"2", b"0", b"s", b"\x8a\xff", b"X\3\0\0\0abc", b"\x82\x01", b"J\xff\xff\xff\xff",
    ]  # fmt: skip
    for _ in range(200):
        data = program
        for _ in range(rng.choice((1, 1, 2, 4))):
            at = rng.randrange(len(data))
            data = data[:at] + rng.choice([b"", *pieces]) + data[at + rng.randrange(3) :]
        with zipfile.ZipFile(tmp_path / "file.ckpt", "w") as file:
            for member, content in members.items():
                file.writestr(member, data if member == name else content)
        read_or_refused(tmp_path / "file.ckpt")
