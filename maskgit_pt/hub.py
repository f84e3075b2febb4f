"""The Hugging Face hub: from a path or an id to a local path, and back to the hub."""

import os
import re
from pathlib import Path
from typing import Any

from huggingface_hub import ModelHubMixin

from maskgit_pt.layouts import CONFIG_NAME

WEIGHTS_NAME = "model.safetensors"
# "owner/name", then a folder or file in the repository, then "@" and a revision.
_ID = re.compile(
    r"(?P<repository>[\w.-]+/[\w.-]+)(?P<inside>(/[\w.-]+)*)(@(?P<revision>[\w./-]+))?", re.ASCII
)
_PARTS = ("", "transformer/", "tokenizer/")  # of our folders
_OURS = tuple(part + name for part in _PARTS for name in (CONFIG_NAME, WEIGHTS_NAME))
_SAFE = (CONFIG_NAME, "*.safetensors", "*.safetensors.index.json")
_OTHERS = (
    CONFIG_NAME, "*.bin", "*.bin.index.json", "*.pth", "*.pt", "*.ckpt", "*.yaml", "*.yml",
    "*_checkpoint", "*.msgpack",
)  # fmt: skip


def locate(
    source: str | os.PathLike,
    *,
    revision: str | None = None,
    token: str | bool | None = None,
    cache_dir: str | os.PathLike | None = None,
    local_files_only: bool = False,
    force_download: bool = False,
) -> Path:
    """Returns a local path: of a file or folder that is there, or of what it downloads from the hub.

    Args:
      source: a path, or a hub id: "owner/name", "owner/name/folder", "owner/name/folder/file.ckpt", each
        with "@revision" or without.
      revision: branch, tag or commit, for ids without one.
      token, cache_dir, local_files_only, force_download: as `huggingface_hub.snapshot_download`.

    Raises:
      FileNotFoundError: there is no such path, and the hub does not have it, or cannot be asked.
      ValueError: two revisions.
    """
    if not os.fspath(source):  # as a path it would be the working folder
        raise FileNotFoundError("the name of a model is empty; accepted: a path or a hub id")
    path = Path(source).expanduser()
    if path.exists():
        return path
    match = _ID.fullmatch(str(source))
    if not match or os.path.isabs(source):
        raise FileNotFoundError(f"{source}: no such folder or file")
    if revision and match["revision"] and revision != match["revision"]:
        raise ValueError(f"{source}: names a revision, and revision={revision!r} another")
    options = {
        "revision": match["revision"] or revision,
        "token": token,
        "cache_dir": cache_dir,
        "local_files_only": local_files_only,
        "force_download": force_download,
    }
    inside = match["inside"][1:]
    for patterns in (_OURS, _SAFE, _OTHERS):
        found = _download(source, match["repository"], inside, patterns, options) / inside
        if found.is_file() or _holds(found, patterns):
            return found
    raise FileNotFoundError(
        f"{source}: the repository holds no weights there{_what_it_holds(match['repository'], options)}"
    )


def is_id(source: str | os.PathLike) -> bool:
    """Whether it may be a hub id: not there as a path, and of its form."""
    return bool(_ID.fullmatch(str(source))) and not Path(source).expanduser().exists()


def _download(
    source: Any, repository: str, inside: str, patterns: tuple[str, ...], options: dict[str, Any]
) -> Path:
    import huggingface_hub
    from huggingface_hub import errors

    allowed = [f"{inside}/{pattern}" for pattern in patterns] + [inside] if inside else [*patterns]
    try:
        return Path(
            huggingface_hub.snapshot_download(repository, allow_patterns=allowed, **options)
        )
    except errors.RevisionNotFoundError:
        why = f"the repository has no revision {options['revision']}"
    except errors.GatedRepoError:
        why = "its owner grants access on request; log in with `hf auth login`"
    except errors.RepositoryNotFoundError:
        why = "the hub has no such repository, or it is private: log in with `hf auth login`"
    except errors.LocalEntryNotFoundError:
        why = "it is not in the local cache, and the Hugging Face hub cannot be reached or asked"
    except PermissionError as error:
        why = f"the cache {error.filename} cannot be written; HF_HOME names another folder"
    except Exception as error:  # the hub's client raises many more kinds
        text = " ".join(str(error).split())[:200]
        why = f"not to be had from the Hugging Face hub ({type(error).__name__}: {text})"
    raise FileNotFoundError(f"{source}: no such folder; as a hub id: {why}")


