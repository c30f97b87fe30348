"""The table of invalid invocations: what a student types or finds lying about, and a word of the answer."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
from helper_course import save_summary
from helper_records import make_benchmark, make_breakdown, make_run, make_sweep

import distributed_train
from ddp_workbook import cli
from ddp_workbook.records.files import save_record
from ddp_workbook.records.run import record_paths

TRAIN, COURSE = "distributed_train.py", "ddp-workbook"
DIGITS = ["--recipe", "mlp-digits", "--device", "cpu", "--precision", "fp32", "--epochs", "1"]
RECORDS = Path("results/resnet50-digits")


@dataclass(frozen=True)
class Case:
    """One invocation; `prepare` spoils the folder that it runs in, which holds a finished course."""

    name: str
    program: str
    arguments: tuple[str, ...]
    answer: str
    prepare: Callable[[], object] = lambda: None


def train(name: str, *arguments: str, answer: str, prepare: Callable[[], object] = lambda: None) -> Case:
    return Case(name, TRAIN, (*DIGITS, *arguments), answer, prepare)


def course(name: str, *arguments: str, answer: str, prepare: Callable[[], object] = lambda: None) -> Case:
    return Case(name, COURSE, arguments, answer, prepare)


def report(name: str, answer: str, prepare: Callable[[], object]) -> Case:
    return Case(f"report: {name}", COURSE, ("report",), answer, prepare)


def write(path: str | Path, content: str | bytes) -> Callable[[], object]:
    def do() -> None:
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        Path(path).write_bytes(content.encode() if isinstance(content, str) else content)

    return do


def change(name: str, *place_and_value: object) -> Callable[[], object]:
    """Set one field of a record."""

    def do() -> None:
        *place, last, value = place_and_value
        record = inner = json.loads((RECORDS / name).read_text())
        for step in place:
            inner = inner[step]
        inner[last] = value
        (RECORDS / name).write_text(json.dumps(record))

    return do


def cut(name: str, length: int) -> Callable[[], object]:
    return lambda: (RECORDS / name).write_bytes((RECORDS / name).read_bytes()[:length])


def tree(*files: str) -> Callable[[], object]:
    """Files that are no images, as an image folder has them."""

    def do() -> None:
        for file in files:
            write(Path("pictures") / file, b"no image")()

    return do


AT_LEAST_1 = ("epochs", "batch-size", "grad-accum-steps", "base-batch-size", "step-epochs")
NUMBERS = {
    "momentum": ("-0.1", "1", "nan", "much"), "dropout": ("-1", "1"), "label-smoothing": ("-0.5", "1.5"),
    "warmup": ("1", "-1"), "step-gamma": ("0", "2"), "lr": ("0", "-1", "nan", "inf"),
    "head-lr-scale": ("0", "inf"), "weight-decay": ("-1", "inf"), "threads": ("-1", "99999"),
    "seed": ("-1", "9223372036854775808", "1.5"), "image-size": ("0", "27", "513", "32x32"),
}  # fmt: skip
CHOICES = ("model", "dataset", "optimizer", "schedule", "device", "backend", "precision", "comm-hook", "shard")
NETWORK = ("predict", "--bandwidth-gbit", "1", "--latency-us", "5")
INSIDE = ("--intra-gbit", "100", "--intra-us", "3")
PICTURES = ("--recipe", "resnet50-imagefolder", "--data-dir", "pictures")

FLAGS = [
    *(train(f"{flag} 0", f"--{flag}", "0", answer="at least 1") for flag in AT_LEAST_1),
    *(train(f"{flag} in words", f"--{flag}", "many", answer=flag) for flag in AT_LEAST_1),
    *(train(f"{flag} {value}", f"--{flag}", value, answer=flag) for flag, bad in NUMBERS.items() for value in bad),
    *(train(f"unknown {flag}", f"--{flag}", "other", answer="invalid choice") for flag in CHOICES),
    train("no value", "--epochs", answer="epochs"),
    train("an unknown flag", "--epoch", "3", answer="nrecognized"),
    train("a word too many", "now", answer="nrecognized"),
    train("epochs beyond reason", "--epochs", "10001", answer="at most 10000"),
    train("dropout in a ViT", "--recipe", "vit-digits", "--dropout", "0.1", answer="0 for vit"),
    train("dropout in an LSTM", "--recipe", "lstm-digits", "--dropout", "0.1", answer="0 for lstm"),
    train("dropout in a ResNet", "--recipe", "resnet50-digits", "--dropout", "0.5", answer="0 for resnet50"),
    train("an unknown recipe", "--recipe", "mlp", answer="choose one of"),
    train("a recipe that is a path", "--recipe", "../x", answer="choose one of"),
    train("a batch larger than the data", "--batch-size", "100000", answer="smaller batch"),
    train("accumulating beyond the data", "--grad-accum-steps", "100000", answer="smaller batch"),
    train("sharding for one process", "--shard", "full", answer="--shard full needs several processes"),
    train("shared memory for one process", "--comm-hook", "shared-memory", answer="needs several processes"),
    train("shares for one process", "--balance", "1:2", answer="needs several processes"),
    train("balance for one process", "--balance", "auto", answer="needs several processes"),
    train("a share of nothing", "--balance", "1:0", answer="a share from 1"),
    train("nccl on a cpu", "--backend", "nccl", answer="needs CUDA"),
    train("fp16 on a cpu", "--precision", "fp16", answer="needs an accelerator"),
    train("a file as results", "--results-dir", "report.toml", answer="choose a writable folder"),
    train("a file as checkpoints", "--checkpoint-dir", "report.toml", answer="choose a writable folder"),
    train("results under a file", "--results-dir", "report.toml/x", answer="choose a writable folder"),
    train("results in /proc", "--results-dir", "/proc/none", answer="choose a writable folder"),
    train("a name without end", "--results-dir", "x" * 300, answer="choose a writable folder"),
]
FOLDERS = [
    train("no image folder", *PICTURES, answer="must hold one folder"),
    train("an empty image folder", *PICTURES, answer="must hold one folder", prepare=tree("train/.x", "test/.x")),
    train("no test images", *PICTURES, answer="must hold", prepare=tree("train/a/1.png", "train/b/1.png")),
    train("other classes", *PICTURES, answer="same classes",
          prepare=tree("train/a/1.png", "train/b/1.png", "test/a/1.png", "test/c/1.png")),
    train("one class", *PICTURES, answer="from 2 to", prepare=tree("train/a/1.png", "test/a/1.png")),
    train("images that are none", *PICTURES, answer="cannot be read as an image",
          prepare=tree("train/a/1.png", "train/b/1.png", "test/a/1.png", "test/b/1.png")),
    train("a class with an escape", *PICTURES, answer="control characters",
          prepare=tree("train/\x1b[2J/1.png", "train/b/1.png", "test/\x1b[2J/1.png", "test/b/1.png")),
    train("a file as data", "--recipe", "mlp-mnist", "--data-dir", "report.toml", answer="could not download"),
    train("corrupt MNIST", "--recipe", "mlp-mnist", "--data-dir", "d", answer="damaged data",
          prepare=write("d/MNIST/raw/train-images-idx3-ubyte", b"corrupt")),
    train("corrupt CIFAR-10", "--recipe", "resnet50-cifar10", "--data-dir", "d", answer="damaged data",
          prepare=write("d/cifar-10-batches-py/data_batch_1", b"corrupt")),
]  # fmt: skip
COMMANDS = [
    course("no command", answer="subcommand|equired"),
    course("an unknown command", "train", answer="run, bench, trace, predict, report, doctor"),
    course("run: unknown recipe", "run", "--recipe", "nothing", answer="unknown recipe"),
    course("run: no epochs", "run", "--epochs", "0", answer="at least 1"),
    course("run: epochs in words", "run", "--epochs", "few", answer="epochs"),
    course("run: an unknown flag", "run", "--fast", answer="nrecognized"),
    course("bench: unknown recipe", "bench", "--recipe", "x", answer="unknown recipe"),
    course("bench: steps and epochs", "bench", "--steps", "5", "--epochs", "1", answer="not both"),
    course("bench: no steps", "bench", "--steps", "0", answer="at least 1"),
    course("bench: no epochs", "bench", "--epochs", "0", answer="at least 1"),
    course("bench: no rounds", "bench", "--repeats", "0", answer="repeats"),
    course("bench: no seeds", "bench", "--seeds", "0", answer="--seeds must be from 2"),
    course("bench: a map of no batch", "bench", "--map", "--largest-batch", "0", answer="at least 16"),
    course("bench: a map with steps", "bench", "--map", "--steps", "5", answer="no meaning for --map"),
    course("bench: 0 processes", "bench", "--process-counts", "0", answer="process"),
    course("bench: 1000 processes", "bench", "--process-counts", "1000", answer="process"),
    course("bench: processes in words", "bench", "--process-counts", "two", answer="process"),
    course("bench: unknown scaling", "bench", "--scaling", "none", answer="invalid choice"),
    course("bench: a truncated experiment", "bench", "--output-dir", "e", answer="does not fit",
           prepare=write("e/serial_results.json", "{")),
    course("trace: unknown recipe", "trace", "--recipe", "x", answer="unknown recipe"),
    course("trace: no processes", "trace", "--processes", "0", answer="--processes must be from 2 to"),
    course("trace: a batch that cannot be split", "trace", "--processes", "5", answer="cannot be split evenly"),
    course("trace: no time", "trace", "--slow-ms", "-1", answer="--slow-ms must be from 0"),
    course("trace: a time in words", "trace", "--slow-ms", "long", answer="slow-ms"),
    course("trace: a file as results", "trace", "--results-dir", "report.toml", answer="choose a writable folder"),
    course("predict: no network", "predict", answer="bandwidth-gbit"),
    course("predict: no latency", "predict", "--bandwidth-gbit", "10", answer="latency-us"),
    course("predict: a bandwidth with its unit", "predict", "--bandwidth-gbit", "10Gbit", "--latency-us", "5",
           answer="bandwidth-gbit"),
    course("predict: a bandwidth of 0", *NETWORK[:2], "0", *NETWORK[3:], answer="--bandwidth-gbit must be above 0"),
    course("predict: a bandwidth without end", *NETWORK[:2], "inf", *NETWORK[3:], answer="above 0"),
    course("predict: a latency in words", *NETWORK[:4], "soon", answer="latency-us"),
    course("predict: a latency below 0", *NETWORK[:4], "-5", answer="--latency-us must be above 0"),
    course("predict: a latency that is no number", *NETWORK[:4], "nan", answer="above 0"),
    course("predict: 0 machines", *NETWORK, "--processes", "0", answer="from 1 to"),
    course("predict: nodes that do not fill", *NETWORK, "--node-size", "6", *INSIDE, answer="does not divide"),
    course("predict: nodes of 0", *NETWORK, "--node-size", "0", answer="--node-size must be at least 1"),
    course("predict: nodes without a link", *NETWORK, "--node-size", "8", answer="needs --intra-gbit"),
    course("predict: a link without nodes", *NETWORK, *INSIDE, answer="give --node-size too"),
    course("predict: a link inside with its unit", *NETWORK, "--node-size", "8", "--intra-gbit", "5Gbit",
           answer="intra-gbit"),
    course("predict: a link without its unit", "predict", "--bandwidth", "10", answer="bandwidth-gbit"),
    course("predict: no noise", *NETWORK, "--noise-scale", "0", answer="--noise-scale must be above 0"),
    course("predict: a price below 0", *NETWORK, "--price", "-1", answer="at least 0"),
    course("predict: a recipe on your own images", *NETWORK, "--recipe", "resnet50-imagefolder", answer="is unknown"),
    course("predict: nothing measured", *NETWORK, "--recipe", "mlp-mnist", answer="run notebook 04"),
    course("report: unknown recipe", "report", "--recipe", "../../etc", answer="unknown recipe"),
    course("report: nowhere", "report", "--results-dir", "nowhere", answer="does not exist"),
    course("report: a file", "report", "--results-dir", "report.toml", answer="cannot read|does not exist"),
    course("doctor: an unknown flag", "doctor", "--heal", answer="nrecognized"),
]  # fmt: skip
FILES = [
    report("no baseline", "does not exist", lambda: (RECORDS / "baseline_metrics.json").unlink()),
    report("an empty record", "does not fit", cut("distributed_metrics.json", 0)),
    report("a truncated record", "does not fit", cut("distributed_metrics.json", 700)),
    report("a truncated history", "does not fit", cut("baseline_history.json", 200)),
    report("a truncated benchmark", "does not fit", cut("benchmark.json", 900)),
    report("a truncated sweep", "does not fit", cut("batch_sweep.json", 900)),
    report("bytes that are no text", "does not fit", write(RECORDS / "step_breakdown.json", b"\xff\xfe\x00")),
    report("brackets without end", "does not fit", write(RECORDS / "step_breakdown.json", "[" * 100_000)),
    report("another version", "schema_version", change("baseline_metrics.json", "schema_version", 9)),
    report("a strange field", "surprise", change("baseline_metrics.json", "surprise", 1)),
    report("a strange setting", "config.surprise", change("baseline_metrics.json", "config", "surprise", 1)),
    report("a bad setting", "at least 1", change("baseline_metrics.json", "config", "batch_size", 0)),
    report("a day that is none", "finished_at", change("distributed_metrics.json", "finished_at", "yesterday")),
    report("the other kind", "belongs to another run", change("baseline_metrics.json", "kind", "distributed")),
    report("another data set", "be compared", change("baseline_metrics.json", "dataset", "fingerprint", "1" * 64)),
    report("no serial timings", "does not agree",
           change("benchmark.json", "configurations", 0, "role", "no-communication")),
    report("an unknown network", "batch-size sweep", change("batch_sweep.json", "points", 0, "model", "gpt")),
    report("no report.toml", "restore it", lambda: Path("report.toml").unlink()),
    report("a truncated report.toml", "not valid TOML", write("report.toml", "title = ")),
    report("a report.toml of others", "does not fit", write("report.toml", "[project]\nname = 'x'")),
    report("a report.toml of a megabyte", "larger than", write("report.toml", "#" * 1_000_000)),
    report("a folder as report.pdf", "cannot write", lambda: (RECORDS / "report.pdf").unlink() or
           write(RECORDS / "report.pdf" / "x", "x")()),
    report("a folder as record", "cannot read", lambda: (RECORDS / "batch_sweep.json").unlink() or
           (RECORDS / "batch_sweep.json").mkdir()),
]  # fmt: skip
TABLE = [*FLAGS, *FOLDERS, *COMMANDS, *FILES]


def finish_course(folder: Path) -> None:
    """The records of a finished course, without running one."""
    runs = [make_run(), make_run("distributed", correct=88)]
    for run, history in runs:
        metrics, epochs = record_paths(folder, run.kind)
        save_record(run, metrics)
        save_record(history, epochs)
    save_record(make_benchmark(), folder / "benchmark.json")
    save_summary(folder)
    save_record(make_breakdown(), folder / "step_breakdown.json")
    save_record(make_sweep(), folder / "batch_sweep.json")


def check_refused(case: Case, refuse: Callable, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One case of TABLE: code 2, one line with the answer, and every file as it was before."""

    def no_network(*args: object, **options: object) -> None:
        raise OSError("no network")

    def files() -> dict[Path, bytes]:
        return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}

    monkeypatch.setattr("torchvision.datasets.utils.urllib.request.urlopen", no_network)
    monkeypatch.chdir(folder)
    case.prepare()
    before = files()
    main = distributed_train.main if case.program.endswith(".py") else cli.main
    code, printed = refuse(main, case.program, list(case.arguments))
    assert code == 2, printed
    assert printed.startswith(f"{case.program}: error: ")
    assert len(printed.strip().splitlines()) == 1
    assert re.search(case.answer, printed), printed
    assert len(printed) < 2000
    assert files() == before
