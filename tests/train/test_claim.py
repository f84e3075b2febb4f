import pytest

from train.run.lock import claim


def test_one_training_at_a_time(tmp_path):
    run = tmp_path / "runs" / "a"
    with claim(run):
        with pytest.raises(ValueError, match="runs/a: another process is training there"):
            with claim(run, seconds=0.1):
                pass
    with claim(run, seconds=0):
        pass


def test_a_file_is_no_run(tmp_path):
    (tmp_path / "a").write_text("")
    with pytest.raises(NotADirectoryError, match="a is a file; accepted: a folder"):
        with claim(tmp_path / "a"):
            pass
