"""Files of other projects, as recorded from their code: in, out, and the official tensors within."""

import json
import shutil

import numpy as np
import pytest
import torch
import yaml
from convert_samples import OFFICIAL
from recorded import GOLDEN, assert_close, nchw

import convert
from convert import formats, infer, rules, tables
from convert.formats import hmorimitsu, mage, taming
from convert.formats.recognise import open_checkpoint, recognise
from maskgit_pt.configs import vqgan_config

TRANSFORMER = OFFICIAL / "tiny_transformer_checkpoint"
TOKENIZER = OFFICIAL / "tiny_tokenizer_checkpoint"
TWO_BLOCKS = "formats/tiny_tokenizer_two_blocks_checkpoint"
FULL_TRANSFORMER = {
    "vocab_size": 2025,
    "hidden_size": 768,
    "num_hidden_layers": 24,
    "num_attention_heads": 16,
    "intermediate_size": 3072,
    "max_position_embeddings": 257,
}
FULL_TOKENIZER = {"vqvae": vqgan_config.get_config().vqvae.to_dict()}

# File -> format, its official twin (None: it has none), heads, wrapper.
FILES = {
    "formats/hmorimitsu_maskgit.ckpt": ("hmorimitsu", TRANSFORMER, 4, "state_dict"),
    "formats/hmorimitsu_tokenizer.ckpt": ("hmorimitsu", TWO_BLOCKS, None, "state_dict"),
    "formats/open_muse": ("open-muse", TOKENIZER, None, None),
    "formats/titok_maskgit_vqgan.bin": ("titok", TWO_BLOCKS, None, None),
    "formats/maskbit_tokenizer.bin": ("maskbit", TOKENIZER, None, None),
    "formats/mage_vqgan.ckpt": ("mage", TWO_BLOCKS, None, None),
    "besnier/tiny_maskgit.pth": ("besnier", None, 4, "model_state_dict"),
    "besnier/vqgan": ("taming", None, None, "state_dict"),
}
OFFICIAL_TWINS = [name for name, entry in FILES.items() if entry[1] is not None]


@pytest.fixture
def foreign(foreign_files):
    """Path of a file by its name in FILES."""

    def path(name):
        own = GOLDEN / name
        return own if own.is_file() else foreign_files / name

    return path


def weights_in(path):
    """The one file of weights of a folder, or the file."""
    return (
        next(p for p in path.iterdir() if p.suffix in (".bin", ".ckpt")) if path.is_dir() else path
    )


def tensors_in(path, wrapper):
    saved = torch.load(weights_in(path), weights_only=True)
    return saved if wrapper is None else saved[wrapper]


@pytest.mark.parametrize("name", OFFICIAL_TWINS)
def test_official_tensors_are_the_same(name, foreign, foreign_files):
    form, twin, heads, _ = FILES[name]
    found = open_checkpoint(foreign(name), heads)
    model_type, config = found.model_type, infer.visible(found.config)
    type_there, config_there, state = convert.load_checkpoint(foreign_files / twin)
    assert (model_type, config) == (type_there, infer.visible(config_there))
    ours = convert.load_checkpoint(foreign(name), heads)[2]
    assert list(ours) == list(state)
    assert all(torch.equal(ours[key], state[key]) for key in state)


@pytest.mark.parametrize("name", FILES)
def test_there_and_back(name, foreign, tmp_path):
    """Through our folder to the same names, shapes, values, order in memory, wrapper."""
    form, _, heads, wrapper = FILES[name]
    # What a file is called says nothing.
    copy = shutil.copytree if foreign(name).is_dir() else shutil.copy
    source = copy(foreign(name), tmp_path / "maskgit_imagenet512_checkpoint.png")
    summary = convert.convert(source, tmp_path / "ours", num_heads=heads)
    assert summary.input_format == form and summary.verified
    convert.convert(tmp_path / "ours", tmp_path / "back", to=form)
    before, after = tensors_in(foreign(name), wrapper), tensors_in(tmp_path / "back", wrapper)
    before = {key: value for key, value in before.items() if not key.startswith("loss.")}
    assert list(before) == list(after)
    for key, value in before.items():
        assert value.dtype == after[key].dtype and torch.equal(value, after[key]), key
        assert value.stride() == after[key].stride(), key
    for file in foreign(name).glob("*.json") if foreign(name).is_dir() else ():
        assert (tmp_path / "back" / file.name).read_bytes() == file.read_bytes()
    for file in foreign(name).glob("*.yaml") if foreign(name).is_dir() else ():
        assert (tmp_path / "back" / file.name).read_bytes() == file.read_bytes()


