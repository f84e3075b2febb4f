"""Everything that was made, on disk: a folder an entry, which `maskgit-sample` could have made."""

import dataclasses
import json
import os
import re
import shlex
import shutil
import zipfile
from pathlib import Path

from PIL import Image

from maskgit_pt import sample
from maskgit_pt.files import replacing, write_atomically
from maskgit_pt.sample_folder import SETTINGS_NAME
from maskgit_pt.settings import fields

_JOB_NAME, _STEPS = "job.json", "steps"
_FOLDER = re.compile(r"\d{4,}")
_SAMPLE = re.compile(r"class\d+_\d+\.png")


@dataclasses.dataclass(frozen=True)
class Entry:
    """One job and what it made.

    Attributes:
      folder: of its samples.
      command: the line that makes the same files.
      python: the same in Python.
      title: for people.
    """

    folder: Path
    command: str
    python: str
    title: str

    @property
    def images(self) -> list[Path]:
        """The samples, in the order of their indices."""
        found = [path for path in self.folder.iterdir() if _SAMPLE.fullmatch(path.name)]
        return sorted(found, key=lambda path: path.stem.rpartition("_")[2])

    @property
    def steps(self) -> list[Path]:
        """Pictures of the steps; none of an entry whose server was killed before it was whole."""
        return sorted((self.folder / _STEPS).glob("*.png"))


class History:
    """A folder of entries; it is there again after a restart.

    Args:
      folder: made if missing.
    """

    def __init__(self, folder: str | os.PathLike):
        self.folder = Path(folder)
        self.folder.mkdir(parents=True, exist_ok=True)

    def new_folder(self) -> Path:
        """Makes the next entry's folder: 0001, 0002, ..."""
        numbers = [int(path.name) for path in self._folders()]
        for number in range(max(numbers, default=0) + 1, 10**9):
            path = self.folder / f"{number:04d}"
            try:
                path.mkdir()
                return path
            except FileExistsError:  # another tab was faster
                continue
        raise OSError(f"{self.folder}: no free number")

    def keep(self, job: sample.Job, title: str, frames: list[Image.Image]) -> Entry:
        """Adds what tells an entry from other folders, once its samples are whole.

        Args:
          job: that made it.
          title: for people.
          frames: what was seen after each step.
        """
        folder = Path(job.asked.output)
        if frames:
            with replacing(folder / _STEPS) as temporary:
                temporary.mkdir()
                for number, frame in enumerate(frames):
                    frame.save(temporary / f"{number:03d}.png")
        about = {"title": title, "command": command(job), "python": python(job)}
        write_atomically(folder / _JOB_NAME, (json.dumps(about, indent=2) + "\n").encode())
        return self.entry(folder)

    def entry(self, folder: str | os.PathLike) -> Entry:
        """Reads one entry.

        Raises:
          ValueError: there is none, or it is damaged.
        """
        folder = Path(folder)
        if folder.parent.resolve() != self.folder.resolve() or not _FOLDER.fullmatch(folder.name):
            raise ValueError(f"{folder}: no entry of {self.folder}")
        try:
            about = json.loads((folder / _JOB_NAME).read_text(encoding="utf-8"))
            texts = {name: str(about[name]) for name in ("command", "python", "title")}
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise ValueError(f"{folder}: no entry, or a damaged one: {error}") from None
        return Entry(folder, **texts)

    def entries(self) -> list[Entry]:
        """All entries that are whole, newest first."""
        found = []
        for folder in sorted(self._folders(), key=lambda path: -int(path.name)):
            try:
                found.append(self.entry(folder))
            except ValueError:
                continue  # being made, or its server was killed
        return found

    def discard(self, folder: str | os.PathLike) -> None:
        """Removes the folder of a job that was not finished."""
        shutil.rmtree(folder, ignore_errors=True)

    def download(self, entry: Entry) -> Path:
        """Makes a zip archive of an entry: images with their metadata, settings, the command."""
        target = self.folder / f"{entry.folder.name}.zip"
        names = [*entry.images, entry.folder / SETTINGS_NAME, entry.folder / _JOB_NAME]
        with replacing(target) as temporary, zipfile.ZipFile(temporary, "w") as archive:
            for path in names:
                if path.is_file():
                    archive.write(path, f"maskgit_{entry.folder.name}/{path.name}")
        return target

    def _folders(self) -> list[Path]:
        return [p for p in self.folder.iterdir() if _FOLDER.fullmatch(p.name) and p.is_dir()]


def command(job: sample.Job) -> str:
    """The command line that makes the same files."""
    words = ["maskgit-sample"]
    for values in (job.models, job.asked):
        for name, field in fields(type(values)).items():
            value = getattr(values, name)
            if name == "output":  # not into the entry itself, where everything is already
                value = f"maskgit_{Path(value).name}"
            if value is True or value is False:
                words += [] if value == field.default else [f"--{'' if value else 'no'}{name}"]
            elif value != field.default:
                words.append(f"--{name}={value}")
    words += [f"--{name}={value}" for name, value in job.decoding.items()]
    return shlex.join(words)


def python(job: sample.Job) -> str:
    """The call that makes the same images, in Python."""
    models, asked = job.models, job.asked
    arguments = [repr(name) for name in (models.model, models.tokenizer) if name]
    settings = "".join(f", {name}={value!r}" for name, value in job.decoding.items())
    labels = f"[{models.labels}] * {asked.num_samples}"
    if asked.edit is None:
        call = f"generate({labels}, seed={models.seed}{settings})"
    else:
        place = next(name for name in ("box", "mask", "extend") if getattr(asked, name))
        value = getattr(asked, place)
        place = f"mask={value!r}" if place == "mask" else f"{place}=({value})"
        call = f"edit({asked.edit!r}, {labels}, {place}, seed={models.seed}{settings})"
    return (
        "from maskgit_pt import MaskGIT\n\n"
        f"model = MaskGIT.from_pretrained({', '.join(arguments)})\n"
        f"images = model.{call}.images"
    )
