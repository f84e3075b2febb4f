"""The studio without a browser: jobs, history, and that the page makes what the command makes."""

import importlib.util
import json
import shlex
import subprocess
import sys
import threading
import time
import urllib.request
import zipfile

import numpy as np
import pytest
import torch
from PIL import Image
from recorded import GOLDEN, OFFICIAL

from maskgit_pt import editing, sample
from maskgit_pt.imagenet import classes_of
from maskgit_pt.model_settings import ModelSettings
from maskgit_pt.studio import __main__ as program
from maskgit_pt.studio import demo, engine, pictures

# Gradio takes seconds to import, so tests do that, and not the collection of them.
pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("gradio") is None, reason="the extra 'demo' is not installed"
)
MODELS = ModelSettings(
    model=str(OFFICIAL / "tiny_transformer_checkpoint"),
    tokenizer=str(OFFICIAL / "tiny_tokenizer_checkpoint"),
    device="cpu",
    threads=1,
)
PHOTO = GOLDEN / "photo.jpg"


@pytest.fixture
def page(tmp_path):
    """The page with the tiny networks, not served; everything that is made goes to tmp_path."""
    asked = program.StudioSettings(output=str(tmp_path / "studio"))
    return program.make_page(MODELS, asked, "")


def wait_for(condition):
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def run(page, job, title="test", guesses=True):
    return list(page.run(job, title, guesses))


def files(folder, suffix=".png"):
    return {p.name: p.read_bytes() for p in folder.iterdir() if p.suffix == suffix}


def same_by_command(command, tmp_path, monkeypatch):
    """The images that a command of the history makes."""
    monkeypatch.chdir(tmp_path)
    program_name, *arguments = shlex.split(command)
    assert program_name == "maskgit-sample"
    monkeypatch.setattr("sys.argv", [program_name, *arguments])
    assert sample.cli() == 0
    output = next(a.partition("=")[2] for a in arguments if a.startswith("--output="))
    return files(tmp_path / output)


@pytest.mark.parametrize("decoding", [{}, {"sampler": "halton", "steps": 3}])
def test_generates_what_the_command_generates(page, tmp_path, monkeypatch, decoding):
    job = page.job(3, 2, 7, {"sampler": "official", "steps": 4} | decoding)
    updates = run(page, job)
    entry = updates[-1][2]
    assert len(entry.images) == 2 and updates[0][2] is None
    steps = job.decoding["steps"] * 2
    assert len(entry.steps) == steps and updates[0][1] == f"step 1 of {steps}"
    made = files(entry.folder)
    assert same_by_command(entry.command, tmp_path, monkeypatch) == made
    code = {}
    exec(entry.python, code)
    png = np.asarray(Image.open(entry.images[1]))
    ours = (code["images"][1].permute(1, 2, 0) * 255).round().numpy()
    np.testing.assert_array_equal(ours, png)


def edit_values(page, tab):
    return [component.value for component in tab.controls.components]


def edit(page, photo, monkeypatch, painted=None, box="", margins=""):
    """Calls the edit tab as the page does; returns the entry."""
    from maskgit_pt.studio import edit_tab
    from maskgit_pt.studio import page as pages

    made = []
    monkeypatch.setattr(edit_tab, "EditTab", _noting(edit_tab.EditTab, made))
    monkeypatch.setattr(pages, "EditTab", edit_tab.EditTab)
    page.build()
    tab = made[0]
    job = tab._job(str(photo), painted, box, margins, 2, 2, 5, edit_values(page, tab))
    return run(page, job)[-1][2]


def _noting(cls, made):
    class Noting(cls):
        def __init__(self, *arguments):
            super().__init__(*arguments)
            made.append(self)

    return Noting


@pytest.mark.parametrize("how", ["painted", "box", "margins"])
def test_edits_what_the_command_edits(page, tmp_path, monkeypatch, how):
    """A large photo that a camera has turned: nothing outside the blend changes."""
    photo = tmp_path / "turned.jpg"
    exif = Image.Exif()
    exif[0x0112] = 6  # orientation
    Image.open(PHOTO).resize((180, 120)).save(photo, exif=exif)
    layer = Image.new("RGBA", (60, 90))  # as the browser gives it, at half of the photo's size
    layer.paste((255, 0, 0, 255), (20, 40, 24, 44))
    given = {
        "painted": {"painted": {"layers": [layer]}},
        "box": {"box": "80, 40, 8, 8"},
        "margins": {"margins": "0,0,12,0"},
    }[how]
    entry = edit(page, photo, monkeypatch, **given)
    made = {name: data for name, data in files(entry.folder).items() if name.startswith("class")}
    again = same_by_command(entry.command, tmp_path, monkeypatch)
    assert {k: v for k, v in again.items() if k in made} == made and len(made) == 2
    before = editing.as_picture(photo)
    after = np.asarray(Image.open(entry.images[0]))
    assert before.shape == (180, 120, 3)
    assert after.shape == ((192 if how == "margins" else 180), 120, 3)
    # Outside the square that the model sees.
    np.testing.assert_array_equal(after[:20], before[:20])
    if how != "margins":
        np.testing.assert_array_equal(after[160:], before[160:])
        assert (after != before).any()
    other = np.asarray(Image.open(entry.images[1]))
    assert (after != other).any()  # variations


