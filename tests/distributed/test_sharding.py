"""Sharded steps against those of DDP, and what each rank keeps and sends, on two and three real processes."""

from collections import Counter, defaultdict
from dataclasses import replace

import pytest
import torch
import torch.distributed as dist
from conftest import make_data, run_on_ranks
from helper_interrupted_runs import same
from helper_tries import IN_FULL
from torch import nn
from torchvision.models.resnet import Bottleneck, ResNet

from ddp_workbook.analysis.memory import STATE_COPIES, kept_bytes, sent_bytes, step_bytes
from ddp_workbook.config import TrainConfig
from ddp_workbook.distributed.ddp import average_buffers, unwrap
from ddp_workbook.distributed.process_group import World
from ddp_workbook.distributed.sharding import check_sharding, whole_optimizer, whole_weights
from ddp_workbook.errors import InputError
from ddp_workbook.labs import ledger
from ddp_workbook.records.rank_bytes import RankBytes
from ddp_workbook.runs.outputs import bytes_of_rank
from ddp_workbook.specs import MODELS
from ddp_workbook.training import loader, models
from ddp_workbook.training.cpu_layers import compute_by_matmul
from ddp_workbook.training.loop import evaluate, train_epoch, train_step
from ddp_workbook.training.state import build_state

CPU = torch.device("cpu")
SHARDS = ("none", "optimizer", "full")
STEPS = 3
CASES = {f"{model}, {optimizer}": (model, optimizer, 1) for model in MODELS for optimizer in ("sgd", "adam")}
CASES |= {
    "cnn, sgd, balanced": ("cnn", "sgd", 1),
    "cnn, sgd, accumulated": ("cnn", "sgd", 2),
    "cnn, adam, accumulated": ("cnn", "adam", 2),
    "vit, adam, float64": ("vit", "adam", 1),
}


def cases(ranks):
    """All networks on two ranks, two of them on three, which take longer. With FAULTS=full everything."""
    of_three = ["cnn, sgd, balanced", "cnn, adam", "vit, adam", "vit, adam, float64"]
    of_two = [name for name in CASES if "adam" in name and "float64" not in name] + ["resnet50, sgd", "cnn, sgd"]
    return list(CASES) if IN_FULL else of_two if ranks == 2 else of_three


def build_small_resnet(config, classes):
    """One block of each of ResNet-50's first two stages."""
    model = ResNet(Bottleneck, [1, 1, 1, 1], zero_init_residual=True, width_per_group=16)
    model.layer3 = model.layer4 = nn.Identity()
    model.fc = nn.Linear(512, classes)
    compute_by_matmul(model)
    return model


def use_small_networks():
    """Fewer and narrower layers, in this process."""
    models.BUILDERS["resnet50"] = build_small_resnet
    models.MLP_WIDTHS, models.CNN_WIDTH, models.VIT_BLOCKS, models.LSTM_WIDTH = (48, 32, 16), 32, 1, 32


def train(config, world):
    """One epoch of STEPS steps, and a test: facts about this rank, and on rank 0 everything whole."""
    data = make_data(train=STEPS * config.batch_size * config.grad_accum_steps * world.size)
    state = build_state(config, data, world, CPU)
    batches = loader.TrainLoader(data, config, world, CPU)
    start = whole_weights(unwrap(state.model))
    start = {name: value.clone() for name, value in start.items()} if world.is_main else {}
    train_epoch(state, batches, config)
    average_buffers(state.model)
    images = loader.evaluation_batches(data.test, batches.normalize, world)
    tested = evaluate(unwrap(state.model), images, len(data.classes), state.precision)
    weights, optimizer = whole_weights(unwrap(state.model)), whole_optimizer(state.optimizer, config)
    for group in optimizer["param_groups"]:
        group.pop("fused")  # how it computes, not what
    whole = {"weights": weights, "optimizer": optimizer, "test": (tested.confusion, tested.loss)}
    facts = {
        "came": distance(start, weights)[1] if world.is_main else None,
        "loss": tested.loss,
        "bytes": bytes_of_rank(state).model_dump(),
        "largest tensor": max(p.numel() * p.element_size() for p in state.model.parameters()),
    }
    return facts, whole


def distance(first, second):
    """Between two state_dict(): the largest difference, and the norm of all differences relative to the first's."""
    one, other = (torch.cat([value.double().flatten() for value in content.values()]) for content in (first, second))
    return (one - other).abs().max().item(), ((one - other).norm() / one.norm()).item()


