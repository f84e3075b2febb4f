"""Files of Halton-MaskGIT and LlamaGen: in, out, wrong ones; and Di[M]O's and Di4C's, which are Besnier's."""

import json
import pickle

import pytest
import torch
from halton_files import FOLDER, published_bytes, recorded
from recorded import GOLDEN, assert_close
from wrong_files import FAULTS, Attack, mutated, refused

import convert
from convert import formats
from convert.checkpoint import Given
from convert.formats import relatives
from convert.formats.recognise import open_checkpoint, recognise
from convert.formats.state_dicts import StateDict
from convert.verification import ledger
from maskgit_pt import MaskGIT
from maskgit_pt.nets.besnier_transformer import BesnierTransformer
from maskgit_pt.nets.halton_transformer import PUBLISHED_HEADS
from maskgit_pt.networks import TOKENIZERS, TRANSFORMERS
from maskgit_pt.pretrained import load_any

# File -> format, attention heads, wrapper.
FILES = {
    "transformer_A.pth": ("halton", 4, "model_state_dict"),
    "transformer_B.pth": ("halton", 5, "model_state_dict"),
    "vq_tiny.pt": ("llamagen", None, "model"),
}
EACH = pytest.mark.parametrize("name", FILES)
MANIFEST = json.loads((FOLDER / "manifest_transformer.json").read_text())


@pytest.fixture(scope="module")
def published(tmp_path_factory):
    """A folder with the files as their authors save them."""
    folder = tmp_path_factory.mktemp("halton")
    for name in FILES:
        (folder / name).write_bytes(published_bytes(name))
    return folder


def load(path) -> dict:
    return torch.load(path, weights_only=True)


@EACH
def test_there_and_back(published, tmp_path, name):
    form, heads, wrapper = FILES[name]
    summary = convert.convert(published / name, tmp_path / "ours", num_heads=heads)
    assert summary.input_format == form and summary.verified
    assert not any("optimizer" in warning for warning in summary.warnings)  # there is none in it
    convert.convert(tmp_path / "ours", tmp_path / "back", to=form)
    before, after = load(published / name), load(tmp_path / "back")
    assert list(before) == list(after)
    for key, value in before.items():
        if key not in (wrapper, "optimizer_state_dict"):
            assert after[key] == value
    before, after = before[wrapper], after[wrapper]
    assert list(before) == list(after)
    assert all(torch.equal(before[key], after[key]) for key in before)
    if form == "halton":  # tied, as their code has it: the file has the numbers once
        assert after["head.weight"].data_ptr() == after["tok_emb.weight"].data_ptr()


@EACH
@pytest.mark.parametrize("layout", ["bare", "legacy", "module.", "_orig_mod.", "inside"])
def test_other_layouts(published, tmp_path, name, layout):
    form, heads, wrapper = FILES[name]
    state = load(published / name)[wrapper]
    file = tmp_path / "file"
    if layout == "inside":
        if form != "halton":
            return
        renamed = {key.replace("layers.", "layers._orig_mod."): v for key, v in state.items()}
        torch.save({wrapper: renamed}, file)
    elif layout == "legacy":
        torch.save({wrapper: state}, file, _use_new_zipfile_serialization=False)
    elif layout == "bare":
        torch.save(state, file)
    else:
        torch.save({wrapper: {layout + key: value for key, value in state.items()}}, file)
    assert recognise(file).format.NAME == form
    expected = convert.load_checkpoint(published / name, heads)
    model_type, config, ours = convert.load_checkpoint(file, heads)
    assert (model_type, config) == expected[:2]
    assert all(torch.equal(ours[key], value) for key, value in expected[2].items())


@EACH
def test_safetensors(published, tmp_path, name):
    import safetensors.torch

    form, heads, wrapper = FILES[name]
    convert.convert(published / name, tmp_path / "out", to=form, num_heads=heads, safetensors=True)
    written, state = safetensors.torch.load_file(tmp_path / "out"), load(published / name)[wrapper]
    assert state.keys() - written.keys() <= {"head.weight"}
    assert written and all(torch.equal(written[key], state[key]) for key in written)
    assert recognise(tmp_path / "out").format.NAME in (form, "safetensors")
    convert.load_checkpoint(tmp_path / "out", heads)


@pytest.mark.parametrize("file", MANIFEST)
def test_full_size_names(file, monkeypatch):
    """Names, shapes and order are those of the published files; all that they do not tell is known."""
    shapes = {name: tuple(shape) for name, shape in MANIFEST[file].items()}
    without = {name: shape for name, shape in shapes.items() if name != "head.weight"}
    heads, notes = formats.BY_NAME["halton"].heads(without, {}, Given())
    assert heads == PUBLISHED_HEADS[shapes["tok_emb.weight"][1]] and len(notes) == 1
    model_type, config = convert.infer.infer_config(without, heads)
    assert model_type == "halton_transformer"
    rows = formats.BY_NAME["halton"].rows_to_write(model_type, config)
    state = {name: torch.empty(without[name], device="meta") for name in rows}
    written = formats.BY_NAME["halton"].wrap(state, "model_state_dict", {})["model_state_dict"]
    assert [(name, tuple(t.shape)) for name, t in written.items()] == list(shapes.items())
    ranges = dict.fromkeys(rows, (0.0, 0.0))
    text = ledger.describe(model_type, config, ranges, "float32")
    assert (file.startswith("xlarge")) == text.startswith("no published"), text
    assert file.startswith("xlarge") or text.endswith(f"Halton-MaskGIT {file}")


