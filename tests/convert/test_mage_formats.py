"""Files of MAGE and of RCG's class-conditional MAGE: in, out, wrong ones, all the way."""

import json
import pickle

import pytest
import torch
from mage_files import DECODER_HEADS, GROUPS, HEADS, full_size, published, published_bytes, recorded
from recorded import assert_close
from wrong_files import FAULTS, Attack, mutated, refused

import convert
from convert import formats
from convert.checkpoint import Given
from convert.formats.recognise import open_checkpoint, recognise
from convert.formats.state_dicts import StateDict
from convert.verification import ledger
from maskgit_pt import MaskGIT

FORM = formats.BY_NAME["mage-vit"]


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    """The file as its authors save it."""
    path = tmp_path_factory.mktemp("mage") / "mage-tiny.pth"
    path.write_bytes(published_bytes())
    return path


def load(path) -> dict:
    return torch.load(path, weights_only=True)


def same(a: dict, b: dict) -> bool:
    return list(a) == list(b) and all(torch.equal(a[name], b[name]) for name in a)


def test_there_and_back(file, tmp_path):
    summary = convert.convert(file, tmp_path / "ours", num_heads=HEADS)
    assert summary.input_format == "mage-vit" and summary.verified
    config = json.loads((tmp_path / "ours" / "config.json").read_text())
    assert config["vqvae"]["middle_blocks"] == 2 and config["vqvae"]["norm_groups"] == GROUPS
    convert.convert(tmp_path / "ours", tmp_path / "back", to="mage-vit")
    back = load(tmp_path / "back")
    assert list(back) == ["model"] and same(back["model"], published())


@pytest.mark.parametrize("layout", ["bare", "legacy", "training"])
def test_other_layouts(file, tmp_path, layout):
    state = published()
    if layout == "legacy":
        torch.save({"model": state}, tmp_path / "file", _use_new_zipfile_serialization=False)
    elif layout == "bare":
        torch.save(state, tmp_path / "file")
    else:  # as the training script saves it
        rest = {"optimizer": {"state": {}, "param_groups": []}, "epoch": 7, "scaler": {}}
        torch.save({"model": state} | rest, tmp_path / "file")
    assert recognise(tmp_path / "file").format is FORM
    model_type, config, ours = convert.load_checkpoint(tmp_path / "file", HEADS)
    expected = convert.load_checkpoint(file, HEADS)
    assert (model_type, config) == expected[:2] and same(ours, expected[2])


def test_safetensors(file, tmp_path):
    import safetensors.torch

    convert.convert(file, tmp_path / "out", to="mage-vit", num_heads=HEADS, safetensors=True)
    written, state = safetensors.torch.load_file(tmp_path / "out"), published()
    assert state.keys() - written.keys() == {"token_emb.position_ids"}
    assert all(torch.equal(written[name], state[name]) for name in written)
    convert.load_checkpoint(tmp_path / "out", HEADS)


@pytest.mark.parametrize("size", ["vitb", "vitl"])
def test_full_size_names(size):
    first = [name for name in full_size()[size] if "." not in name]
    tokenizer = [name for name in full_size()["tokenizer"]]
    both = full_size()["tokenizer"] | full_size()[size]
    order = [*first, *tokenizer, *(name for name in full_size()[size] if "." in name)]
    shapes = {name: tuple(both[name]) for name in order}
    assert len(shapes) == {"vitb": 433, "vitl": 577}[size]
    without = {name: shape for name, shape in shapes.items() if not FORM.IGNORED.match(name)}
    heads, notes = FORM.heads(without, {}, Given())
    assert heads == {"vitb": 12, "vitl": 16}[size] and len(notes) == 1
    rows = FORM.rows_of_file(without, {})
    model_type, config = convert.infer.infer_config(
        {row.officials[0]: without[name] for name, row in rows.items() if name in without}, heads
    )
    assert model_type == "mage" and config["decoder_num_heads"] == 16
    assert "middle_blocks" not in config["vqvae"] and "norm_groups" not in config["vqvae"]
    assert list(FORM.rows_to_write(model_type, config)) == list(without)
    text = ledger.describe(model_type, config, dict.fromkeys(without, (0.0, 0.0)), "float32")
    assert text == f"has the shapes of: MAGE mage-{size}-1600.pth"


# RCG ---------------------------------------------------------------------------------------------------


def test_classes_of_rcg(tmp_path):
    state = published() | {
        "class_emb.weight": torch.randn(5, 48),
        "fake_latent": torch.zeros(1, 256),
    }
    state["pretrained_encoder.blocks.0.weight"] = torch.zeros(3, 3)
    torch.save({"model": state}, tmp_path / "rcg.pth")
    summary = convert.convert(tmp_path / "rcg.pth", tmp_path / "ours", num_heads=HEADS)
    assert summary.config["num_classes"] == 5
    assert any("fake_latent" in warning for warning in summary.warnings)
    model = MaskGIT.from_pretrained(tmp_path / "ours")
    assert model.num_classes == 5
    images = model.generate([1, 4, 1], sampler="mage", steps=4, seed=3)
    assert images.images.shape == (3, 3, 8, 8)
    with pytest.raises(ValueError, match="label is 5; accepted: 0 to 4"):
        model.generate([5])
    convert.convert(tmp_path / "ours", tmp_path / "back", to="mage-vit")
    back = load(tmp_path / "back")["model"]
    assert torch.equal(back["class_emb.weight"], state["class_emb.weight"])