def train_all(rank, ranks):
    """The facts of every case, sharded in every way; evaluated in batches of 4, of which ranks have different numbers.

    On rank 0 also how far each ends from DDP, and which of its results are the same bit for bit.
    """
    loader.EVALUATION_BATCH = 4
    use_small_networks()
    world, found = World(rank, ranks, rank, ranks, launched=True), defaultdict(dict)
    normalize = loader.Normalize.__call__
    loader.Normalize.__call__ = lambda *arguments: normalize(*arguments).to(torch.get_default_dtype())
    for name in cases(ranks):
        model, optimizer, accumulated = CASES[name]
        torch.set_default_dtype(torch.float64 if "float64" in name else torch.float32)
        balance = ":".join(map(str, range(1, ranks + 1))) if "balanced" in name else "equal"
        for shard in SHARDS:
            config = TrainConfig(
                model=model, optimizer=optimizer, grad_accum_steps=accumulated, shard=shard, batch_size=4,
                lr=1e-2 if optimizer == "sgd" else 1e-3, base_batch_size=4 * ranks * accumulated, augment=False,
                precision="fp32", device="cpu", epochs=1, schedule="constant", warmup=0.0, balance=balance,
            )  # fmt: skip
            facts, whole = train(config, world)
            if shard == "none":
                ddp = whole
            elif world.is_main:
                facts["distance"] = distance(ddp["weights"], whole["weights"])
                facts["same"] = [part for part in whole if same(whole[part], ddp[part])]
            found[name][shard] = facts
    return dict(found)


@pytest.fixture(scope="module", params=[2, 3])
def found(request):
    """The number of ranks, and what each of them found."""
    return request.param, run_on_ranks(train_all, request.param, request.param)


EVERYTHING = ["weights", "optimizer", "test"]


def test_a_sharded_optimizer_takes_the_steps_of_ddp_bit_for_bit(found):
    _, (first, *_) = found
    for name, case in first.items():
        assert case["none"]["came"] > 1e-4, name
        assert (case["optimizer"]["distance"], case["optimizer"]["same"]) == ((0, 0), EVERYTHING), name


def test_a_fully_sharded_model_takes_the_steps_of_ddp(found):
    """On two ranks with Adam bit for bit, as (a + b) / 2 is a / 2 + b / 2. With three, or with accumulation, sums are
    rounded in another order; SGD is computed by another kernel than DDP's fused one, which rounds differently. Adam
    divides small gradients by their own size, and so enlarges their rounding: the norm of all hardly sees it. In
    float64, which rounds 2**29 times finer, all of this is as much smaller: it is rounding, and nothing else."""
    ranks, (first, *_) = found
    for name, case in first.items():
        largest, relative = case["full"]["distance"]
        print(f"{ranks} ranks, {name}: largest difference {largest:.1e}, relative {relative:.1e}")
        if ranks == 2 and name.endswith("adam"):
            assert case["full"]["same"] == EVERYTHING, name
        finer = 2**29 if "float64" in name else 1
        close = relative < 5e-6 / finer and largest < 1e-4 / finer
        assert (relative < 1e-6 and largest < 1e-6) if "sgd" in name else close, name
        assert case["full"]["loss"] == pytest.approx(case["none"]["loss"], rel=1e-5)


def test_each_rank_keeps_its_share(found):
    """What is sharded: total / N within one tensor. What is not: the total."""
    ranks, of_ranks = found
    for name in of_ranks[0]:
        copies = STATE_COPIES[name.split(", ")[1]]
        total = of_ranks[0][name]["none"]["bytes"]["parameters"]
        for shard in SHARDS:
            for facts in (found_on_rank[name][shard] for found_on_rank in of_ranks):
                for part, size in kept_bytes(shard, ranks, total, copies)._asdict().items():
                    tensor = (copies if part == "optimizer" else 1) * facts["largest tensor"]
                    counters = 1000 if part == "optimizer" else 0  # bytes: Adam counts the steps of each parameter
                    within = counters + (tensor if part in SHARDED[shard] else 0)
                    assert abs(facts["bytes"][part] - size) <= within, (name, shard, part)


SHARDED = {"none": (), "optimizer": ("optimizer",), "full": ("parameters", "gradients", "optimizer")}


