"""What README and docs tell people to type works: every command parses, and those that convert, generate
and edit run, on small networks under the names that the pages use."""

import configparser
import importlib
import json
import re
import runpy
import shlex
import shutil
from pathlib import Path

import ml_collections
import pytest
import torch
from PIL import Image

import convert
from maskgit_pt import VQVAE, Transformer
from maskgit_pt.configs import taming_vqgan_config, vqgan_config
from maskgit_pt.nets.besnier_transformer import BesnierTransformer
from train import __main__ as train_command
from train import settings

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
RUN = ["README.md", "convert.md", "generating.md", "editing.md"]  # whose commands and code run
# They have tests of their own.
NEEDS_MORE = ("maskgit-parity", "maskgit-digits", "maskgit-demo", "maskgit-train")


def programs() -> dict[str, str]:
    """Installed scripts: name -> "module:function"."""
    parser = configparser.ConfigParser()
    parser.read(ROOT / "setup.cfg")
    lines = parser["options.entry_points"]["console_scripts"].split("\n")
    return dict(re.split(r"\s*=\s*", line) for line in lines if line)


def blocks(page: Path, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", page.read_text(), re.M | re.S)


def commands(page: Path) -> list[list[str]]:
    """The project's commands on a page, each as a list of words, with torchrun and the like left out."""
    found = []
    for block in blocks(page, "sh"):
        for line in block.replace("\\\n", " ").splitlines():
            words = shlex.split(line, comments=True)
            for start, word in enumerate(words):
                if word in programs():
                    end = next((i for i, w in enumerate(words) if i > start and w in "&&;|"), None)
                    found.append(words[start:end])
    return found


def flag_values(program: str, arguments: list[str]):
    module = importlib.import_module(programs()[program].partition(":")[0])
    if module is train_command:
        return module.make_flags(arguments)
    if program == "maskgit-parity" and arguments[:1] in (["record"], ["check"]):
        from parity.packs import command

        return {"record": command.RECORD, "check": command.CHECK}[arguments[0]]
    return module.FLAGS


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_commands_parse(page):
    for program, *arguments in commands(page):
        arguments = [re.sub(r"=\$\w+", "=best", word) for word in arguments]  # of a loop in sh
        if program == "maskgit-train":
            arguments = settings.with_recipe_files(arguments)
            settings.check_arguments(arguments)
        values = flag_values(program, arguments)
        values.unparse_flags()
        try:
            rest = values([program, *arguments])[1:]
        finally:
            values.unparse_flags()
        assert program in ("maskgit-export", "maskgit-plot", "maskgit-parity") or not rest, rest


def test_a_wrong_flag_is_noticed():
    values = flag_values("maskgit-sample", [])
    with pytest.raises(Exception, match="no_such_flag"):
        values(["maskgit-sample", "--no_such_flag=1"])


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page):
    text = re.sub(r"^```.*?^```", "", page.read_text(), flags=re.M | re.S)
    for target in re.findall(r"\]\(([^)#\s]+)[^)]*\)", text):
        if "://" not in target:
            assert (page.parent / target).exists(), f"{page.name}: {target}"


@pytest.fixture(scope="module")
def files(tmp_path_factory) -> Path:
    """A folder with small networks under the names that the pages use, for 64 px and 1000 classes."""
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("files")
    config = vqgan_config.get_config()
    config.update(image_size=64)
    config.vqvae.update(filters=32, num_res_blocks=1, channel_multipliers=[1] * 5, embedding_dim=8)
    VQVAE(config).save_pretrained(folder / "tokenizer")
    small = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 16}
    Transformer(2025, max_position_embeddings=17, intermediate_size=32, **small).save_pretrained(
        folder / "transformer"
    )
    BesnierTransformer(num_tokens=16, intermediate_size=32, **small).save_pretrained(
        folder / "besnier"
    )
    tree = taming_vqgan_config.get_config().to_dict()
    tree["model"]["params"]["ddconfig"] |= {"ch": 32, "ch_mult": [1] * 5, "num_res_blocks": 1}
    tree["model"]["params"]["ddconfig"] |= {"z_channels": 8, "resolution": 64}
    tree["model"]["params"]["embed_dim"] = 8
    taming = taming_vqgan_config.build(ml_collections.ConfigDict(tree))
    taming.save_pretrained(folder / "taming")
    (folder / "pretrained_maskgit" / "MaskGIT").mkdir(parents=True)
    for source, target, to in (
        ("transformer", "maskgit_imagenet256_checkpoint", "flax"),
        ("transformer", "maskgit_imagenet256.ckpt", "hmorimitsu"),
        ("tokenizer", "tokenizer_imagenet256_checkpoint", "flax"),
        ("tokenizer", "maskgit-vqgan-imagenet-f16-256", "open-muse"),
        ("besnier", "pretrained_maskgit/MaskGIT/MaskGIT_ImageNet_256.pth", "besnier"),
        ("taming", "pretrained_maskgit/VQGAN", "taming"),
    ):
        convert.convert(folder / source, folder / target, to=to)
    return folder


