"""Train one recipe on one process or many: the story of a data-parallel run.

On two processes of this machine (NCCL on GPUs, Gloo on CPUs):
    torchrun --standalone --nproc_per_node=2 distributed_train.py --batch-size 64 --epochs 10 --lr 0.1 --momentum 0.9
    (--rdzv-backend=loopback in place of --standalone: no port is open to the network, in an installed workbook)

The serial baseline is the same script without torchrun:
    python distributed_train.py --batch-size 128

Without any download, in about a minute:
    torchrun --standalone --nproc_per_node=2 distributed_train.py --recipe resnet50-digits --batch-size 32

After an interruption (Ctrl-C, a crash, a power cut), go on where the last checkpoint was written:
    the same command with --resume

All flags, each with its default:
    python distributed_train.py --help

Results: results/<recipe>/<baseline|distributed>_metrics.json and _history.json; the model goes to checkpoints/.
Lines marked NEW are those that several processes need and a single one would not.
"""

from __future__ import annotations

import sys

import torch
from torch.distributed.elastic.multiprocessing.errors import record

from ddp_workbook.checkpoint import TrainingState
from ddp_workbook.config import Keeping, TrainConfig
from ddp_workbook.datasets import Dataset, load_dataset
from ddp_workbook.devices import Arithmetic, choose_backend, choose_device, choose_precision, set_threads
from ddp_workbook.distributed import World, from_main, leave_group, process_group, read_world, wrap_ddp
from ddp_workbook.endings import Stopped, stop_requests, tell
from ddp_workbook.engine import Reporter, build_optimizer, build_schedule, fit
from ddp_workbook.errors import InputError
from ddp_workbook.flags import parse_run
from ddp_workbook.loader import TrainLoader
from ddp_workbook.models import build_model
from ddp_workbook.progress import describe_result, describe_run, make_reporters
from ddp_workbook.results import check_writable, hold_folders, run_kind, save_run, tell_finished
from ddp_workbook.resume import Keeper
from ddp_workbook.shared_memory import require_shared_memory
from ddp_workbook.watch import Watch


def run(config: TrainConfig, keeping: Keeping, world: World) -> None:
    """Everything that can be refused comes first, before any process waits for another."""
    # 1. The machine: each process takes its device and its share of the cores.
    device = choose_device(config.device, world.size, world.local_rank)
    backend = choose_backend(config.backend, device, world.local_size)  # NEW: what carries the gradients
    if config.averaging == "shared-memory":
        require_shared_memory(device, world.size, world.local_size)  # NEW: not every machine can
    amp = Arithmetic(device, choose_precision(config.precision, device))
    set_threads(config, world.local_size)
    check_writable(config)

    # 2. The data: every rank holds all images and visits its own shard of them, reshuffled each epoch.
    data = load_dataset(config)
    loader = TrainLoader(data, config, world, device)  # NEW: world decides which shard
    keeper = Keeper(config, keeping, run_kind(world), world, data)

    with hold_folders(config, run_kind(world), world):
        reporters = make_reporters(config, world, run_kind(world), loader.steps)
        with process_group(world, backend, device):  # NEW: the ranks meet
            if from_main(lambda: tell_finished(config, world, keeping.resume)):
                return
            train(config, world, backend, amp, data, loader, reporters, keeper)


def train(
    config: TrainConfig,
    world: World,
    backend: str,
    amp: Arithmetic,
    data: Dataset,
    loader: TrainLoader,
    reporters: list[Reporter],
    keeper: Keeper,
) -> None:
    """One run, from its start to the files. A function of its own, so that the model is gone before the group."""
    # 3. The model: the same seed on every rank, so all start from the same weights.
    torch.manual_seed(config.seed)
    model = build_model(config, len(data.classes)).to(amp.device, memory_format=torch.channels_last)
    if world.launched:
        model = wrap_ddp(model, amp.device, config)  # NEW: backward averages the gradients

    # 4. The optimizer: its learning rate follows the global batch, not the number of processes.
    optimizer = build_optimizer(model, config, processes=world.size)
    schedule = build_schedule(optimizer, config, loader.steps)
    state = TrainingState(model, optimizer, schedule, amp)
    if world.is_main:  # NEW: one rank speaks for all
        print(describe_run(config, world, amp, loader), flush=True)
    keeper.resume(state)

    # 5. The epochs. Inside, loss.backward() is where DDP communicates; optimizer.step() is local.
    with stop_requests(world) as request:
        history, confusion = fit(state, loader, data, config, world, reporters, Watch(request, keeper))

        # 6. The files: every rank reports its memory; rank 0 writes, and it alone gets the record.
        result = save_run(state, history, confusion, data, config, world, backend)
        keeper.finished()
    if result:
        print(describe_result(result), flush=True)


@record  # NEW: torchrun then shows the error of the rank that failed first
def main() -> None:
    world = World()
    try:
        world = read_world()  # NEW: which process am I, and how many are we?
        config, keeping = parse_run(sys.argv[1:], __doc__)
        run(config, keeping, world)
        return
    except (InputError, Stopped, KeyboardInterrupt, RuntimeError) as error:
        code = tell(error, "distributed_train.py", world)
        together = isinstance(error, Stopped)  # all ranks agreed on that
    leave_group(together)  # not before the error is gone: its traceback holds the model
    sys.exit(code)


if __name__ == "__main__":
    main()