def test_the_traffic_of_a_step_follows_the_closed_forms(found):
    """The third step's collectives; the bytes that Gloo's connections sent are those, and a header for each message."""
    ranks, of_ranks = found
    for name in of_ranks[0]:
        accumulated = CASES[name][2]
        total = of_ranks[0][name]["none"]["bytes"]["parameters"]
        for shard in SHARDS:
            traffic = [RankBytes(**found_on_rank[name][shard]["bytes"]).traffic for found_on_rank in of_ranks]
            assert all(one.collectives == traffic[0].collectives for one in traffic)
            passes = accumulated if shard == "full" else 1  # each backward pass gathers and reduces
            exact = passes * step_bytes(shard, ranks, total)
            assert sent_bytes(traffic[0].collectives, ranks, "nccl") == pytest.approx(exact, rel=0.06)  # padded rows
            if shard != "full":
                assert sent_bytes(traffic[0].collectives, ranks, "nccl") == pytest.approx(exact)
            if traffic[0].sent is not None:
                sent = sum(one.sent for one in traffic) / ranks
                assert sent == pytest.approx(sent_bytes(traffic[0].collectives, ranks, "gloo"), rel=0.03), (name, shard)


def third_steps(rank, book=None):
    """For each way of sharding: the collectives of the third step, by the meter, or as the process group's book has it.

    In front of Gloo the ledger gets all calls; torch's operators, which the meter looks at, are not called then.
    """
    data, found = make_data(train=8 * STEPS), []
    for shard in SHARDS:
        config = TrainConfig(model="cnn", shard=shard, batch_size=4, augment=False, precision="fp32", device="cpu")
        world = World(rank, 2, rank, 2, launched=True)
        state = build_state(config, data, world, CPU)
        for batches in loader.TrainLoader(data, config, world, CPU).epoch(1):
            if book:
                book.take()
            with state.traffic.step():
                train_step(state.model, batches, state.optimizer, state.precision, 0.0)
        booked = Counter()
        for entry in book.take() if book else ():
            booked[entry.name] += entry.bytes * (2 if entry.name == "all_gather" else 1)  # a half was put in
        found.append(dict(booked) if book else state.traffic.measured.collectives)
    return found


def count_two_ways(rank, path):
    """The two lists of third_steps()."""
    use_small_networks()
    metered = third_steps(rank)
    dist.destroy_process_group()
    book = ledger.Ledger()
    ledger.join(book, dist.FileStore(str(path / "store"), 2), rank, 2, timeout=60)
    return metered, third_steps(rank, book)


def test_the_meter_counts_what_the_process_group_gets(tmp_path):
    for metered, booked in run_on_ranks(count_two_ways, 2, tmp_path):
        kinds = [{"all_reduce"}, {"all_reduce", "broadcast"}, {"all_gather", "reduce_scatter"}]
        assert [set(collectives) for collectives in metered] == kinds
        assert metered == booked


LAUNCHED = World(1, 2, 1, 2, launched=True)
FULL = TrainConfig(shard="full")
REFUSED = {
    "without torchrun": ((FULL, World(), CPU, "gloo", "fp32"), "--shard full needs several processes; start them with"),
    "a hook of DDP": (
        (replace(FULL, comm_hook="powersgd"), LAUNCHED, CPU, "gloo", "fp32"),
        "--shard full has no place for --comm-hook powersgd, which is a hook of DDP; use --comm-hook allreduce",
    ),
    "no whole model to time": (
        (replace(FULL, balance="auto"), LAUNCHED, CPU, "gloo", "fp32"),
        "to time for --balance auto; give shares, such as --balance 1:2, or use --shard optimizer",
    ),
    "fp16": (
        (FULL, LAUNCHED, torch.device("cuda"), "nccl", "fp16"),
        "cannot scale gradients for fp16; use --precision",
    ),
    "GPUs with Gloo": ((FULL, LAUNCHED, torch.device("cuda"), "gloo", "bf16"), "or GPUs with --backend nccl; not cuda"),
    "an Apple GPU": ((FULL, LAUNCHED, torch.device("mps"), "gloo", "fp32"), "needs --device cpu, or GPUs with"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_sharded_is_refused_in_one_line(case):
    arguments, message = REFUSED[case]
    with pytest.raises(InputError, match=message) as refusal:
        check_sharding(*arguments)
    assert "\n" not in str(refusal.value)


def test_what_can_be_sharded_is_not_refused():
    check_sharding(TrainConfig(), World(), CPU, "gloo", "fp32")
    check_sharding(FULL, LAUNCHED, torch.device("cuda"), "nccl", "bf16")
    for hook in ("bf16", "powersgd", "shared-memory"):
        check_sharding(TrainConfig(shard="optimizer", comm_hook=hook), LAUNCHED, CPU, "gloo", "fp32")
