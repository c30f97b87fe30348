"""TrainConfig: everything that decides what a training run computes, checked when it is made."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Literal

from pydantic import ConfigDict

from ddp_workbook.errors import InputError

ModelName = Literal["resnet50", "mlp", "cnn"]
DatasetName = Literal["digits", "mnist", "cifar10", "imagefolder"]
IMAGES = {"digits": (1437, 360), "mnist": (60_000, 10_000), "cifar10": (50_000, 10_000)}  # (training, test)
GREY = ("digits", "mnist")  # data sets with one channel


@dataclass(frozen=True, kw_only=True)
class Keeping:
    """What a run does against being interrupted. It changes nothing that the run computes, so no record holds it."""

    resume: bool = False
    """Go on from the newest whole checkpoint of an interrupted run with the same settings; afresh if there is none."""
    checkpoint_every: int = 0
    """Steps between two checkpoints of the run under way; 0: at the ends of epochs only, at most once a minute."""

    def __post_init__(self) -> None:
        if self.checkpoint_every < 0:
            raise InputError(f"--checkpoint-every must be at least 0, not {self.checkpoint_every}")


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """One run. Flags of distributed_train.py are these fields; a recipe gives them other defaults."""

    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(extra="forbid")  # a record with a strange field is refused

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
    """Images per process and step, as in DDP; the global batch is this times processes times accumulate."""
    accumulate: int = 1
    """Batches whose gradients are added up before one optimizer step."""
    lr: float = 0.1
    """Peak learning rate at a global batch of lr_batch images; it scales with the real global batch."""
    lr_batch: int = 128
    """Global batch that lr belongs to."""
    head_lr: float = 0.1
    """Learning rate of the last layer, as a multiple of lr: with few classes and many features it is the steepest."""
    optimizer: Literal["sgd", "adam"] = "sgd"
    """SGD with Nesterov momentum, or Adam with torch's betas."""
    momentum: float = 0.9
    """Momentum of SGD; Adam has none to set."""
    weight_decay: float = 5e-4
    """L2 penalty, not applied to biases and normalisation parameters."""
    dropout: float = 0.0
    """Share of the hidden activations that mlp and cnn drop in training; a ResNet has none."""
    label_smoothing: float = 0.1
    """Share of the target probability that is spread over all classes."""
    schedule: Literal["onecycle", "step", "constant"] = "onecycle"
    """Learning rate after the warm-up: cosine to zero, stairs, or flat."""
    warmup: float = 0.1
    """Share of the steps spent climbing from 1/25 of the peak (cosine for onecycle, else linear)."""
    step_epochs: int = 30
    """Stairs: epochs between two drops of the step schedule."""
    step_gamma: float = 0.1
    """Stairs: what a drop multiplies the learning rate by."""

    seed: int = 0
    """Decides the initial weights, the order of the images and the augmentation."""
    device: Literal["auto", "cpu", "cuda", "mps"] = "auto"
    """Where to compute; auto takes the accelerator that torch finds."""
    backend: Literal["auto", "gloo", "nccl"] = "auto"
    """What carries the collectives; auto: NCCL on CUDA, Gloo on CPU."""
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto"
    """Arithmetic of forward and backward; auto: bf16 where the hardware has it, else fp16 on CUDA, else fp32."""
    threads: int = 0
    """CPU threads per process; 0: cores divided by the processes on this machine."""
    averaging: Literal["all-reduce", "shared-memory"] = "all-reduce"
    """How DDP averages gradients: by the backend's all-reduce, or, on the CPUs of one machine, in shared memory."""
    gradient_compression: Literal["none", "bf16", "fp16", "powersgd"] = "none"
    """DDP communication hook that shrinks gradients before the all-reduce."""
    tensorboard: bool = False
    """Also write TensorBoard event files to <results-dir>/<recipe>/tensorboard."""

    def __post_init__(self) -> None:
        at_least_one = ("image_size", "epochs", "batch_size", "accumulate", "lr_batch", "step_epochs")
        for name in at_least_one:
            self._require(name, getattr(self, name) >= 1, "at least 1")
        self._require("image_size", 28 <= self.image_size <= 512, "between 28 and 512")
        self._require("epochs", self.epochs <= 10_000, "at most 10000")
        self._require("lr", 0 < self.lr < float("inf"), "above 0")
        self._require("head_lr", 0 < self.head_lr < float("inf"), "above 0")
        self._require("momentum", 0 <= self.momentum < 1, "at least 0 and below 1")
        self._require("weight_decay", 0 <= self.weight_decay < float("inf"), "at least 0")
        self._require("dropout", 0 <= self.dropout < 1, "at least 0 and below 1")
        self._require("dropout", self.dropout == 0 or self.model != "resnet50", "0 for resnet50, which has no dropout")
        self._require("label_smoothing", 0 <= self.label_smoothing < 1, "at least 0 and below 1")
        self._require("warmup", 0 <= self.warmup < 1, "at least 0 and below 1")
        self._require("step_gamma", 0 < self.step_gamma <= 1, "above 0 and at most 1")
        self._require("seed", 0 <= self.seed < 2**63, "from 0 to 2**63 - 1")
        self._require("threads", 0 <= self.threads <= 1024, "from 0 to 1024")
        whole = self.averaging == "all-reduce" or self.gradient_compression == "none"
        self._require("gradient_compression", whole, "none with --averaging shared-memory")

    def _require(self, name: str, holds: bool, expected: str) -> None:
        if not holds:
            flag = "--" + name.replace("_", "-")
            raise InputError(f"{flag} must be {expected}, not {getattr(self, name)}")

    @property
    def recipe(self) -> str:
        """Name of the run's folder under results/: model and data set."""
        return f"{self.model}-{self.dataset}"

    @property
    def run_dir(self) -> Path:
        return self.results_dir / self.recipe

    @property
    def channels(self) -> int:
        """Of the images that the model sees: a ResNet wants three, the small networks take grey as it is."""
        return 1 if self.dataset in GREY and self.model != "resnet50" else 3

    def global_batch(self, processes: int) -> int:
        """Images behind one optimizer step."""
        return self.batch_size * self.accumulate * processes

    def peak_lr(self, processes: int) -> float:
        """Linear scaling: the learning rate follows the global batch (Goyal et al. 2017, arXiv:1706.02677).

        A rule of thumb for SGD, up to some batch size; for Adam it is a choice (theory has the square root: Malladi et
        al. 2022, arXiv:2205.10287).
        """
        return self.lr * self.global_batch(processes) / self.lr_batch