@pytest.mark.parametrize("name", OFFICIAL_TWINS)
def test_google_files_are_rebuilt(name, foreign, foreign_files, tmp_path):
    form, twin, heads, _ = FILES[name]
    convert.convert(foreign(name), tmp_path / "rebuilt", to="flax", num_heads=heads)
    rebuilt, google = (tmp_path / "rebuilt").read_bytes(), (foreign_files / twin).read_bytes()
    if twin is not TRANSFORMER:
        assert rebuilt == google
        return
    # Google's own files end with the head; the recorded one is sorted by name.
    flax = convert.read_flat(tmp_path / "rebuilt")
    assert list(flax) == rules.published_order(flax)
    expected = convert.read_flat(google_path := foreign_files / twin)
    assert flax.keys() == expected.keys(), google_path
    assert all(np.array_equal(flax[key], expected[key]) for key in flax)
    assert len(rebuilt) == len(google)


def test_two_blocks_give_the_recorded_outputs(foreign):
    """What the official code gave for the weights that hmorimitsu's, TiTok's and MAGE's file hold."""
    with np.load(GOLDEN / "formats" / "tokenizer_two_blocks.npz") as file:
        recorded = dict(file)
    model_type, config, state = convert.load_checkpoint(
        foreign("formats/hmorimitsu_tokenizer.ckpt")
    )
    model = rules.build(model_type, config)
    model.load_state_dict(state)
    model.eval()
    with torch.inference_mode():
        image = nchw(recorded["image"])
        features = model.encoder(image)
        indices = model.encode_to_indices(image)
        image_again = model.decode_from_indices(indices)
    assert_close(features, recorded["features"].transpose(0, 3, 1, 2), 1e-5, "features")
    assert np.array_equal(indices.numpy(), recorded["indices"].reshape(indices.shape))
    assert_close(image_again, recorded["reconstruction"].transpose(0, 3, 1, 2), 1e-5, "image")


@pytest.mark.parametrize("name", [n for n in FILES if n != "besnier/vqgan"])
@pytest.mark.parametrize("layout", ["safetensors", "legacy", "state_dict", "bare"])
def test_other_layouts(name, layout, foreign, tmp_path):
    form, _, heads, wrapper = FILES[name]
    expected = convert.load_checkpoint(foreign(name), heads)
    state = dict(tensors_in(foreign(name), wrapper))
    file = tmp_path / "file"
    if layout == "safetensors":
        import safetensors.torch

        safetensors.torch.save_file({key: v.contiguous() for key, v in state.items()}, file)
    elif layout == "legacy":
        torch.save({"state_dict": state}, file, _use_new_zipfile_serialization=False)
    else:
        torch.save({"state_dict": state, "epoch": 3} if layout == "state_dict" else state, file)
    found = recognise(file).format.NAME
    same = {"open-muse": "titok"}  # without the folder's configuration they are the same
    if not (layout == "safetensors" and form == "besnier"):  # whose names are ours
        assert found == same.get(form, form)
    model_type, config, ours = convert.load_checkpoint(file, heads)
    assert (model_type, config) == expected[:2]
    assert all(torch.equal(ours[key], value) for key, value in expected[2].items())


@pytest.mark.parametrize("name", FILES)
def test_written_as_safetensors(name, foreign, tmp_path):
    form, _, heads, wrapper = FILES[name]
    convert.convert(foreign(name), tmp_path / "out", to=form, num_heads=heads, safetensors=True)
    import safetensors.torch

    out = tmp_path / "out"
    written = safetensors.torch.load_file(out / "model.safetensors" if out.is_dir() else out)
    state = tensors_in(foreign(name), wrapper)
    assert written and all(torch.equal(written[key], state[key]) for key in written)


