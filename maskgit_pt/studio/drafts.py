"""What stands on the edit tab, on disk, so that nothing is lost when the page is reloaded."""

import dataclasses
import json
import os
import re
import time
from pathlib import Path

import numpy as np
from PIL import Image

from maskgit_pt.files import replacing, write_atomically

_NAME = re.compile(r"[0-9a-f]{32}")
_KEPT = 7 * 86400  # seconds

# Returns the name of a browser's tab, which a reload leaves as it is; another tab has another name.
NAME_OF_TAB = """() => {
  let name = sessionStorage.getItem("maskgit-draft");
  if (!name) {
    const bytes = crypto.getRandomValues(new Uint8Array(16));
    name = Array.from(bytes, (byte) => byte.toString(16).padStart(2, "0")).join("");
    sessionStorage.setItem("maskgit-draft", name);
  }
  return name;
}"""


@dataclasses.dataclass(frozen=True)
class Draft:
    """What somebody has begun.

    Attributes:
      photos: paths; the last is the present one.
      box, margins: as typed.
      mask: what is painted, bool [h, w] at the size of the browser's canvas; None: nothing.
    """

    photos: list[str]
    box: str = ""
    margins: str = ""
    mask: np.ndarray | None = None


class Drafts:
    """A folder of drafts, one for each tab of a browser; those of a week ago are removed.

    Args:
      folder: made with the first draft.
    """

    def __init__(self, folder: str | os.PathLike):
        self.folder = Path(folder)
        for path in self.folder.glob("*"):
            if path.stat().st_mtime < time.time() - _KEPT:
                path.unlink(missing_ok=True)

    def keep(self, name: str, draft: Draft) -> None:
        """Writes a draft; one without a proper name is not kept."""
        if not _NAME.fullmatch(name):
            return
        self.folder.mkdir(parents=True, exist_ok=True)
        about = {"photos": draft.photos, "box": draft.box, "margins": draft.margins}
        with replacing(self._mask(name)) as temporary:
            mask = np.zeros((1, 1), bool) if draft.mask is None else draft.mask
            Image.fromarray(mask).save(temporary, format="png")
        write_atomically(self.folder / f"{name}.json", json.dumps(about).encode())

    def read(self, name: str) -> Draft | None:
        """The draft of this name, if there is one and its photos still are."""
        if not _NAME.fullmatch(name):
            return None
        try:
            draft = Draft(**json.loads((self.folder / f"{name}.json").read_text()))
            mask = np.asarray(Image.open(self._mask(name)))
        except (OSError, ValueError, TypeError):
            return None
        if not draft.photos or not all(Path(photo).is_file() for photo in draft.photos):
            return None
        return dataclasses.replace(draft, mask=mask if mask.any() else None)

    def _mask(self, name: str) -> Path:
        return self.folder / f"{name}.png"
