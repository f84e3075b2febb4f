"""Tokenizers whose filters the official 32 groups do not divide."""

import pytest
import torch

from convert import api
from maskgit_pt import VQVAE
from maskgit_pt.configs import vqgan_config
from maskgit_pt.nets import layers


def make(filters: int, **changes) -> VQVAE:
    config = vqgan_config.get_config()
    config.vqvae.update(
        filters=filters,
        num_res_blocks=1,
        channel_multipliers=(1, 2),
        codebook_size=16,
        embedding_dim=8,
    )
    config.vqvae.update(changes)
    torch.manual_seed(0)
    return VQVAE(config).eval()


@pytest.mark.parametrize(("filters", "groups"), [(8, 8), (20, 20), (40, 20), (48, 24), (33, 11)])
def test_groups_are_chosen_and_noted(filters, groups, tmp_path):
    assert layers.group_count(filters) == groups
    model = make(filters)
    assert model.to_config()["vqvae"]["norm_groups"] == groups
    norms = [m for m in model.modules() if isinstance(m, layers.GroupNorm)]
    assert norms and {norm.num_groups for norm in norms} == {groups}


def test_conversion_knows_the_groups(tmp_path):
    model, images = make(40), torch.rand(2, 3, 8, 8)
    model.save_pretrained(tmp_path / "model")
    summary = api.convert(tmp_path / "model", tmp_path / "file", to="flax")
    assert any("20 groups; other code expects 32" in warning for warning in summary.warnings)
    api.convert(tmp_path / "file", tmp_path / "back")
    for name in ("model", "file", "back"):
        again = VQVAE.from_pretrained(tmp_path / name)
        assert torch.equal(again(images), model(images))


def test_official_filters_stay_as_they_are():
    model = make(64)
    assert "norm_groups" not in model.to_config()["vqvae"]
    assert {m.num_groups for m in model.modules() if isinstance(m, layers.GroupNorm)} == {32}


def test_groups_that_do_not_divide_are_refused():
    with pytest.raises(
        ValueError, match="GroupNorm of 40 channels cannot have 32 groups; accepted"
    ):
        make(40, norm_groups=32)