def test_full_size_names(foreign_files):
    """Names, shapes and order as in the published files, and what each is made of."""
    folder = foreign_files / "formats"
    manifests = json.loads((folder / "full_size_manifests.json").read_text())
    correspondence = json.loads((folder / "full_size_correspondence.json").read_text())
    checked = 0
    for key, manifest in manifests.items():
        form = formats.BY_NAME[key.partition("_")[0].replace("open", "open-muse")]
        model_type, config = "maskgit_vqvae", FULL_TOKENIZER
        if "maskgit" in key:
            model_type, config = "maskgit_transformer", dict(FULL_TRANSFORMER)
            config["max_position_embeddings"] = 1025 if key.endswith("512") else 257
        rows = form.rows_to_write(model_type, config)
        assert list(rows) == list(manifest), key
        shapes = {p.official: p.official_shape for p in rules.target(model_type, config)[1]}
        for name, shape in manifest.items():
            row = rows[name]
            assert list(row.officials) == correspondence[key][name], name
            part = row.transform.to_torch(torch.empty(shapes[row.officials[0]], device="meta"))
            assert [len(row.officials) * part.shape[0], *part.shape[1:]] == shape, name
        # Read again: every name known, nothing missing, the configuration found.
        found = form.rows_of_file({name: tuple(shape) for name, shape in manifest.items()}, {})
        assert found.keys() >= manifest.keys()
        assert {n for n, row in found.items() if not row.optional} <= manifest.keys()
        checked += 1
    assert checked == 7


@pytest.mark.parametrize(
    ("model_type", "config", "parameters", "name"),
    [
        ("besnier_transformer", {}, 174_160_874, "vit_base_256"),
        ("besnier_transformer", {"num_tokens": 1024}, 176_306_666, "vit_base_512"),
        ("taming_vqgan", {}, 72_141_699, "vqgan_imagenet_f16_1024"),
    ],
)
def test_full_size_of_besnier_and_chen(model_type, config, parameters, name):
    recorded = json.loads((GOLDEN / "besnier" / "full_size.json").read_text())
    manifests = recorded["state_dict"]
    differing = manifests.get(f"{name}: shapes that differ from vit_base_256", {})
    manifest = manifests.get(name) or manifests["vit_base_256"] | differing
    shapes = {key: list(shape) for key, shape in rules.target(model_type, config)[0].items()}
    assert shapes == manifest
    assert sum(torch.Size(shape).numel() for shape in shapes.values()) == parameters
    flat = {key: tuple(shape) for key, shape in manifest.items()}
    assert infer.infer_config(flat) == (model_type, rules.target(model_type, config)[2])


def test_wrong_transforms_are_noticed(foreign, foreign_files, monkeypatch):
    """The negative control of `test_official_tensors_are_the_same`, for mistakes that fit the shapes."""
    right = convert.load_checkpoint(foreign_files / TWO_BLOCKS)[2]
    names = mage.FORMAT.NAMES
    rows = dict(names.rows(2, 2))
    wrong = tables.Transform(
        "wrong", lambda x: x.permute(2, 3, 0, 1), lambda x, _: x.permute(2, 3, 0, 1)
    )
    swapped = tables.Transform(
        "swapped", lambda x: x.permute(2, 3, 1, 0), lambda x, heads: x.permute(3, 2, 1, 0)
    )
    kernel = "encoder.mid.block_1.conv1.weight"
    for transform in (wrong, swapped):
        changed = rows | {kernel: rows[kernel].__class__(rows[kernel].officials, transform)}
        monkeypatch.setattr(mage.Mage, "rows_of_file", lambda self, shapes, stated, r=changed: r)
        try:
            state = convert.load_checkpoint(foreign("formats/mage_vqgan.ckpt"))[2]
        except ValueError as error:
            assert kernel in str(error)
            continue
        assert not all(torch.equal(state[key], right[key]) for key in right)
    # Query and key exchanged.
    right = convert.load_checkpoint(TRANSFORMER)[2]
    rows = hmorimitsu._transformer_rows(2)
    name = "blocks.1.MultiHeadAttention.in_proj_weight"
    query, key, value = rows[name].officials
    rows[name] = rows[name].__class__((key, query, value), rows[name].transform)
    monkeypatch.setattr(hmorimitsu, "_transformer_rows", lambda layers: rows)
    state = convert.load_checkpoint(foreign("formats/hmorimitsu_maskgit.ckpt"), 4)[2]
    different = [key for key in right if not torch.equal(state[key], right[key])]
    assert different == ["layers.1.attention.self_attention.qkv.weight"]