def test_full_size_tokenizer_names():
    shapes = json.loads((FOLDER / "manifest_vq16.json").read_text())["model"]
    model_type, config = convert.infer.infer_config({name: tuple(s) for name, s in shapes.items()})
    assert model_type == "llamagen_vq"
    assert list(formats.BY_NAME["llamagen"].rows_to_write(model_type, config)) == list(shapes)
    text = ledger.describe(model_type, config, dict.fromkeys(shapes, (0.0, 0.0)), "float32")
    assert text == "has the shapes of: LlamaGen vq_ds16_c2i.pt"


# What is wrong is named --------------------------------------------------------------------------------


@EACH
@pytest.mark.parametrize("fault", FAULTS)
def test_mutations(published, tmp_path, name, fault):
    _, heads, wrapper = FILES[name]
    saved = load(published / name)
    state = dict(saved[wrapper])
    last = next(n for n in reversed(state) if n.endswith("weight") and state[n].dim() > 1)
    torch.save(saved | {wrapper: mutated(state, last, fault)}, tmp_path / "file")
    refused(tmp_path / "file", FAULTS[fault], tmp_path / "ours", num_heads=heads)


def test_head_must_be_the_embedding(published, tmp_path):
    saved = load(published / "transformer_A.pth")
    state = dict(saved["model_state_dict"])
    state["head.weight"] = state["head.weight"] + 1e-3
    torch.save({"model_state_dict": state}, tmp_path / "file")
    with pytest.raises(ValueError, match="tensor head.weight differs from tok_emb.weight"):
        open_checkpoint(tmp_path / "file", 4)
    state["head.weight"] = state["tok_emb.weight"].clone()  # equal numbers, stored twice
    torch.save({"model_state_dict": state}, tmp_path / "file")
    assert open_checkpoint(tmp_path / "file", 4).config["num_attention_heads"] == 4


def test_heads_are_told_or_published(published):
    with pytest.raises(ValueError, match="its width is 48; the published models have 6 at 384"):
        open_checkpoint(published / "transformer_A.pth")
    with pytest.raises(ValueError, match="4 attention heads do not give the 45 rows"):
        open_checkpoint(published / "transformer_B.pth", 4)


@EACH
def test_truncated(published, tmp_path, name):
    data = (published / name).read_bytes()
    for part in (0.0, 0.1, 0.5, 0.999):
        (tmp_path / "file").write_bytes(data[: int(part * len(data))])
        with pytest.raises(ValueError) as error:
            open_checkpoint(tmp_path / "file", FILES[name][1])
        assert "\n" not in str(error.value)


@EACH
def test_attacks(published, tmp_path, name):
    """What would act when unpickled does nothing."""
    _, heads, wrapper = FILES[name]
    saved = load(published / name)
    torch.save(saved | {"optimizer_state_dict": Attack(tmp_path / "made")}, tmp_path / "file")
    try:
        convert.load_checkpoint(tmp_path / "file", heads)
    except ValueError as error:
        assert "\n" not in str(error)
    (tmp_path / "bare").write_bytes(pickle.dumps({wrapper: Attack(tmp_path / "made")}))
    with pytest.raises(ValueError):
        open_checkpoint(tmp_path / "bare", heads)
    assert not (tmp_path / "made").exists()


@EACH
def test_every_tensor_is_needed(published, tmp_path, name):
    form, heads, wrapper = FILES[name]
    state = load(published / name)[wrapper]
    container = recognise(published / name).container
    for missing in state:
        tensors = {key: value for key, value in state.items() if key != missing}
        with pytest.raises(ValueError):
            formats.BY_NAME[form].open(container, StateDict(wrapper, tensors), Given(heads))


# Di[M]O and Di4C ---------------------------------------------------------------------------------------

DESCENDANTS = {"dimo": (None, 0), "di4c": ("model_state_dict", 128)}


@pytest.mark.parametrize("name", DESCENDANTS)
def test_descendants_of_besnier(tmp_path, name):
    """Di[M]O saves the bare tensors; Di4C's students have a projection of the latent number more."""
    wrapper, latent = DESCENDANTS[name]
    teacher = torch.load(GOLDEN / "besnier" / "tiny_maskgit.pth", weights_only=True)
    state = dict(teacher["model_state_dict"])
    if latent:
        model_type, config, _ = convert.load_checkpoint(GOLDEN / "besnier" / "tiny_maskgit.pth", 4)
        torch.manual_seed(0)
        fresh = BesnierTransformer(**config | {"latent_features": latent}).state_dict()
        state |= {key: value for key, value in fresh.items() if key not in state}
        assert len(state) == len(teacher["model_state_dict"]) + 4
    (tmp_path / "maskgit").mkdir()
    file = tmp_path / "maskgit" / "pytorch_model.bin"
    torch.save({"iter": 7, wrapper: state} if wrapper else state, file)
    summary = convert.convert(file.parent, tmp_path / "ours", num_heads=4)
    assert summary.input_format == "besnier"
    assert summary.config.get("latent_features", 0) == latent
    convert.convert(tmp_path / "ours", tmp_path / "back", to="besnier")
    back = load(tmp_path / "back")
    back = back[wrapper] if wrapper else back
    assert list(back) == list(state)
    assert all(torch.equal(back[key], value) for key, value in state.items())


