import json
import math
import re

import pytest
from training import RECIPE, ROOT, tiny_config

from maskgit_pt.command_line import UsageError
from train import __main__ as program
from train import loop, settings
from train.configs import defaults, mage_defaults, tokenizer_defaults
from train.tasks import autoencoding, mage, masked_tokens, networks


@pytest.mark.parametrize(
    "flag, hint",
    [
        ("--config.bach_size=3", "--config.batch_size"),
        ("--config.optimizer.l=3", "--config.optimizer.lr"),
        ("--config.lr=3", "--config.optimizer.lr"),
        ("--noconfig.complie", "--config.compile"),
    ],
)
def test_a_typo_gets_a_suggestion(flag, hint, capsys):
    assert program.cli([f"--config={RECIPE}", "--output=x", flag]) == 2
    error = capsys.readouterr().err
    assert "has no such setting" in error and f"did you mean {hint}?" in error
    assert error.count("\n") == 1


def test_no_such_recipe(capsys):
    assert program.cli(["--config=nowhere.py", "--output=x"]) == 1
    assert (
        "--config=nowhere.py: no such recipe or file; accepted: besnier256,"
        in capsys.readouterr().err
    )


def test_wrong_type_and_missing_flags(capsys):
    assert program.cli([f"--config={RECIPE}", "--output=x", "--config.batch_size=many"]) == 2
    assert program.cli([f"--config={RECIPE}"]) == 2
    assert program.cli(["--output=x"]) == 2
    assert program.cli([]) == 2
    assert "Traceback" not in capsys.readouterr().err


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"model": "gpt"}, "config.model is 'gpt'; accepted: maskgit_transformer"),
        ({"precision": "float16"}, "config.precision is 'float16'"),
        ({"label_drop_rate": 1.5}, "config.label_drop_rate is 1.5; accepted: 0 to 1"),
        ({"batch_size": 0}, "config.batch_size is 0; accepted: 1 or more"),
        ({"optimizer.lr": -1.0}, "config.optimizer.lr is -1.0; accepted: 0 or more"),
        ({"optimizer.lr_schedule": "step"}, "config.optimizer.lr_schedule is 'step'"),
    ],
)
def test_values_out_of_range(changes, message):
    with pytest.raises(ValueError, match=message.replace(".", r"\.")):
        masked_tokens.check(tiny_config("x", **changes))


@pytest.mark.parametrize(
    "check, known",
    [
        (masked_tokens.check, defaults),
        (mage.check, mage_defaults),
        (autoencoding.check, tokenizer_defaults),
    ],
)
def test_every_number_has_a_range(check, known):
    """-1e9 and NaN are accepted for no setting, and the error names the field."""
    free = {"sampling.steps", "sampling.choice_temperature", "sampling.guidance"}  # the sampler's
    for name, value in settings.flatten(known.get_config()).items():
        if isinstance(value, bool | str) or name in free:
            continue
        wrong = {float: (-1e9, math.nan), int: (-(10**9),), tuple: ((-1,), ())}
        for bad in wrong[type(value)]:
            config = known.get_config()
            config.update_from_flattened_dict({name: bad})
            with pytest.raises(ValueError, match=rf"^config\.{re.escape(name)} is .*; accepted: "):
                check(config)


@pytest.mark.parametrize("value", ["nan", "-1", "1e300"])
def test_a_time_limit_out_of_range(value, capsys):
    flags = [f"--config={RECIPE}", "--output=x", f"--config.timeout_minutes={value}"]
    assert program.cli(flags) == 1
    error = capsys.readouterr().err
    assert "config.timeout_minutes is" in error and "accepted: 0.05 to 1e+06" in error


def test_a_recipe_with_a_field_that_nothing_reads():
    config = tiny_config("x")
    with config.unlocked():
        config.optimizer.weigth_decay = 0.1
    with pytest.raises(ValueError, match="weigth_decay; did you mean optimizer.weight_decay"):
        masked_tokens.check(config)


def test_runs_of_earlier_versions_go_on(tmp_path):
    old = tiny_config("x").to_dict()
    del old["mask_order"]
    (tmp_path / settings.FILE_NAME).write_text(json.dumps(old))
    settings.compare(tiny_config("x"), tmp_path)
    with pytest.raises(ValueError, match="this run has mask_order 'random', now it is 'halton'"):
        settings.compare(tiny_config("x", mask_order="halton"), tmp_path)


def test_a_run_keeps_its_settings(tmp_path):
    settings.keep(tiny_config("x"), tmp_path)
    assert settings.read(tmp_path).to_dict() == tiny_config("x").to_dict()
    settings.keep(tiny_config("y", num_train_steps=99, log_every_steps=7), tmp_path)
    with pytest.raises(ValueError, match="this run has optimizer.lr 0.001, now it is 0.5"):
        settings.keep(tiny_config("x", **{"optimizer.lr": 0.5}), tmp_path)


@pytest.mark.parametrize(
    "recipe", ["official256", "official512", "besnier256", "besnier512", "best256", "mage256"]
)
def test_a_recipe_states_its_cost(recipe):
    path = ROOT / "train" / "configs" / f"{recipe}.py"
    config = settings.load_file(str(path))
    work = networks.work_per_image(config, 1024, (config.image_size // 16) ** 2)
    work *= config.num_train_steps * config.batch_size
    text = " ".join(path.read_text().split())
    assert f"--config={recipe} " in text and "Expected: " in text
    told = re.search(r"are (\S+) EFLOP: (\S+) A100-hours at half of the peak rate", text)
    exaflop, hours = (float(number.replace(",", "")) for number in told.groups())
    assert exaflop == pytest.approx(work / 1e18, abs=0.6)
    assert hours == pytest.approx(work / 156e12 / 3600, abs=0.6)


def test_all_recipes_are_valid():
    paths = [p for p in (settings.Path(program.__file__).parent / "configs").glob("*.py")]
    recipes = [p for p in paths if "defaults" not in p.name and p.name != "__init__.py"]
    assert len(recipes) >= 2
    for path in recipes:
        config = settings.load_file(str(path))
        if config.task == "autoencoding":
            autoencoding.check(config)
        else:
            loop.task_class(config).check(config)
        opening = path.read_text().split('"""')[1]
        for what in ("maskgit-train --config=", "Cost:", "Expected:"):
            assert what in opening.replace(
                "torchrun --nproc_per_node=8 --no-python maskgit-train", "maskgit-train"
            ), path


def test_usage_error_is_raised_before_anything_else():
    with pytest.raises(UsageError):
        settings.check_arguments([f"--config={RECIPE}", "--config.nothing=1"])


@pytest.mark.parametrize("argv", [["--config=best256", "--x=1"], ["--config", "best256", "--x=1"]])
def test_recipes_have_names(argv):
    file = str(settings.RECIPES / "best256.py")
    found = settings.with_recipe_files(argv)
    assert "".join(found) == "".join(argv).replace("best256", file)
    settings.check_arguments(found)
    assert "best256" in settings.recipes() and "defaults" not in settings.recipes()


def test_a_file_goes_before_a_recipe_of_that_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "best256").write_text("")
    assert settings.with_recipe_files(["--config=best256"]) == ["--config=best256"]