def test_number_of_heads(foreign, tmp_path):
    file = foreign("formats/hmorimitsu_maskgit.ckpt")
    summary = convert.convert(file, tmp_path / "16")
    assert summary.config["num_attention_heads"] == 16
    assert any("took 16" in warning and "--num_heads" in warning for warning in summary.warnings)
    assert convert.convert(file, tmp_path / "4", num_heads=4).warnings == ()
    with pytest.raises(ValueError, match="its width is 64, no multiple of 5 .*--num_heads"):
        convert.convert(file, tmp_path / "5", num_heads=5)
    summary = convert.convert(foreign("besnier/tiny_maskgit.pth"), tmp_path / "b", num_heads=4)
    assert (summary.config["num_codes"], summary.config["num_classes"]) == (32, 10)
    with pytest.raises(ValueError, match="has 44 ids, too few for 42 codes"):
        convert.load_checkpoint(foreign("besnier/tiny_maskgit.pth"), 4, 42)
    config = convert.load_checkpoint(foreign("besnier/tiny_maskgit.pth"), 4, 20)[1]
    assert config["num_classes"] == 22


def test_what_is_left_out_is_named(foreign, tmp_path):
    summary = convert.convert(foreign("besnier/tiny_maskgit.pth"), tmp_path / "b", num_heads=4)
    assert summary.warnings == ("left out: optimizer_state_dict (a dict of 2)",)
    convert.convert(tmp_path / "b", tmp_path / "b.pth", to="besnier")
    back = torch.load(tmp_path / "b.pth", weights_only=True)
    assert (back["iter"], back["global_epoch"]) == (7, 3)
    summary = convert.convert(foreign("besnier/vqgan"), tmp_path / "t")
    (warning,) = summary.warnings
    assert warning.startswith("left out: 3 tensors loss.discriminator.main.0.bias, ")


@pytest.mark.parametrize("prefix", ["module.", "module._orig_mod.", "_orig_mod.module.", "model."])
def test_prefix_of_parallel_training(prefix, foreign, tmp_path):
    file = foreign("besnier/tiny_maskgit.pth")
    state = {f"{prefix}{key}": value for key, value in tensors_in(file, "model_state_dict").items()}
    torch.save({"model_state_dict": state}, tmp_path / "file")
    summary = convert.convert(tmp_path / "file", tmp_path / "out", num_heads=4)
    assert summary.warnings == (f"left out: the names' prefix {prefix}",)
    ours, plain = (convert.load_checkpoint(path, 4)[2] for path in (tmp_path / "out", file))
    assert all(torch.equal(ours[key], value) for key, value in plain.items())


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_every_protocol(zipped, protocol, foreign, tmp_path):
    state = tensors_in(foreign("formats/mage_vqgan.ckpt"), None)
    torch.save(
        {"state_dict": state}, tmp_path / "file", pickle_protocol=protocol,
        _use_new_zipfile_serialization=zipped,
    )  # fmt: skip
    if protocol > 3:
        with pytest.raises(
            ValueError, match="its pickle has protocol 4 or later, which torch.load"
        ):
            convert.load_checkpoint(tmp_path / "file")
        return
    ours = convert.load_checkpoint(tmp_path / "file")
    expected = convert.load_checkpoint(foreign("formats/mage_vqgan.ckpt"))
    assert all(torch.equal(ours[2][key], value) for key, value in expected[2].items())


def test_which_of_several_sets(foreign, tmp_path):
    """The one under the key that the format's files have, whatever else there is."""
    expected = convert.load_checkpoint(foreign("formats/hmorimitsu_tokenizer.ckpt"))[2]
    state = tensors_in(foreign("formats/hmorimitsu_tokenizer.ckpt"), "state_dict")
    average = {key: value + 1 for key, value in state.items()}
    saved = {"best": torch.tensor(0.1), "ema": average, "state_dict": state, "rng": torch.ones(3)}
    torch.save(saved, tmp_path / "file")
    summary = convert.convert(tmp_path / "file", tmp_path / "out")
    assert summary.warnings == (
        "left out: the top level (2 tensors), ema (89 tensors)",
        "took the raw weights (state_dict); --weights=ema takes the averaged ones (ema)",
    )
    ours = convert.load_checkpoint(tmp_path / "out")[2]
    assert all(torch.equal(ours[key], value) for key, value in expected.items())


def test_shards_are_not_joined(tmp_path):
    import safetensors.torch

    for part in (1, 2):
        safetensors.torch.save_file(
            {f"x.{part}": torch.zeros(2)}, tmp_path / f"model-0000{part}-of-00002.safetensors"
        )
    with pytest.raises(ValueError, match="weights cut into shards .* without the index"):
        convert.load_checkpoint(tmp_path)