@pytest.fixture
def in_files(files, tmp_path, monkeypatch) -> Path:
    """The working folder of one page: a copy of `files`, and the repository's photo."""
    folder = shutil.copytree(files, tmp_path / "here")
    shutil.copytree(
        ROOT / "tests" / "golden",
        folder / "tests" / "golden",
        ignore=lambda path, names: [n for n in names if n != "photo.jpg"],
    )
    monkeypatch.chdir(folder)
    return folder


@pytest.mark.parametrize("page", [page for page in PAGES if page.name in RUN], ids=lambda p: p.name)
def test_commands_run(page, in_files, monkeypatch, capsys):
    for kind in ("maskgit", "tokenizer"):  # pages other than the first begin with converted folders
        run(
            "maskgit-convert",
            [f"--input={kind}_imagenet256_checkpoint", f"--output={kind}256"],
            monkeypatch,
        )
    done = 0
    for program, *arguments in commands(page):
        if program not in NEEDS_MORE:
            output = [a.partition("=")[2] for a in arguments if a.startswith("--output=")]
            if program == "maskgit-convert" and output and (in_files / output[0]).exists():
                arguments.append("--overwrite")
            assert run(program, arguments, monkeypatch) == 0, capsys.readouterr().err
            done += 1
    for code in blocks(page, "python"):
        exec(compile(code, page.name, "exec"), {})
        done += 1
    assert done >= 2


def test_training_on_my_images(in_files, monkeypatch, capsys):
    """Every command of docs/finetune.md, for two images a class at 64 px."""
    for kind in ("maskgit", "tokenizer"):
        source, target = f"--input={kind}_imagenet256_checkpoint", f"--output={kind}256"
        run("maskgit-convert", [source, target], monkeypatch)
    for number in range(4):
        folder = in_files / "my_images" / ("my_dog" if number % 2 else "my_cat")
        folder.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (70, 64), (60 * number, 90, 120)).save(folder / f"{number}.png")
    small = ["--config.image_size=64", "--config.num_train_steps=1", "--config.batch_size=2",
             "--config.precision=float32", "--config.compile=False", "--config.data.eval_share=0.5",
             "--config.data.num_workers=0", "--config.eval_show_num=1", "--threads=1"]  # fmt: skip
    changes = {
        "maskgit-tokenize": ["--image_size=64", "--workers=0"],
        "maskgit-train": small,
        "maskgit-export": ["--step=1"],
        "maskgit-sample": ["--steps=2", "--num_samples=2"],
    }
    for code in blocks(ROOT / "docs" / "finetune.md", "python"):
        exec(compile(code, "finetune.md", "exec"), {})
    for program, *arguments in commands(ROOT / "docs" / "finetune.md"):
        if program == "maskgit-demo":  # which calls the others, see tests/train/test_demo_own.py
            continue
        code = run(program, arguments + changes.get(program, []), monkeypatch)
        assert code == 0, capsys.readouterr().err
    assert "1000 classes go on, 2 are new (my_cat, my_dog)" in capsys.readouterr().err
    assert (in_files / "maskgit_mine_checkpoint").is_file()


def run(program: str, arguments: list[str], monkeypatch) -> int:
    monkeypatch.setattr("sys.argv", [program, *arguments])
    module, _, function = programs()[program].partition(":")
    return getattr(importlib.import_module(module), function)()


def house_example(number: int) -> dict:
    """Runs the example of a docs/house.md section: 0 sampler, 1 format, 2 network, 3 recipe."""
    scope = {"__name__": "house"}
    code = blocks(ROOT / "docs" / "house.md", "python")[number]
    exec(compile(code, "house.md", "exec"), scope)
    return scope


