import errno
import os
from pathlib import Path

import pytest

from maskgit_pt.files import write_atomically
from maskgit_pt.launch import Processes
from train.run.lock import LOCK_NAME, claim

ALONE = Processes(alone=True)


def test_one_training_at_a_time(tmp_path):
    run = tmp_path / "runs" / "a"
    with claim(run, ALONE):
        with pytest.raises(ValueError, match="runs/a: process [0-9]+ on .* is training there"):
            with claim(run, ALONE, seconds=0.1):
                pass
    with claim(run, ALONE, seconds=0):
        pass


def test_a_full_disk_is_named(tmp_path, monkeypatch):
    def full(_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left") as error:
        with claim(tmp_path, ALONE):
            pass
    assert error.value.filename == str(tmp_path / LOCK_NAME)


def test_a_read_only_disk_is_told_of_the_file_itself(tmp_path, monkeypatch):
    def read_only(*_, **__):
        raise OSError(errno.EROFS, "Read-only file system", "a temporary name")

    monkeypatch.setattr(Path, "unlink", read_only)
    monkeypatch.setattr("builtins.open", read_only)
    with pytest.raises(OSError, match="Read-only") as error:
        write_atomically(tmp_path / "a", b"")
    assert error.value.filename == str(tmp_path / "a")


def test_a_file_is_no_run(tmp_path):
    (tmp_path / "a").write_text("")
    with pytest.raises(NotADirectoryError, match="a is a file; accepted: a folder"):
        with claim(tmp_path / "a", ALONE):
            pass