def test_cancel_and_time_limit(page):
    job = page.job(1, 4, 0, {"sampler": "official", "steps": 16})
    updates = []
    for update in page.run(job, "test", False):
        updates.append(update)
        page.engine.cancel(str(page.history.folder / "0009"))  # another job
        if len(updates) == 2:
            page.engine.cancel(job.asked.output)
    assert updates[-1][1] == "cancelled" and len(updates) < 10
    assert page.history.entries() == []
    page.engine.time_limit = 0.0
    job = page.job(1, 4, 0, {"sampler": "official", "steps": 16})
    assert "the limit for one job" in run(page, job)[-1][1]
    page.engine.time_limit = 60.0
    job = page.job(1, 1, 0, {"sampler": "official", "steps": 2})
    assert run(page, job)[-1][2] is not None  # works again


def test_a_job_goes_on_when_nobody_watches(page):
    job = page.job(1, 1, 0, {"sampler": "official", "steps": 4})
    watching = page.run(job, "watched by nobody", True)
    next(watching)
    watching.close()  # a tab that was reloaded
    wait_for(page.history.entries)
    (entry,) = page.history.entries()
    assert entry.title == "watched by nobody" and len(entry.images) == 1 and len(entry.steps) == 4


def test_jobs_wait_for_each_other(page):
    jobs = [page.job(i, 1, 0, {"sampler": "official", "steps": 3}) for i in range(3)]
    done = []
    threads = [threading.Thread(target=lambda j=j: done.append(run(page, j)[-1])) for j in jobs]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(done) == 3 and all(entry is not None for _, _, entry in done)
    assert len(page.history.entries()) == 3


def test_a_waiting_job_is_cancelled_at_once(page, monkeypatch):
    first, second = (page.job(1, 1, 0, {"sampler": "official", "steps": 4}) for _ in range(2))
    held, decode = threading.Event(), page.engine.model.tokens_to_images
    monkeypatch.setattr(
        page.engine.model, "tokens_to_images", lambda *args: held.wait(60) and decode(*args)
    )
    threads = [threading.Thread(target=run, args=(page, first))]
    threads[0].start()
    wait_for(lambda: page.engine.busy)
    answer = []
    threads += [threading.Thread(target=lambda: answer.extend(run(page, second)))]
    threads[1].start()
    wait_for(lambda: second.asked.output in page.engine._jobs)
    page.engine.cancel(second.asked.output)
    threads[1].join(60)
    assert answer == [(None, "cancelled", None)] and page.engine.busy
    held.set()
    threads[0].join(60)
    wait_for(lambda: not page.engine.busy)
    assert [str(entry.folder) for entry in page.history.entries()] == [first.asked.output]
    wait_for(lambda: len(list(page.history.folder.iterdir())) == 1)  # the other's is gone


def test_too_many_jobs_are_refused(page, monkeypatch):
    import gradio as gr

    monkeypatch.setattr(engine, "MAX_JOBS", 0)
    with pytest.raises(gr.Error, match="0 jobs wait; accepted: at most 0"):
        run(page, page.job(1, 1, 0, {"sampler": "official", "steps": 2}))
    assert not any(page.history.folder.iterdir())


def test_history_survives(page, tmp_path):
    run(page, page.job(1, 1, 0, {"sampler": "official", "steps": 2}), "first")
    (page.history.folder / "0002").mkdir()  # a job whose server was killed
    again = program.make_page(MODELS, program.StudioSettings(output=str(page.history.folder)), "")
    assert [entry.title for entry in again.history.entries()] == ["first"]
    assert again.history.new_folder().name == "0003"
    archive = again.history.download(again.history.entries()[0])
    names = zipfile.ZipFile(archive).namelist()
    assert "maskgit_0001/class0001_000000.png" in names and "maskgit_0001/settings.json" in names
    with pytest.raises(ValueError, match="no entry"):
        again.history.entry(tmp_path)


