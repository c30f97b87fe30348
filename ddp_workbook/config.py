"""TrainConfig: everything that decides what a training run computes, checked when it is created."""

from __future__ import annotations

import re
from collections.abc import Collection
from dataclasses import dataclass, fields
from pathlib import Path
from typing import ClassVar, Literal

from pydantic import ConfigDict

from ddp_workbook.errors import InputError
from ddp_workbook.specs import DATASETS, MODELS

ModelName = Literal[*MODELS]
DatasetName = Literal[*DATASETS]
DeviceName = Literal["cpu", "cuda", "mps"]
CommHookName = Literal["allreduce", "bf16", "fp16", "powersgd", "shared-memory"]
SHARES = re.compile(r"[1-9][0-9]{0,5}(:[1-9][0-9]{0,5})*")  # of --balance


@dataclass(frozen=True, kw_only=True)
class CheckpointOptions:
    """When a run writes checkpoints and whether it resumes. They do not change the result, so no record holds them."""

    resume: bool = False
    """Resume an interrupted run with the same settings from its newest complete checkpoint; else start from scratch."""
    checkpoint_every: int = 0
    """Steps between two checkpoints; 0: only at the ends of epochs, at most once a minute."""

    def __post_init__(self) -> None:
        if self.checkpoint_every < 0:
            raise InputError(f"--checkpoint-every must be at least 0, not {self.checkpoint_every}")


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """One run. Flags of distributed_train.py are these fields; a recipe gives them other defaults."""

    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(extra="forbid")  # a record with an unknown field is refused

    model: ModelName = "resnet50"
    """Network to train."""
    dataset: DatasetName = "cifar10"
    """Images to train on: digits come with scikit-learn, mnist and cifar10 are downloaded, imagefolder is yours."""
    data_dir: Path = Path("data")
    """Folder with the data (for imagefolder: the one that holds train/<class>/* and test/<class>/*)."""
    results_dir: Path = Path("results")
    """Folder in which <recipe>/<baseline|distributed>_metrics.json and _history.json are written."""
    checkpoint_dir: Path = Path("checkpoints")
    """Folder in which the trained model is written."""
    image_size: int = 32
    """Height and width, in pixels, of the images that the model sees."""
    augment: bool = True
    """Train on random crops (shifted by up to 1/8 of the size, reflected at the borders) and flips."""
    flip: bool | None = None
    """Mirror training images at random; None: only where a mirrored image keeps its class (not for digits)."""

    epochs: int = 10
    """Passes over the training images."""
    batch_size: int = 128
    """Images per process and step, as in DDP; the global batch is this times processes times grad-accum-steps."""
    grad_accum_steps: int = 1
    """Batches whose gradients are added up before one optimizer step."""
    balance: str = "equal"
    """How the images of a global batch are split: equal, auto (in proportion to each rank's speed, measured when the
    run begins), or shares in rank order, such as 1:2."""
    lr: float = 0.1
    """Peak learning rate at a global batch of base-batch-size images; it scales with the real global batch."""
    base_batch_size: int = 128
    """Global batch that lr belongs to."""
    head_lr_scale: float = 0.1
    """Learning rate of the last layer divided by that of the others: few classes and many features make it steep."""
    optimizer: Literal["sgd", "adam", "adamw"] = "sgd"
    """SGD with Nesterov momentum; Adam or AdamW with torch's betas."""
    momentum: float = 0.9
    """Momentum of SGD; Adam and AdamW do not use it."""
    weight_decay: float = 5e-4
    """L2 penalty (adamw: decoupled decay), not applied to biases and normalization parameters."""
    dropout: float = 0.0
    """Share of the hidden activations that mlp and cnn drop in training; the other networks have no dropout."""
    label_smoothing: float = 0.1
    """Share of the target probability that is spread over all classes."""
    schedule: Literal["onecycle", "step", "constant"] = "onecycle"
    """Learning rate after the warm-up: cosine to zero (onecycle: the shape of one-cycle), step decay, or constant."""
    warmup: float = 0.1
    """Share of the steps in which the rate rises from 1/25 of the peak (cosine for onecycle, else linear)."""
    step_epochs: int = 30
    """Step decay: epochs between two drops."""
    step_gamma: float = 0.1
    """Step decay: factor of each drop."""

    seed: int = 0
    """Decides the initial weights, the order of the images and the augmentation."""
    device: Literal["auto", DeviceName] = "auto"
    """Where to compute; auto takes the accelerator that torch finds."""
    backend: Literal["auto", "gloo", "nccl"] = "auto"
    """Library for the collectives; auto: NCCL on CUDA, Gloo on CPU."""
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto"
    """Number format of forward and backward; auto: bf16 where the hardware has it, else fp16 on CUDA, else fp32."""
    threads: int = 0
    """CPU threads per process; 0: cores divided by the processes on this machine."""
    comm_hook: CommHookName = "allreduce"
    """DDP communication hook: all-reduce of full or compressed gradients, or shared memory (CPUs of one machine)."""
    shard: Literal["none", "optimizer", "full"] = "none"
    """What each process keeps only its share of: the optimizer's state (ZeRO-1), or parameters and gradients too."""
    tensorboard: bool = False
    """Also write TensorBoard event files to <results-dir>/<recipe>/tensorboard."""

    def __post_init__(self) -> None:
        at_least_one = ("epochs", "batch_size", "grad_accum_steps", "base_batch_size", "step_epochs")
        for name in at_least_one:
            self._require(name, getattr(self, name) >= 1, "at least 1")
        self._require("model", self.model in MODELS, f"one of {', '.join(MODELS)}")
        self._require("dataset", self.dataset in DATASETS, f"one of {', '.join(DATASETS)}")
        known = self.balance in ("equal", "auto") or SHARES.fullmatch(self.balance)
        self._require("balance", bool(known), "equal, auto, or a share from 1 to 999999 for each rank, such as 1:2")
        self._require("image_size", 28 <= self.image_size <= 512, "between 28 and 512")
        self._require("epochs", self.epochs <= 10_000, "at most 10000")
        self._require("lr", 0 < self.lr < float("inf"), "above 0")
        self._require("head_lr_scale", 0 < self.head_lr_scale < float("inf"), "above 0")
        self._require("momentum", 0 <= self.momentum < 1, "at least 0 and below 1")
        self._require("weight_decay", 0 <= self.weight_decay < float("inf"), "at least 0")
        self._require("dropout", 0 <= self.dropout < 1, "at least 0 and below 1")
        fits = self.dropout == 0 or MODELS[self.model].dropout
        self._require("dropout", fits, f"0 for {self.model}, which has no dropout")
        self._require("label_smoothing", 0 <= self.label_smoothing < 1, "at least 0 and below 1")
        self._require("warmup", 0 <= self.warmup < 1, "at least 0 and below 1")
        self._require("step_gamma", 0 < self.step_gamma <= 1, "above 0 and at most 1")
        self._require("seed", 0 <= self.seed < 2**63, "from 0 to 2**63 - 1")
        self._require("threads", 0 <= self.threads <= 1024, "from 0 to 1024")
        for name in sorted(PATHS):  # they stand in the run's record and checkpoints, which are UTF-8
            text = str(getattr(self, name))
            if text.encode(errors="ignore").decode() != text:
                raise InputError(
                    f"{flag(name)} must be a name in UTF-8, not {text!a}; rename the folder or set PYTHONUTF8=1"
                )

    def _require(self, name: str, holds: bool, expected: str) -> None:
        if not holds:
            raise InputError(f"{flag(name)} must be {expected}, not {getattr(self, name)}")

    @property
    def recipe(self) -> str:
        """Name of the run's folder under results/: model and data set."""
        return f"{self.model}-{self.dataset}"

    @property
    def run_dir(self) -> Path:
        """Folder of the run's records."""
        return self.results_dir / self.recipe

    @property
    def channels(self) -> int:
        """Channels of the images that the model sees."""
        return 1 if DATASETS[self.dataset].grey and not MODELS[self.model].colour_images else 3

    def global_batch(self, processes: int) -> int:
        """Images behind one optimizer step."""
        return self.batch_size * self.grad_accum_steps * processes

    def peak_lr(self, processes: int) -> float:
        """Linear scaling: the learning rate follows the global batch (Goyal et al. 2017, arXiv:1706.02677).

        A rule of thumb for SGD, up to some batch size; for Adam it is a choice (theory has the square root: Malladi et
        al. 2022, arXiv:2205.10287).
        """
        return self.lr * self.global_batch(processes) / self.base_batch_size


