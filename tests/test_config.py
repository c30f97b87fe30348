"""Settings and flags: what is accepted, what is refused and in which words."""

from dataclasses import fields, replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ddp_workbook import config as settings
from ddp_workbook.config import CheckpointOptions, TrainConfig, first_difference
from ddp_workbook.errors import InputError
from ddp_workbook.flags import parse_run, to_flags
from ddp_workbook.recipes import DEFAULT, EMBEDDED, RECIPES, get_recipe

GROUPS = ("PATHS", "PLACEMENT", "SHARDING", "NUMERICS", "SPLIT", "RESULT")


def parse_config(arguments):
    return parse_run(arguments, "")[0]


def test_recipes_are_named_after_model_and_data_set():
    assert {DEFAULT, EMBEDDED} <= set(RECIPES)
    assert all(name == f"{config.model}-{config.dataset}" == config.recipe for name, config in RECIPES.items())


def test_the_command_of_the_readme():
    config = parse_config(["--batch-size", "64", "--epochs", "10", "--lr", "0.1", "--momentum", "0.9"])
    assert (config.recipe, config.batch_size, config.epochs) == ("resnet50-cifar10", 64, 10)
    assert (config.lr, config.momentum, config.peak_lr(2)) == (0.1, 0.9, 0.1)


@pytest.mark.parametrize(
    ("batch", "accumulated", "processes", "expected"),
    [(128, 1, 1, 0.2), (64, 1, 2, 0.2), (128, 1, 2, 0.4), (32, 2, 2, 0.2)],
)
def test_the_learning_rate_follows_the_global_batch(batch, accumulated, processes, expected):
    config = TrainConfig(batch_size=batch, grad_accum_steps=accumulated, lr=0.2, base_batch_size=128)
    assert config.peak_lr(processes) == pytest.approx(expected)


CONFIGS = st.builds(
    replace,
    st.sampled_from(list(RECIPES.values())),
    epochs=st.integers(1, 100),
    batch_size=st.integers(1, 4096),
    lr=st.floats(1e-6, 10),
    precision=st.sampled_from(["auto", "fp32", "bf16", "fp16"]),
    comm_hook=st.sampled_from(["allreduce", "bf16", "fp16", "powersgd", "shared-memory"]),
    balance=st.sampled_from(["equal", "auto", "1:2", "1:1:3"]),
    shard=st.sampled_from(["none", "optimizer", "full"]),
    flip=st.sampled_from([None, True, False]),
    augment=st.booleans(),
    tensorboard=st.booleans(),
    data_dir=st.sampled_from([Path("data"), Path("a folder")]),
)


@given(CONFIGS)
def test_flags_there_and_back(config):
    assert parse_config(to_flags(config)) == config


def test_checkpoint_options_are_no_part_of_the_configuration():
    """So the record of a run that was resumed is like that of a run that was not."""
    config, options = parse_run(["--recipe", EMBEDDED, "--resume", "--checkpoint-every", "5"], "")
    assert (config, options) == (RECIPES[EMBEDDED], CheckpointOptions(resume=True, checkpoint_every=5))
    assert parse_run(["--recipe", EMBEDDED], "")[1] == CheckpointOptions(resume=False, checkpoint_every=0)
    assert not {"resume", "checkpoint_every"} & {field.name for field in fields(TrainConfig)}


def test_flags_of_a_recipe_are_its_name_alone():
    assert to_flags(RECIPES[EMBEDDED]) == ["--recipe", EMBEDDED]


