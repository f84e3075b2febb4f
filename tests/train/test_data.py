import numpy as np
import pytest
import torch
from training import make_shards, tiny_config

from maskgit_pt.launch import Processes
from train.data import batches as data
from train.data import loading


@pytest.fixture(scope="module")
def tokens(tmp_path_factory):
    return make_shards(tmp_path_factory.mktemp("shards") / "tokens")


def batches(tokens, rank=0, world_size=1, **changes):
    config = tiny_config(tokens, **changes)
    processes = Processes("cpu", alone=True)
    processes.rank, processes.world_size = rank, world_size
    processes.each = lambda value: [value]
    return data.open_tokens(config, processes)


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


@pytest.mark.parametrize("world_size", [2, 4])
def test_processes_share_the_same_global_batches(tokens, world_size):
    whole = batches(tokens)
    parts = [batches(tokens, rank, world_size) for rank in range(world_size)]
    for step in (0, 5, 11, 1000):
        items = [part[step] for part in parts]
        joined = {name: torch.cat([item[name] for item in items]) for name in items[0]}
        assert same(joined, whole[step])


@pytest.mark.parametrize("workers", [1, 4])
def test_workers_change_nothing(tokens, workers):
    found = list(loading.load(batches(tokens), 9, 15, workers))
    wanted = list(loading.load(batches(tokens), 9, 15, 0))
    assert len(found) == 6 and all(map(same, found, wanted))


def test_an_epoch_shows_every_image_once_in_its_own_order():
    order = data.Order(90, 2, seed=0)
    share = data.Share(8)
    images, crops, epochs = (
        np.concatenate(v) for v in zip(*(order.at(s, share) for s in range(45)), strict=True)
    )
    for epoch in range(4):
        assert sorted(images[epochs == epoch]) == list(range(90))
    assert (images[:90] != images[90:180]).any()
    assert set(crops) == {0, 1}
    np.testing.assert_array_equal(epochs, np.arange(360) // 90)


def test_a_batch_larger_than_the_collection():
    images, _, epochs = data.Order(5, 1, seed=0).at(0, data.Share(23))
    assert [sorted(images[epochs == e]) for e in range(4)] == [list(range(5))] * 4


def test_items_are_what_the_shards_hold(tokens):
    loader = batches(tokens)
    item = loader[3]
    images, crops, _ = loader.order.at(3, loader.share)
    np.testing.assert_array_equal(item["codes"], loader.shards.tokens(images, crops))
    kept = item["labels"] >= 0
    np.testing.assert_array_equal(item["labels"][kept], loader.shards.labels(images)[kept])


def test_another_seed_is_another_order(tokens):
    assert not torch.equal(batches(tokens)[0]["images"], batches(tokens, seed=1)[0]["images"])


def test_bad_settings(tokens):
    with pytest.raises(
        ValueError, match="batch_size is 8; accepted: a multiple of the 3 processes"
    ):
        data.Share(8, 0, 3)
    with pytest.raises(ValueError, match="holds tokens of 16 px; config.image_size is 256"):
        batches(tokens, image_size=256)
    with pytest.raises(ValueError, match="has 5 classes, labels 0 to 4; config.num_class is 3"):
        batches(tokens, num_class=3)