@pytest.mark.parametrize("relative", relatives.RELATIVES, ids=lambda relative: relative.name)
@pytest.mark.parametrize("wrapper", [None, "state_dict"])
def test_relatives_are_named(tmp_path, relative, wrapper):
    state = {name: torch.zeros(4, 4) for name in sorted(relative.tensors)}
    torch.save({wrapper: state} if wrapper else state, tmp_path / "nnet_ema.pth")
    with pytest.raises(ValueError, match="which is not converted: it") as error:
        recognise(tmp_path / "nnet_ema.pth")
    assert f"nnet_ema.pth holds {relative.name}" in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "relative", [r for r in relatives.RELATIVES if r.classes], ids=lambda r: r.name
)
def test_folders_of_relatives_are_named(tmp_path, relative):
    """By what their configuration says, whatever else is in the folder."""
    for number, name in enumerate(sorted(relative.classes)):
        folder = tmp_path / str(number)
        (folder / "transformer").mkdir(parents=True)
        (folder / "transformer" / "diffusion_pytorch_model.safetensors").write_bytes(b"x")
        stated = "model_index.json" if name.endswith("Pipeline") else "config.json"
        (folder / stated).write_text(json.dumps({"_class_name": name}))
        with pytest.raises(ValueError, match="which is not converted: it") as error:
            recognise(folder)
        assert str(error.value).startswith(f"{folder} holds {relative.name}")
    (folder / stated).write_text(json.dumps({"_class_name": ["VQModel"]}))
    with pytest.raises(ValueError) as error:
        recognise(folder)
    assert "\n" not in str(error.value) and "not converted" not in str(error.value)


# All the way -------------------------------------------------------------------------------------------


def test_three_commands(published, tmp_path, run_command):
    """Published layout -> our folders -> images -> published layout, on the command line."""
    from convert import __main__ as command
    from maskgit_pt import sample

    def converted(*arguments):
        run_command(command, *arguments)

    model, vq = tmp_path / "model", tmp_path / "vq"
    converted(f"--input={published / 'transformer_A.pth'}", f"--output={model}", "--num_heads=4")
    converted(f"--input={published / 'vq_tiny.pt'}", f"--output={vq}")
    threads = torch.get_num_threads()
    run_command(
        sample,
        f"--model={model}", f"--tokenizer={vq}", "--labels=1,7", "--num_samples=2", "--threads=1",
        "--sampler=halton", "--steps=4", "--shift", "--guidance=2", "--guidance_schedule=constant",
        "--logit_scale_last=1.2", f"--output={tmp_path / 'samples'}",
    )  # fmt: skip
    torch.set_num_threads(threads)
    assert len(list((tmp_path / "samples").rglob("*.png"))) >= 2
    converted(f"--input={model}", f"--output={tmp_path / 'back.pth'}", "--to=halton")
    back, before = load(tmp_path / "back.pth"), load(published / "transformer_A.pth")
    back, before = back["model_state_dict"], before["model_state_dict"]
    assert list(back) == list(before) and all(torch.equal(back[k], before[k]) for k in back)


def test_file_in_a_hub_repository(published, monkeypatch):
    """Named by the repository and the file in it, as these are published."""
    asked = []

    def download(repository, **options):
        asked.append(repository)
        return published

    monkeypatch.setattr("huggingface_hub.snapshot_download", download)
    name = "llvictorll/Halton-Maskgit/transformer_A.pth"
    model = load_any(name, TRANSFORMERS, num_heads=4)
    assert set(asked) == {"llvictorll/Halton-Maskgit"}
    assert model.model_type == "halton_transformer" and not model.training
    vq = load_any("FoundationVision/LlamaGen/vq_tiny.pt", TOKENIZERS)
    assert vq.model_type == "llamagen_vq"


def test_images_of_the_converted_files_are_the_recorded_ones(published, tmp_path):
    convert.convert(published / "transformer_A.pth", tmp_path / "model", num_heads=4)
    both = MaskGIT.from_pretrained(tmp_path / "model", published / "vq_tiny.pt")
    assert (both.num_codes, both.num_classes, both.image_size) == (32, 10, 32)
    runs = recorded("halton_runs")
    codes = torch.from_numpy(runs["readme.final_codes"][:1]).long()
    assert_close(2 * both.tokens_to_images(codes)[0] - 1, runs["readme.image0"], 2e-5)