@pytest.mark.parametrize(
    "path", sorted((ROOT / "docs" / "miniature").glob("*.json")), ids=lambda p: p.name
)
def test_the_miniature_page_says_what_its_results_say(path):
    """Each finding's verdict on the page is the one in the raw results."""
    page = (ROOT / "docs" / "miniature.md").read_text()
    found = json.loads(path.read_text())
    assert found["findings"] and f"miniature/{path.stem}.png" in page
    for line in found["findings"]:
        seeds = f"{line['agreeing']} of {line['seeds']}"
        assert f"| {line['finding']} | {line['verdict']} | {seeds} |" in page


def test_the_sampler_of_the_house_works():
    from recorded import load_tiny

    from maskgit_pt import MaskGIT

    sampler = house_example(0)["RowsSampler"]
    model = MaskGIT(load_tiny("transformer"), load_tiny("tokenizer"))
    result = model.generate([1], sampler=sampler(steps=model.num_tokens), return_steps=True)
    for step, mask in enumerate(result.masks[0].flatten(1)):
        assert mask.tolist() == [False] * (step + 1) + [True] * (model.num_tokens - step - 1)


def test_the_format_of_the_house_works(tmp_path, monkeypatch):
    from recorded import load_tiny

    from convert import formats
    from convert.formats import recognise

    form = house_example(1)["FORMAT"]
    monkeypatch.setattr(recognise, "FORMATS", (*formats.FORMATS, form))
    monkeypatch.setitem(formats.BY_NAME, form.NAME, form)
    model = load_tiny("transformer")
    model.save_pretrained(tmp_path / "ours")
    convert.convert(tmp_path / "ours", tmp_path / "theirs.pth", to="blocks")
    theirs = torch.load(tmp_path / "theirs.pth", weights_only=True)
    assert "blocks.0.mlp.layer_output.weight" in theirs and len(theirs) == len(model.state_dict())
    heads = model.to_config()["num_attention_heads"]
    convert.convert(tmp_path / "theirs.pth", tmp_path / "back", num_heads=heads)
    back = Transformer.from_pretrained(tmp_path / "back")
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, back.state_dict()[name]), name
    theirs["head.extra"] = torch.zeros(1)
    torch.save(theirs, tmp_path / "theirs.pth")
    with pytest.raises(ValueError, match="head.extra"):
        convert.convert(tmp_path / "theirs.pth", tmp_path / "no", num_heads=heads)


def test_the_network_of_the_house_works(tmp_path, monkeypatch):
    from recorded import load_tiny

    from maskgit_pt import MaskGIT, networks, pipeline

    mixer, tokenizer = house_example(2)["Mixer"], load_tiny("tokenizer")
    codes = len(tokenizer.get_codebook_funct())
    torch.manual_seed(0)
    model = MaskGIT(mixer(codes, 5, 16), tokenizer)
    monkeypatch.setattr(pipeline, "TRANSFORMERS", [*networks.TRANSFORMERS, mixer])
    model.save_pretrained(tmp_path / "both")
    again = MaskGIT.from_pretrained(tmp_path / "both")
    for sampler in ("official", "halton"):
        how = {"steps": 4, "sampler": sampler, "guidance": 1.0, "seed": 3}
        assert torch.equal(model.generate([1], **how).tokens, again.generate([1], **how).tokens)


def test_the_recipe_of_the_house_works(tmp_path, capsys):
    from train.data.tokens import ShardWriter

    names = [f"class {number}" for number in range(200)]
    writer = ShardWriter(
        tmp_path / "tokens",
        grid=(4, 4),
        crops=1,
        codebook_size=1024,
        class_names=names,
        image_size=64,
        tokenizer="none",
    )
    writer.write(0, torch.zeros(200, 1, 16).int().numpy(), torch.arange(200).numpy())
    writer.finish(1)
    recipe = tmp_path / "birds.py"
    recipe.write_text(blocks(ROOT / "docs" / "house.md", "python")[3])
    arguments = [f"--config={recipe}", "--dry_run", f"--config.data.tokens={tmp_path / 'tokens'}"]
    assert train_command.cli(arguments) == 0, capsys.readouterr().err
    assert "transformer.num_embeds = 384" in capsys.readouterr().out
    assert train_command.cli([*arguments, "--config.num_clas=3"]) == 2


def test_the_tables_show_the_first_of_numbered_layers():
    tables = runpy.run_path(str(ROOT / "docs" / "tensor_tables.py"))
    for model_type, config in tables["published"]().values():
        text = tables["table"](tables["own_rows"](model_type, config), "ours")
        assert "layers.1." not in text and "TransformerLayer_1" not in text
        assert "layers.0." in text or model_type == "maskgit_vqvae"