def test_representations_of_rcg_are_refused(tmp_path):
    state = published() | {"latent_prior_proj.weight": torch.zeros(48, 256)}
    state |= {"latent_prior_proj.bias": torch.zeros(48), "fake_latent": torch.zeros(1, 256)}
    torch.save({"model": state}, tmp_path / "rcg.pth")
    with pytest.raises(ValueError, match="conditioned on a representation") as error:
        convert.convert(tmp_path / "rcg.pth", tmp_path / "ours")
    assert "\n" not in str(error.value) and "LTH14/rcg" in str(error.value)


# What is wrong is named --------------------------------------------------------------------------------


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize(
    "name", ["blocks.1.mlp.fc1.weight", "vqgan.encoder.mid.block_2.conv1.weight"]
)
def test_mutations(tmp_path, name, fault):
    torch.save({"model": mutated(published(), name, fault)}, tmp_path / "file")
    refused(tmp_path / "file", FAULTS[fault], tmp_path / "ours", num_heads=HEADS)


@pytest.mark.parametrize("ids", [torch.arange(1, 18)[None], torch.arange(17)[None].flip(-1)])
def test_positions_must_be_counted(tmp_path, ids):
    state = published()
    assert ids.shape == state["token_emb.position_ids"].shape
    torch.save({"model": state | {"token_emb.position_ids": ids}}, tmp_path / "file")
    refused(
        tmp_path / "file", "token_emb.position_ids is not 0, 1", tmp_path / "ours", num_heads=HEADS
    )


def test_every_tensor_is_needed(file):
    container, state = recognise(file).container, published()
    for missing in state:
        if not FORM.IGNORED.match(missing):
            rest = {name: value for name, value in state.items() if name != missing}
            with pytest.raises(ValueError):
                FORM.open(container, StateDict("model", rest), Given(HEADS))


def test_heads_are_told_or_published(file):
    with pytest.raises(ValueError, match="its width is 48; the published models have 12 at 768"):
        open_checkpoint(file)
    with pytest.raises(ValueError, match="no multiple of 5 attention heads"):
        open_checkpoint(file, 5)


def test_truncated(tmp_path):
    data = published_bytes()
    for part in (0.0, 0.1, 0.5, 0.999):
        (tmp_path / "file").write_bytes(data[: int(part * len(data))])
        with pytest.raises(ValueError) as error:
            open_checkpoint(tmp_path / "file", HEADS)
        assert "\n" not in str(error.value)


def test_attacks(tmp_path):
    """What would act when unpickled does nothing."""
    torch.save({"model": published(), "optimizer": Attack(tmp_path / "made")}, tmp_path / "file")
    try:
        convert.load_checkpoint(tmp_path / "file", HEADS)
    except ValueError as error:
        assert "\n" not in str(error)
    (tmp_path / "bare").write_bytes(pickle.dumps({"model": Attack(tmp_path / "made")}))
    with pytest.raises(ValueError):
        open_checkpoint(tmp_path / "bare", HEADS)
    assert not (tmp_path / "made").exists()


# All the way -------------------------------------------------------------------------------------------


def test_three_commands(file, tmp_path, run_command):
    """Published layout -> our folder -> images -> published layout, on the command line."""
    from convert import __main__ as command
    from maskgit_pt import sample

    ours, back = tmp_path / "ours", tmp_path / "back.pth"
    run_command(command, f"--input={file}", f"--output={ours}", f"--num_heads={HEADS}")
    threads = torch.get_num_threads()
    run_command(
        sample, f"--model={ours}", "--num_samples=3", "--threads=1",
        "--sampler=mage", "--steps=4", f"--output={tmp_path / 'samples'}",
    )  # fmt: skip
    torch.set_num_threads(threads)
    assert len(list((tmp_path / "samples").rglob("*.png"))) >= 3
    run_command(command, f"--input={ours}", f"--output={back}", "--to=mage-vit")
    assert same(load(back)["model"], published())


def test_images_of_the_converted_file_are_the_recorded_ones(file, tmp_path):
    convert.convert(file, tmp_path / "model", num_heads=HEADS)
    config = json.loads((tmp_path / "model" / "config.json").read_text())
    config["decoder_num_heads"] = DECODER_HEADS  # which the file cannot tell
    (tmp_path / "model" / "config.json").write_text(json.dumps(config))
    both = MaskGIT.from_pretrained(tmp_path / "model")
    run = recorded("sampling")
    codes = torch.from_numpy(run["run0_final_tokens"]).long().view(2, 4, 4)
    images = torch.from_numpy(run["run0_image"])
    assert_close(both.tokens_to_images(codes), images.clamp(0, 1), 5e-5)
    tokens = torch.from_numpy(run["run0_tokens_in"]).long()
    with torch.no_grad():
        logits = both.transformer.code_logits(tokens[3])
    assert_close(logits, run["run0_logits_codes"][3], 5e-5)