def test_mage_is_marked(foreign, tmp_path):
    convert.convert(foreign("formats/mage_vqgan.ckpt"), tmp_path / "mage")
    config = json.loads((tmp_path / "mage" / "config.json").read_text())
    assert "not Google's weights" in config["vqvae"]["weights"]
    assert "not Google's weights" in (tmp_path / "mage" / "README.md").read_text()
    convert.convert(foreign("formats/titok_maskgit_vqgan.bin"), tmp_path / "titok")
    assert "weights" not in json.loads((tmp_path / "titok" / "config.json").read_text())["vqvae"]
    # Where a file cannot say so, or says so wrongly, the user is told.
    summary = convert.convert(tmp_path / "mage", tmp_path / "a", to="flax")
    assert summary.warnings == (
        f"these are weights of {mage.WEIGHTS}; files of flax cannot say so",
    )
    assert convert.convert(tmp_path / "mage", tmp_path / "b", to="mage").warnings == ()
    summary = convert.convert(foreign("formats/titok_maskgit_vqgan.bin"), tmp_path / "c", to="mage")
    assert summary.warnings == (f"by its names the output will be taken for {mage.WEIGHTS}",)
    with pytest.raises(ValueError, match="mage holds 2 blocks a level, this tokenizer has 1"):
        convert.convert(TOKENIZER, tmp_path / "out", to="mage")


def test_configuration_beside_the_weights(foreign, tmp_path):
    folder = shutil.copytree(foreign("formats/open_muse"), tmp_path / "muse")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"commitment_cost": 0.5}))
    assert convert.load_checkpoint(folder)[1]["vqvae"]["commitment_cost"] == 0.5
    (folder / "config.json").write_text(json.dumps(config | {"num_res_blocks": 2}))
    with pytest.raises(ValueError, match="config.json says num_res_blocks 2, the weights show 1"):
        convert.load_checkpoint(folder)
    vqgan = shutil.copytree(foreign("besnier/vqgan"), tmp_path / "vqgan")
    config = convert.load_checkpoint(vqgan)[1]
    assert (config["resolution"], config["attention_resolutions"]) == (16, [4])
    (vqgan / "model.yaml").write_text("model: {params: {embed_dim: !!python/object:os.system x}}")
    with pytest.raises(ValueError, match="model.yaml: not plain YAML: ConstructorError"):
        convert.load_checkpoint(vqgan)
    (vqgan / "model.yaml").write_text("a: &a [1, 1]\nmodel: [*a, *a]")  # the start of many laughs
    with pytest.raises(ValueError, match="model.yaml: not plain YAML: aliases"):
        convert.load_checkpoint(vqgan)
    (vqgan / "model.yaml").unlink()
    config = convert.load_checkpoint(vqgan)[1]
    assert (config["resolution"], config["attention_resolutions"]) == (256, [64])
    # As the code since 2024 has it.
    (vqgan / "ckpts").mkdir()
    (vqgan / "last.ckpt").rename(vqgan / "ckpts" / "last.ckpt")
    (vqgan / "configs").mkdir()
    shutil.copy(foreign("besnier/vqgan") / "model.yaml", vqgan / "configs" / "model.yaml")
    assert convert.load_checkpoint(vqgan)[1]["resolution"] == 16


def test_yaml_is_ours(foreign):
    """Both directions of what `model.yaml` says."""
    tree = yaml.safe_load((foreign("besnier/vqgan") / "model.yaml").read_text())
    arguments = taming.taming_vqgan_config.arguments(tree)
    again = taming.taming_vqgan_config.tree(arguments)
    assert again["model"]["params"]["ddconfig"] == tree["model"]["params"]["ddconfig"]
    tree["model"]["params"]["ddconfig"]["double_z"] = True
    with pytest.raises(ValueError, match="double_z is True; accepted: False"):
        taming.taming_vqgan_config.arguments(tree)