BAD_FLAGS = [
    ("--recipe resnet51", "unknown recipe 'resnet51'; choose one of: resnet50-cifar10"),
    ("--recipe", "--recipe: expected one argument"),
    ("--batchsize 3", "Perhaps you meant: --batch-size"),
    ("--dataset imagenet", "invalid choice 'imagenet'"),
    ("--batch-size 0", "--batch-size must be at least 1, not 0"),
    ("--batch-size -4", "--batch-size must be at least 1, not -4"),
    ("--batch-size many", "invalid literal for int()"),
    ("--epochs 0", "--epochs must be at least 1, not 0"),
    ("--epochs 100000", "--epochs must be at most 10000"),
    ("--grad-accum-steps 0", "--grad-accum-steps must be at least 1"),
    ("--balance 1:0", "--balance must be equal, auto, or a share from 1 to 999999 for each rank, such as 1:2, not 1:0"),
    ("--balance fast", "--balance must be equal, auto, or a share"),
    ("--balance 1:", "--balance must be equal, auto, or a share"),
    ("--balance 1:-2", "--balance must be equal, auto, or a share"),
    ("--lr 0", "--lr must be above 0"),
    ("--lr nan", "--lr must be above 0, not nan"),
    ("--lr inf", "--lr must be above 0, not inf"),
    ("--head-lr-scale 0", "--head-lr-scale must be above 0"),
    ("--dropout 1", "--dropout must be at least 0 and below 1"),
    ("--dropout 0.5", "--dropout must be 0 for resnet50"),
    ("--optimizer adagrad", "invalid choice 'adagrad'"),
    ("--momentum 1", "--momentum must be at least 0 and below 1"),
    ("--weight-decay -1", "--weight-decay must be at least 0"),
    ("--label-smoothing 1", "--label-smoothing must be at least 0 and below 1"),
    ("--warmup 1.5", "--warmup must be at least 0 and below 1"),
    ("--step-gamma 0", "--step-gamma must be above 0"),
    ("--image-size 8", "--image-size must be between 28 and 512"),
    ("--seed -1", "--seed must be from 0"),
    ("--checkpoint-every -1", "--checkpoint-every must be at least 0, not -1"),
    ("--threads -1", "--threads must be from 0"),
    ("--precision int8", "invalid choice 'int8'"),
    ("--comm-hook zip", "invalid choice 'zip'"),
    ("--shard half", "invalid choice 'half'"),
    ("--schedule never", "invalid choice 'never'"),
]


@pytest.mark.parametrize(("flags", "expected"), BAD_FLAGS, ids=[flags for flags, _ in BAD_FLAGS])
def test_a_bad_flag_is_refused_in_one_line(flags, expected):
    with pytest.raises(InputError) as refusal:
        parse_config(flags.split())
    assert expected in str(refusal.value)
    assert "\n" not in str(refusal.value)


def test_help_names_every_flag(capsys):
    with pytest.raises(SystemExit) as end:
        parse_config(["--help"])
    assert end.value.code == 0
    text = capsys.readouterr().out
    names = [field.name.replace("_", "-") for field in fields(TrainConfig)]
    assert not [name for name in [*names, "recipe"] if f"--{name}" not in text]


def test_unknown_recipe_by_name():
    with pytest.raises(InputError, match="choose one of"):
        get_recipe("nothing")


def test_every_field_is_in_exactly_one_group():
    """A new field that nobody has put into a group would be neither compared nor ignored on purpose."""
    grouped = [name for group in GROUPS for name in getattr(settings, group)]
    assert sorted(grouped) == sorted(field.name for field in fields(TrainConfig))


def test_the_first_difference_is_named_in_the_order_of_the_fields():
    plain = RECIPES[EMBEDDED]
    assert first_difference(plain, replace(plain), ()) is None
    assert first_difference(plain, replace(plain, seed=1, lr=0.5), ()) == "lr"
    assert first_difference(plain, replace(plain, seed=1, lr=0.5), {"lr"}) == "seed"
    assert first_difference(plain, replace(plain, seed=1, lr=0.5), {"lr", "seed"}) is None


@pytest.mark.parametrize("group", GROUPS)
def test_a_group_is_ignored_as_a_whole_and_nothing_else_is(group):
    """One field of each group differs: with one group ignored, the difference is found in another."""
    plain = RECIPES[EMBEDDED]
    changes = {
        "PATHS": {"data_dir": Path("elsewhere")},
        "PLACEMENT": {"threads": 3},
        "SHARDING": {"shard": "full"},
        "NUMERICS": {"comm_hook": "bf16"},
        "SPLIT": {"grad_accum_steps": 2},
        "RESULT": {"seed": 5},
    }
    for other, change in changes.items():
        found = first_difference(plain, replace(plain, **change), getattr(settings, group))
        assert found == (None if other == group else next(iter(change)))
