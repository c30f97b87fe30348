"""Train one recipe on one process or many: a data-parallel run from start to end.

On two processes of this machine (NCCL on GPUs, Gloo on CPUs):
    torchrun --standalone --nproc_per_node=2 distributed_train.py --batch-size 64 --epochs 10 --lr 0.1 --momentum 0.9
    (--rdzv-backend=loopback in place of --standalone: no port is open to the network; needs an installed workbook)

The serial baseline is the same script without torchrun:
    python distributed_train.py --batch-size 128

Without any download, in about a minute:
    torchrun --standalone --nproc_per_node=2 distributed_train.py --recipe resnet50-digits --batch-size 32

After an interruption (Ctrl-C, a crash, a power cut), resume from the last checkpoint:
    the same command with --resume

All flags, each with its default:
    python distributed_train.py --help

Results: results/<recipe>/<baseline|distributed>_metrics.json and _history.json; the model goes to checkpoints/.
Lines marked NEW are needed only by several processes.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from contextlib import ExitStack, redirect_stdout
from pathlib import Path

from torch.distributed.elastic.multiprocessing.errors import record

from ddp_workbook.config import CheckpointOptions, TrainConfig
from ddp_workbook.devices import choose_backend, choose_device, choose_precision, prepare_cpu
from ddp_workbook.distributed.agent import end_with_torchrun
from ddp_workbook.distributed.agreement import facts_asked, facts_found, require_agreement
from ddp_workbook.distributed.collectives import from_main, refused_together
from ddp_workbook.distributed.comm_hooks import check_comm_hook
from ddp_workbook.distributed.process_group import World, leave_group, process_group, read_world
from ddp_workbook.distributed.sharding import check_sharding
from ddp_workbook.errors import InputError
from ddp_workbook.flags import parse_run
from ddp_workbook.records.run import RunRecord, load_run
from ddp_workbook.runs.outputs import RunOutputs
from ddp_workbook.runs.resume import CheckpointManager
from ddp_workbook.runs.stopping import Stopped, StopRequest, TrainingMonitor, exit_code_for, stop_signals
from ddp_workbook.runs.streams import WatchedOutput, open_standard_streams
from ddp_workbook.training.balance import given_batch_sizes, measure_batch_sizes
from ddp_workbook.training.datasets import Dataset, load_dataset
from ddp_workbook.training.loader import TrainLoader
from ddp_workbook.training.loop import Callback, fit
from ddp_workbook.training.progress import describe_result, describe_run, progress_callbacks
from ddp_workbook.training.state import build_state


def run(config: TrainConfig, options: CheckpointOptions, world: World, callbacks: Sequence[Callback] = ()) -> bool:
    """One run, from the checks to the files. False when there was nothing to do: it had finished before.

    Bad input is rejected first. Where the ranks have met, it is rejected on all of them, even if one alone has it.
    """
    # 1. The machine: each process takes its device and its share of the cores.
    device = choose_device(config.device, world.size, world.local_rank)
    backend = choose_backend(config.backend, device, world.local_size)  # NEW: the library that sends the gradients
    prepare_cpu(config, world.local_size)

    with ExitStack() as held:  # the lock, from when the data are loaded until the figure is drawn
        with process_group(world, backend, device):  # NEW: the ranks meet
            require_agreement(facts_asked(config, options, Path(__file__)))  # NEW: or they would train different models

            # 2. The data: every rank holds all images and visits its own shard of them, reshuffled each epoch.
            with refused_together():  # NEW: bad input of one rank ends them all
                precision = choose_precision(config.precision, device)
                check_comm_hook(config.comm_hook, device, world)  # NEW: not every hook works everywhere
                given_batch_sizes(config, world.size)  # NEW: refuses shares that do not fit the ranks
                check_sharding(config, world, device, backend, precision)  # NEW: nor does sharding
                outputs = RunOutputs(config, world, backend)
                data = load_dataset(config)
                loader = TrainLoader(data, config, world, device)  # NEW: world decides which shard
                callbacks = [*progress_callbacks(config, world), *callbacks]
            require_agreement(facts_found(device, precision, data.info()))  # NEW
            if world.is_main and data.note:
                print(data.note, flush=True)

            held.enter_context(outputs.locked())
            with stop_signals(world) as request:
                if from_main(lambda: outputs.is_finished(options.resume, data)):
                    return False
                result = train(config, options, world, outputs, data, loader, callbacks, request)
        if result:  # rank 0, after the ranks have parted: a figure that fails must not look like a lost connection
            draw(result, outputs.figure)
    return True


def train(
    config: TrainConfig,
    options: CheckpointOptions,
    world: World,
    outputs: RunOutputs,
    data: Dataset,
    loader: TrainLoader,
    callbacks: Sequence[Callback],
    request: StopRequest,
) -> RunRecord | None:
    """Build, train, save; returns the record on rank 0. The model is released before the process group ends."""
    # 3. Model and optimizer: the same weights on every rank; under torchrun DDP averages their gradients.
    state = build_state(config, data, world, loader.device)
    if world.is_main:  # NEW: only one rank prints
        print(describe_run(config, world, state), flush=True)
    checkpoints = CheckpointManager(config, options, world, data)
    checkpoints.resume(state)
    if config.balance == "auto" and state.batch_sizes is None:  # NEW: fewer images for a slow rank; resumed: as before
        state.batch_sizes = measure_batch_sizes(state.model, loader, config, state.precision)
    if world.is_main and state.batch_sizes:
        print(f"images of each rank in a batch: {', '.join(map(str, state.batch_sizes))}", flush=True)

    # 4. The epochs. Inside, loss.backward() is where DDP communicates; optimizer.step() is local.
    monitor = TrainingMonitor(request, before_stop=checkpoints.save)
    tested = fit(state, loader, data, config, world, [*callbacks, monitor, checkpoints])

    # 5. The files: every rank reports its memory and its test images; rank 0 writes, and only it gets the record.
    result = outputs.save(state, tested, data)
    checkpoints.remove()
    if result:
        print(describe_result(result), flush=True)
    return result


def draw(run: RunRecord, path: Path) -> None:
    """The figure of a distributed run; notebook 02 draws the baseline's."""
    if run.kind == "distributed":
        from ddp_workbook.analysis import plots  # here, so that training does not wait for matplotlib

        _, history = load_run(run.config.run_dir, run.kind)
        plots.write_png(plots.training_plots(run, history), path)


@record  # NEW: torchrun then shows the error of the rank that failed first
def main(arguments: Sequence[str] | None = None, callbacks: Sequence[Callback] = ()) -> None:
    """Run with these arguments (None: those of the command line), and exit with a code other than 0 after an error."""
    open_standard_streams()
    world = World()
    try:
        world = read_world()  # NEW: which process am I, and how many are we?
        end_with_torchrun(world)  # NEW: no rank may be left behind
        with redirect_stdout(WatchedOutput(sys.stdout, on_loss=lambda: None)):  # --help | head
            config, options = parse_run(sys.argv[1:] if arguments is None else arguments, __doc__)
        run(config, options, world, callbacks)
        return
    except (InputError, Stopped, KeyboardInterrupt, RuntimeError, MemoryError) as error:
        code = exit_code_for(error, "distributed_train.py", world)
        together = isinstance(error, Stopped)  # all ranks agreed on that
    leave_group(together)  # after the error is released: its traceback holds the model
    sys.exit(code)


if __name__ == "__main__":
    main()
