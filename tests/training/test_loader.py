"""Batches: which images, in which order, changed in which way."""

from dataclasses import replace

import pytest
import torch
from conftest import make_data
from torch.nn import functional

from ddp_workbook.config import TrainConfig
from ddp_workbook.distributed.process_group import World
from ddp_workbook.errors import InputError
from ddp_workbook.training import loader as loader_module
from ddp_workbook.training.loader import Normalize, TrainLoader, crop_and_flip, evaluation_batches, evaluation_shard

CPU = torch.device("cpu")


def loader(data, world=World(), **changes):  # noqa: B008  (a frozen value)
    return TrainLoader(data, replace(TrainConfig(batch_size=4, augment=False), **changes), world, CPU)


def indices(data, batches):
    """The image indices in these batches, read from the images themselves."""
    scale, shift = 255 * data.std[0], data.mean[0] / data.std[0]
    pixels = torch.cat([images[:, 0, 0, 0] for step in batches for images, _ in step])
    return ((pixels + shift) * scale).round().int().tolist()


@pytest.mark.parametrize("ranks", [1, 2, 3, 5])
def test_shards_of_an_epoch_are_disjoint_and_reshuffled(data, ranks):
    loaders = [loader(data, World(rank, ranks), batch_size=1) for rank in range(ranks)]
    epochs = [[indices(data, one.epoch(number)) for one in loaders] for number in (1, 2)]
    for shards in epochs:
        seen = [index for shard in shards for index in shard]
        assert len(seen) == len(set(seen)) == 48 // ranks * ranks
    assert epochs[0] != epochs[1]
    assert epochs[0] == [indices(data, one.epoch(1)) for one in loaders]  # asked again, the same


def test_neighbouring_seeds_share_no_order(data):
    """DistributedSampler shuffles by seed + epoch: epoch 2 of seed 0 would be epoch 1 of seed 1."""
    orders = [
        indices(data, loader(data, seed=seed, batch_size=1).epoch(epoch)) for seed in range(3) for epoch in range(9)
    ]
    assert len(set(map(tuple, orders))) == len(orders)


def test_accumulation_and_remainder(data):
    one = loader(data, batch_size=5, grad_accum_steps=3)
    steps = list(one.epoch(1))
    assert len(steps) == one.steps == 48 // 15
    assert all(len(step) == 3 and all(len(labels) == 5 for _, labels in step) for step in steps)


@pytest.mark.parametrize("start", [0, 1, 3])
@pytest.mark.parametrize("accumulate", [1, 2])
def test_batches_made_together_equal_those_made_one_by_one(data, monkeypatch, start, accumulate):
    def epoch(batches_at_once):
        monkeypatch.setattr(loader_module, "CACHE_VALUES", batches_at_once * 5 * 32 * 32 * 3)
        return list(loader(data, batch_size=5, grad_accum_steps=accumulate).epoch(1, start))

    assert len(epoch(1)) == 48 // (5 * accumulate) - start
    for at_once in (0, 2, 4, 100):
        for one, other in zip(epoch(1), epoch(at_once), strict=True):
            for (images, labels), (same, also) in zip(one, other, strict=True):
                assert torch.equal(images, same) and torch.equal(labels, also)
                assert same.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize(("world", "batch", "accumulate"), [(World(), 49, 1), (World(0, 2), 25, 1), (World(), 25, 2)])
def test_batch_larger_than_a_shard_is_refused(data, world, batch, accumulate):
    with pytest.raises(InputError, match="larger than a process's share"):
        loader(data, world, batch_size=batch, grad_accum_steps=accumulate)


@pytest.mark.parametrize("flip", [False, True])
def test_crop_and_flip_against_padding_each_image(flip):
    """Oracle: torch's reflection padding, a slice and a flip, image by image, with the same draws."""
    data, padding, count = make_data(size=32), 4, 40
    index = torch.randperm(48)[:count]
    found = crop_and_flip(data.train.images, index, padding, flip, torch.Generator().manual_seed(5))
    draws = torch.Generator().manual_seed(5)
    top, left = torch.randint(0, 2 * padding + 1, (2, count, 1), generator=draws)[..., 0]
    mirrored = torch.rand(count, 1, generator=draws)[:, 0] < 0.5 if flip else torch.zeros(count, dtype=torch.bool)
    for i, image in enumerate(data.train.images[index]):
        padded = functional.pad(image.permute(2, 0, 1).float()[None], [padding] * 4, mode="reflect")[0]
        crop = padded[:, top[i] : top[i] + 32, left[i] : left[i] + 32]
        crop = crop.flip(2) if mirrored[i] else crop
        assert torch.equal(crop.permute(1, 2, 0).byte(), found[i])
    assert len(set(zip(top.tolist(), left.tolist(), strict=True))) > 20  # each image draws for itself


def test_no_padding_is_a_plain_gather(data):
    index = torch.tensor([3, 1, 1])
    found = crop_and_flip(data.train.images, index, 0, False, torch.Generator())
    assert torch.equal(found, data.train.images[index])


def test_normalize_gives_mean_0_and_deviation_1_in_channels_last_order():
    data = make_data()
    pixels = data.train.images.reshape(-1, 3).double() / 255
    data = replace(data, mean=pixels.mean(0).float(), std=pixels.std(0).float())
    images = Normalize(data, CPU)(data.train.images)
    assert images.is_contiguous(memory_format=torch.channels_last)
    assert torch.allclose(images.mean((0, 2, 3)), torch.zeros(3), atol=1e-4)
    assert torch.allclose(images.std((0, 2, 3)), torch.ones(3), atol=1e-3)


def test_only_images_that_keep_their_class_are_mirrored(data):
    digits = replace(data, name="digits")
    assert loader(data, augment=True).flip
    assert not loader(digits, augment=True).flip
    assert loader(digits, augment=True, flip=True).flip
    assert not loader(data, augment=True, flip=False).flip
    assert not loader(data, augment=False).flip


@pytest.mark.parametrize("ranks", [1, 2, 3, 5, 7, 64])
@pytest.mark.parametrize("images", [1, 10, 10_000])
def test_evaluation_shards_hold_each_index_once(images, ranks):
    shards = [evaluation_shard(images, World(rank, ranks)) for rank in range(ranks)]
    assert sorted(index for shard in shards for index in shard) == list(range(images))


@pytest.mark.parametrize(("ranks", "batches"), [(1, 6), (2, 3), (3, 2), (8, 1), (40, 1)])
def test_all_ranks_have_as_many_evaluation_batches(data, ranks, batches, monkeypatch):
    """21 images in batches of 4: the last one of a rank may be empty. No other batch is, and none is missing."""
    monkeypatch.setattr(loader_module, "EVALUATION_BATCH", 4)
    for rank in range(ranks):
        found = [len(labels) for _, labels in evaluation_batches(data.test, Normalize(data, CPU), World(rank, ranks))]
        assert len(found) == batches
        assert sum(found) == len(evaluation_shard(len(data.test), World(rank, ranks)))
        assert all(found[:-1])
