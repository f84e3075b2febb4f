"""What a file is that is no checkpoint, told from its first bytes: failed downloads, mostly."""

from pathlib import Path

from convert.files.archive import directory

HEAD_BYTES = 512

# First bytes -> what the file is.
_SIGNATURES = {
    b"\x89PNG": "a PNG image",
    b"\xff\xd8\xff": "a JPEG image",
    b"GIF8": "a GIF image",
    b"RIFF": "a RIFF file (WebP, WAV)",
    b"%PDF": "a PDF document",
    b"\x1f\x8b": "gzip-compressed: unpack it first",
    b"BZh": "bzip2-compressed: unpack it first",
    b"\xfd7zXZ": "xz-compressed: unpack it first",
    b"\x28\xb5\x2f\xfd": "zstd-compressed: unpack it first",
    b"7z\xbc\xaf": "a 7z archive: unpack it first",
    b"\x89HDF": "an HDF5 file",
    b"\x93NUMPY": "a NumPy array (.npy)",
    b"\x7fELF": "a program",
    b"version https://git-lfs": "a Git LFS pointer, not the file itself (git lfs pull fetches it)",
    b"\x80\x02": "a Python pickle",
    b"\x80\x03": "a Python pickle",
    b"\x80\x04": "a Python pickle",
    b"\x80\x05": "a Python pickle",
}
# First characters, in lower case, of a text.
_TEXTS = {
    "<!doctype html": "an HTML page (a download that failed?)",
    "<html": "an HTML page (a download that failed?)",
    "<?xml": "an XML document (a refused download?)",
    "<": "a page of markup (a download that failed?)",
    "{": "a JSON text",
    "[": "a JSON text",
}


def describe_stranger(path: Path, head: bytes) -> str | None:
    """Says "is ..." of what is surely no checkpoint; None if it may be one.

    Args:
      path: file or folder.
      head: its first `HEAD_BYTES` bytes; empty for a folder.
    """
    if path.is_dir():
        return _describe_folder(path)
    if not head:
        return "is empty (0 bytes)"
    for signature, what in _SIGNATURES.items():
        if head.startswith(signature):
            return f"is {what}, not a checkpoint"
    if path.suffix == ".onnx" or head[:1] == b"\x08" and head[2:3] == b"\x12":
        return "is an ONNX graph, which is not read: convert the weights it was made from"
    if head.startswith(b"PK"):
        return f"is {_describe_zip(path)}, not a checkpoint"
    if head[257:262] == b"ustar":
        return "is a tar archive, not a checkpoint: unpack it first"
    if not head.strip(b"\0"):
        return f"begins with {len(head)} zero bytes (a download that failed?), not a checkpoint"
    return _describe_text(head)


def is_pickle(head: bytes) -> bool:
    """Whether a file may be a bare pickle: begins with a protocol, a container, a name or a text.

    Many a text begins so too, as protocol 0 is text.
    """
    starts = (b"(", b"]", b"}", b"c", b"S", b"U", b"V", b"X", b"\x8c")
    return head[:1] == b"\x80" and head[1:2] <= b"\x05" or head[:1] in starts


def _describe_folder(path: Path) -> str:
    entries = sorted(entry.name for entry in path.iterdir())
    if not entries:
        return "is an empty folder"
    if any(name.endswith(".onnx") for name in entries):
        return "holds ONNX graphs, which are not read: convert the weights they were made from"
    found = ", ".join(entries[:5]) + (", ..." if len(entries) > 5 else "")
    return f"is a folder without weights, neither model.safetensors nor others (it holds {found})"


def _describe_zip(path: Path) -> str:
    with open(path, "rb") as file:
        names = directory(file)
    if not names:
        return "a damaged zip archive (truncated?)"
    return "a NumPy archive (.npz)" if b".npy" in names else "a zip archive"


def _describe_text(head: bytes) -> str | None:
    try:
        text = head.decode("utf-8-sig").lstrip().lower()
    except UnicodeDecodeError as error:
        if len(head) < HEAD_BYTES or error.start < len(head) - 3:
            return None  # else the cut after HEAD_BYTES went through a character
        text = head[: error.start].decode("utf-8-sig").lstrip().lower()
    if not text.isprintable() and any(not (c.isprintable() or c in "\r\n\t") for c in text):
        return None
    for start, what in _TEXTS.items():
        if text.startswith(start):
            return f"is {what}, not a checkpoint"
    first_line = (text.splitlines() or [""])[0][:60]
    return f"is a text that begins with {first_line!r}, not a checkpoint"