# Every field is in exactly one group. Resume, comparability, reuse of finished runs and experiments name groups, not
# fields, so a new field is thought about once, here.
PATHS = frozenset({"data_dir", "results_dir", "checkpoint_dir"})
"""Where files are."""
PLACEMENT = frozenset({"device", "backend", "threads", "tensorboard"})
"""Where and beside what it runs: results differ by rounding at most."""
SHARDING = frozenset({"shard"})
"""What each process keeps: results differ by rounding at most, but all processes must do the same."""
NUMERICS = frozenset({"precision", "comm_hook"})
"""How numbers are stored and sent: the same training with other rounding errors."""
SPLIT = frozenset({"batch_size", "grad_accum_steps", "balance"})
"""How the global batch is split. Processes times the first two is its size, which decides the result."""
RESULT = frozenset({
    "model", "dataset", "image_size", "augment", "flip", "epochs", "lr", "base_batch_size", "head_lr_scale",
    "optimizer", "momentum", "weight_decay", "dropout", "label_smoothing", "schedule", "warmup", "step_epochs",
    "step_gamma", "seed",
})  # fmt: skip
"""What is computed."""


def first_difference(first: TrainConfig, second: TrainConfig, ignore: Collection[str]) -> str | None:
    """Name of the first field, outside of `ignore`, in which two configurations differ; None where they agree."""
    names = [field.name for field in fields(TrainConfig) if field.name not in ignore]
    return next((name for name in names if getattr(first, name) != getattr(second, name)), None)


def flag(name: str) -> str:
    """A field's name as a command line has it."""
    return "--" + name.replace("_", "-")
