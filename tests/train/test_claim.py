import pytest

from maskgit_pt.launch import Processes
from train.run.lock import claim

ALONE = Processes(alone=True)


def test_one_training_at_a_time(tmp_path):
    run = tmp_path / "runs" / "a"
    with claim(run, ALONE):
        with pytest.raises(ValueError, match="runs/a: process [0-9]+ on .* is training there"):
            with claim(run, ALONE, seconds=0.1):
                pass
    with claim(run, ALONE, seconds=0):
        pass


def test_a_file_is_no_run(tmp_path):
    (tmp_path / "a").write_text("")
    with pytest.raises(NotADirectoryError, match="a is a file; accepted: a folder"):
        with claim(tmp_path / "a", ALONE):
            pass