@pytest.mark.parametrize(
    ("change", "parts"),
    [
        (
            lambda state: [
                state.pop(f"encoder.mid.block_1.{p}") for p in ("norm1.bias", "conv1.weight")
            ],
            (
                "not a usable mage checkpoint",
                "2 missing: encoder.mid.block_1.conv1.weight [32, 32, 3, 3], "
                "encoder.mid.block_1.norm1.bias [32]",
            ),
        ),
        (
            lambda state: state.update({"x": torch.zeros(3), "a.b": torch.zeros(1, 2)}),
            ("2 not known: a.b [1, 2], x [3]",),
        ),
        (
            lambda state: state.update({"decoder.conv_out.bias": torch.zeros(4)}),
            ("1 of a wrong shape: decoder.conv_out.bias is [4] instead of [3]",),
        ),
        (
            lambda state: state.pop("quantize.embedding.weight"),
            ("1 missing: quantize.embedding.weight",),
        ),
        (
            lambda state: state.update(
                {"decoder.conv_out.bias": torch.zeros(3, dtype=torch.int32)}
            ),
            ("tensor decoder.conv_out.bias is int32; accepted for weights",),
        ),
        (
            lambda state: state.update({"decoder.conv_out.bias": 3.0}),
            ("1 missing: decoder.conv_out.bias [3]",),
        ),
        (
            lambda state: state.update({"encoder.conv_in.weight": torch.zeros(32)}),
            ("tensor encoder.conv_in.weight has shape [32], which does not fit conv",),
        ),
    ],
)
def test_books_are_closed(change, parts, foreign, tmp_path):
    state = dict(tensors_in(foreign("formats/mage_vqgan.ckpt"), None))
    change(state)
    torch.save(state, tmp_path / "file.ckpt")
    with pytest.raises(ValueError) as caught:
        convert.convert(tmp_path / "file.ckpt", tmp_path / "out")
    message = str(caught.value)
    assert message.startswith(str(tmp_path / "file.ckpt")) and "\n" not in message
    for part in parts:
        assert part in message, message
    assert not (tmp_path / "out").exists()


def test_unknown_files(tmp_path, foreign):
    state = tensors_in(foreign("formats/maskbit_tokenizer.bin"), None)
    few = {key: value for key, value in state.items() if "res_blocks" not in key}
    many = {f"unet.{i}.weight": torch.zeros(2) for i in range(90)}
    torch.save({"state_dict": few | many, "step": 5}, tmp_path / "file.ckpt")
    with pytest.raises(ValueError) as caught:
        convert.load_checkpoint(tmp_path / "file.ckpt")
    message = str(caught.value)
    count = len(few) + len(many)
    assert (
        f"PyTorch layout with {count} tensors under state_dict (encoder.conv_in.weight [" in message
    )
    assert "; closest: " in message and "maskbit (" in message and "\n" not in message
    torch.save({"a": 1, "b": [torch.zeros(2)]}, tmp_path / "file.ckpt")
    with pytest.raises(ValueError, match=r"holds no tensors by name; it has b \(a list of 1\), a"):
        convert.load_checkpoint(tmp_path / "file.ckpt")
    torch.save(torch.nn.Linear(2, 2), tmp_path / "file.ckpt")
    with pytest.raises(
        ValueError, match=r"an object of torch.nn.modules.linear.Linear, .*state_dict\(\)"
    ):
        convert.load_checkpoint(tmp_path / "file.ckpt")
    folder = tmp_path / "both"
    shutil.copytree(foreign("formats/open_muse"), folder)
    shutil.copy(foreign("formats/mage_vqgan.ckpt"), folder)
    with pytest.raises(
        ValueError, match="in 2 files, name one of them: mage_vqgan.ckpt, pytorch_model"
    ):
        convert.load_checkpoint(folder)


def test_what_cannot_be(foreign, tmp_path):
    for to, reason in (
        ("flax", "Google's format holds maskgit_transformer, maskgit_vqvae, maskgit_discrim"),
        ("titok", "titok holds maskgit_vqvae, not a besnier_transformer"),
    ):
        with pytest.raises(ValueError, match=reason):
            convert.convert(
                foreign("besnier/tiny_maskgit.pth"), tmp_path / "out", to=to, num_heads=4
            )
    with pytest.raises(ValueError, match="flax has one layout"):
        convert.convert(TOKENIZER, tmp_path / "out", to="flax", safetensors=True)
    assert list(tmp_path.iterdir()) == []


def test_dtype(foreign, tmp_path):
    convert.convert(foreign("formats/open_muse"), tmp_path / "out", to="titok", dtype="bfloat16")
    state = torch.load(tmp_path / "out", weights_only=True)
    expected = tensors_in(foreign("formats/open_muse"), None)
    assert all(torch.equal(state[key], value.bfloat16()) for key, value in expected.items())


@pytest.mark.parametrize("legacy", [False, True])
def test_a_pytorch_file_that_is_called_safetensors(foreign_files, tmp_path, legacy):
    """A format is told from the content, never from the name."""
    source = foreign_files / "formats" / "hmorimitsu_maskgit.ckpt"
    state = torch.load(source, weights_only=True)
    path = tmp_path / "model.safetensors"
    torch.save(state, path, _use_new_zipfile_serialization=not legacy)
    expected = convert.load_checkpoint(source)[2]
    found = convert.load_checkpoint(path)[2]
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in expected)