@pytest.mark.parametrize(
    "change, message",
    [
        ({"count": 99}, "images is 99; accepted: 1 to 16"),
        ({"label": None}, "no class is chosen"),
    ],
)
def test_wrong_input_is_one_line(page, change, message):
    given = {"label": 1, "count": 1, "seed": 0, "decoding": {}} | change
    with pytest.raises(ValueError, match=message):
        page.job(**given)


def test_wrong_settings_are_one_line(page):
    import gradio as gr

    with pytest.raises(gr.Error) as caught:
        run(page, page.job(1, 1, 0, {"sampler": "official", "steps": 99}))
    assert "steps is 99; accepted: 1 to 16" in str(caught.value) and "\n" not in str(caught.value)


def test_classes_are_found_by_name_id_and_wordnet_id():
    from maskgit_pt.studio.controls import class_choices

    choices = dict((number, text) for text, number in class_choices(classes_of(1000)))
    assert choices[90] == "90 · lorikeet · n01820546"
    assert class_choices(classes_of(10))[3] == ("class 3", 3)
    assert class_choices(classes_of(2, ["bag", "sandal"]))[1] == ("1 · sandal", 1)


def test_pictures():
    masks = torch.tensor([[[True, False], [False, False]]])
    (picture,) = pictures.guesses(masks, torch.ones(1, 3, 8, 8), 8)
    array = np.asarray(picture)
    assert array.shape[0] >= pictures.LEAST
    assert array[0, 0].tolist() != [255] * 3 and array[-1, -1].tolist() == [255] * 3
    grid = pictures.side_by_side([picture] * 3, 4)
    assert grid.width > 2 * picture.width


def test_usage(capsys):
    assert (
        program.command_line.run(program.main, program.FLAGS, program.PROGRAM, program.USAGE, [])
        == 2
    )
    assert "one of --model and --demo is needed" in capsys.readouterr().err


def test_a_missing_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "gradio", None)
    with pytest.raises(ImportError, match=r"gradio is missing; .*maskgit_pt\[demo\]"):
        program._check_gradio()


def test_the_demo_shows_how_far_its_training_is(tmp_path, monkeypatch, capsys):
    """While the model is trained a page tells of it; the second start trains nothing."""
    port = demo.free_port("127.0.0.1")
    code = """if True:
        import pathlib, sys, time
        folder = pathlib.Path(sys.argv[1].partition("=")[2])
        folder.mkdir()
        print("$ first command")
        for step in range(3):
            sys.stderr.write(f"\\r{step} of 3")
        print("\\nsecond", flush=True)
        while not (folder / "seen").exists():
            time.sleep(0.01)
        (folder / "report.json").write_text("{}")
    """
    start = subprocess.Popen

    def stand_in(command, **options):
        assert command[:5] == [sys.executable, "-P", "-u", "-m", "train.digits"]
        return start([sys.executable, "-u", "-c", code, command[5]], **options)

    monkeypatch.setattr(demo.subprocess, "Popen", stand_in)
    seen = []

    def look():
        url = f"http://127.0.0.1:{port}"
        while not seen or "second" not in seen[-1]["lines"]:
            try:
                seen.append(json.load(urllib.request.urlopen(f"{url}/waiting.json")))
            except OSError:
                time.sleep(0.01)
        seen.append(urllib.request.urlopen(url).read().decode())
        (tmp_path / "out" / "demo" / "seen").touch()

    threading.Thread(target=look).start()
    folder = demo.model(tmp_path / "out", "127.0.0.1", port)
    assert folder == tmp_path / "out" / "demo"
    assert seen[-2]["lines"] == ["$ first command", "2 of 3", "second"]
    assert "waiting.json" in seen[-1] and "$ first command" in capsys.readouterr().out
    monkeypatch.setattr(demo.subprocess, "Popen", None)
    assert demo.model(tmp_path / "out", "127.0.0.1", port) == folder
    assert demo.free_port("127.0.0.1") == port  # given back


def test_a_demo_that_cannot_be_trained_is_one_line(tmp_path, monkeypatch):
    start = subprocess.Popen
    code = [sys.executable, "-c", "raise SystemExit(1)"]
    monkeypatch.setattr(demo.subprocess, "Popen", lambda command, **options: start(code, **options))
    with pytest.raises(ValueError, match="could not be trained"):
        demo.model(tmp_path, "127.0.0.1", demo.free_port("127.0.0.1"))


def test_next_seed():
    from maskgit_pt.studio import view

    assert view.next_seed(5, True) == 5
    assert view.next_seed(5, False) != view.next_seed(5, False)


def test_a_model_without_classes_has_nothing_to_choose():
    from maskgit_pt.studio.controls import class_choices, class_search

    assert class_choices(classes_of(0)) == [("this model has no classes", 0)]
    assert (
        class_search(classes_of(0)).interactive is False and class_search(classes_of(3)).interactive
    )
