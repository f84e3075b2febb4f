"""The demo on a folder of one's own classes, from weights of a toy."""

import json

import numpy as np
import pytest
import torch
from PIL import Image
from recorded import load_tiny
from test_demo import run_here

from maskgit_pt import Transformer
from train import demo
from train.demos import stages


@pytest.fixture
def weights(tmp_path):
    """Three known classes, 16 tokens."""
    tokenizer = load_tiny("tokenizer")
    tokenizer.save_pretrained(tmp_path / "tokenizer")
    codes = len(tokenizer.get_codebook_funct())
    torch.manual_seed(0)
    model = Transformer(codes + 4, hidden_size=16, num_hidden_layers=1, num_attention_heads=2,
                        intermediate_size=16, max_position_embeddings=17)  # fmt: skip
    model.class_names = ["cat", "dog", "bird"]
    model.save_pretrained(tmp_path / "model")
    return [f"--from={tmp_path / 'model'}", f"--tokenizer={tmp_path / 'tokenizer'}"]


def write_images(folder):
    rng = np.random.default_rng(0)
    for number in range(6):
        path = folder / ("dog", "my_hat")[number % 2] / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 255, (40, 36, 3), dtype=np.uint8)).save(path)


def test_a_folder_of_ones_own(weights, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(stages, "run", run_here)
    threads = torch.get_num_threads()
    write_images(tmp_path / "mine")
    command = [f"--data={tmp_path / 'mine'}", *weights, f"--output={tmp_path / 'demo'}", "--num_samples=10",
               "--config=num_train_steps=2,eval_every_steps=1,checkpoint_every_steps=1,batch_size=4,"
               "data.num_workers=0,eval_show_num=1,data.eval_share=0.4"]  # fmt: skip
    assert demo.cli(command) == 0, capsys.readouterr().err
    assert demo.cli(command) == 0  # everything is there
    torch.set_num_threads(threads)
    told = capsys.readouterr()
    assert "3 classes go on, 1 are new (my_hat)" in told.err
    assert told.out.count("$ maskgit-train") == 1
    report = json.loads((tmp_path / "demo" / "report.json").read_text())
    assert report["classes"] == ["dog", "my_hat"] and len(report["held_out_loss"]) == 2
    model = Transformer.from_pretrained(tmp_path / "demo" / "model")
    assert model.class_names == ["cat", "dog", "bird", "my_hat"]
    page = (tmp_path / "demo" / "index.html").read_text()
    assert page.count("data:image/png;base64,") == 3 and "my_hat" in page
    with np.load(tmp_path / "demo" / "samples" / "samples.npz") as file:
        assert file["arr_1"].tolist() == [1, 3] * 5


@pytest.mark.parametrize(
    "flags, message",
    [
        (["--data=nowhere"], "--data=nowhere; accepted: fashion, digits, or a folder"),
        (["--data=."], "a folder needs --from=WEIGHTS and --tokenizer"),
        (
            ["--data=.", "--minutes=5"],
            "--minutes is for --data=fashion or digits, not for a folder",
        ),
        (["--data=.", "--few=20"], "--few is for"),
        (["--data=.", "--processes=2"], "--processes is for"),
        (["--data=.", "--classifier_steps=9"], "--classifier_steps is for"),
        (["--data=.", "--files=x"], "--files is for"),
        (["--data=.", "--download"], "--download is for"),
        (["--data=.", "--tokenizer_config=seed=1"], "--tokenizer_config is for"),
        (["--data=digits", "--from=x"], "accepted: a folder for --from"),
    ],
)
def test_flags_that_do_not_go_together(flags, message, capsys):
    assert demo.cli(flags) == 2
    assert message in capsys.readouterr().err