def _what_it_holds(repository: str, options: dict[str, Any]) -> str:
    """How its files go on in an error; "" if the hub does not tell, or may not be asked."""
    import huggingface_hub

    if options["local_files_only"]:
        return ""
    try:
        files = huggingface_hub.HfApi().list_repo_files(
            repository, revision=options["revision"], token=options["token"]
        )
    except Exception:  # no network, say: the error is about something else
        return ""
    shown = [name for name in files if name not in (".gitattributes", "README.md")]
    more = f" and {len(shown) - 10} more" * (len(shown) > 10)
    return (
        f"; it has {', '.join(shown[:10])}{more}. A file of it is {repository}/FILE"
        if shown
        else ""
    )


def _holds(folder: Path, patterns: tuple[str, ...]) -> bool:
    """Whether a folder has weights among the files that were asked for."""
    wanted = [pattern for pattern in patterns if not pattern.endswith((".json", ".yaml", ".yml"))]
    return folder.is_dir() and any(any(folder.glob(pattern)) for pattern in wanted)


def upload(path: str | os.PathLike, repository: str) -> str:
    """Uploads a folder or a file to a repository of the hub, made if missing; returns its address.

    Raises:
      OSError: the hub refuses it or cannot be reached; one line.
    """
    import huggingface_hub

    path, api = Path(path), huggingface_hub.HfApi()
    try:
        repository = api.create_repo(repository, exist_ok=True).repo_id
        if path.is_dir():
            return str(api.upload_folder(repo_id=repository, folder_path=path))
        return str(
            api.upload_file(repo_id=repository, path_or_fileobj=path, path_in_repo=path.name)
        )
    except Exception as error:  # the hub's client raises many kinds
        text = " ".join(str(error).split())[:200]
        raise OSError(
            f"{path} is made, but not uploaded to {repository}: {type(error).__name__} {text} "
            "(hf auth login sets a token)"
        ) from None


class HubMixin(ModelHubMixin, library_name="maskgit_pt", tags=["maskgit", "image-generation"]):
    """Saving to a folder and to the hub; the class brings `_save_pretrained`."""

    def save_pretrained(
        self,
        folder: str | os.PathLike,
        *,
        metadata: dict[str, str] | None = None,
        push_to_hub: bool = False,
        repo_id: str | None = None,
        **hub: Any,
    ) -> Any:
        """Writes the model into `folder`, made if missing; each file appears whole or not at all.

        Args:
          folder: where to. A model of the same type that is there is replaced, other files stay.
          metadata: strings to store in the header of the weights.
          push_to_hub: upload it afterwards.
          repo_id: "owner/name"; None: the folder's name.
          **hub: as `huggingface_hub.ModelHubMixin.push_to_hub`: `token`, `private`, `branch`, ...

        Returns:
          The address of the upload, if there was one.

        Raises:
          ValueError, NotADirectoryError: the folder holds something else; see `files.check_destination`.
        """
        folder = Path(folder)
        self._save_pretrained(folder, metadata)
        card = folder / "README.md"
        if "model_card_kwargs" in hub and not card.exists():  # on the way to the hub
            self.generate_model_card(**(hub["model_card_kwargs"] or {})).save(card)
        if push_to_hub:
            return self.push_to_hub(repo_id or folder.name, **hub)
        return None

    def _save_pretrained(
        self, save_directory: Path, metadata: dict[str, str] | None = None
    ) -> None:
        raise NotImplementedError
