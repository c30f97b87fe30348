"""Published scaling results, as data for the cost model: what the source says, and what had to be assumed.

Numbers are the sources' own unless a comment says "assumed". Parameters and work of the networks are counted from
torchvision's (a test compares them) and, for BERT-Base, from Devlin et al. 2019.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from ddp_workbook.analysis.fits import Link

MEGA = 1e6

# Groups of layers from output to input: (parameters, multiply-adds of one image in the forward pass, in millions).
# BERT-Base, for a sequence: output layers (which share their matrix with the embeddings, and predict few of the words),
# 12 blocks, embeddings; its work is in millions of multiply-adds for each word.
LAYERS: dict[str, tuple[tuple[int, float], ...]] = {
    "ResNet-50": (
        (2_049_000, 2.0), (14_964_736, 809.2), (7_098_368, 1464.3), (1_219_584, 1027.6), (225_344, 785.9),
    ),
    "ResNet-101": (
        (2_049_000, 2.0), (14_964_736, 809.2), (26_090_496, 5176.6), (1_219_584, 1027.6), (225_344, 785.9),
    ),
    "ResNet-152": (
        (2_049_000, 2.0), (14_964_736, 809.2), (40_613_888, 8015.3), (2_339_840, 1901.1), (225_344, 785.9),
    ),
    "VGG-16": (
        (123_642_856, 123.6), (7_079_424, 1387.3), (5_899_776, 4624.2), (1_475_328, 4624.2), (260_160, 4710.9),
    ),
    "Inception V3": (
        (2_049_000, 2.0), (12_819_712, 1001.9), (7_974_656, 2369.2), (818_528, 999.1), (172_672, 1340.8),
    ),
    "BERT-Base": ((1_200_000, 4.0), (85_054_464, 85.1), (23_837_184, 0.0)),
}  # fmt: skip


def gradient_bytes(model: str) -> int:
    """Bytes of a network's gradients in fp32."""
    return 4 * sum(parameters for parameters, _ in LAYERS[model])


def gbit(rate: float, latency_us: float) -> Link:
    """A link by its nominal rate in Gbit/s."""
    return Link(1e-6 * latency_us, 1e9 / 8 * rate)


# Seconds of a message are those in NCCL's own tuning table (src/graph/tuning.cc, ring, protocol Simple): 3.4 us over
# NVLink, 5.7 over PCIe, 9.6 over a network. Rates of links are nominal: PCIe 3.0 x16 126 Gbit/s; 4 NVLinks of a P100
# 640, 6 of a V100 1200.
PCIE = gbit(126, 5.7)
NVLINK_P100, NVLINK_V100 = gbit(640, 3.4), gbit(1200, 3.4)
NETWORK_US = 9.6
PAYLOAD = 0.9  # assumed: the share of a nominal rate that gradients get, where no row was fitted


@dataclass(frozen=True, kw_only=True)
class Setup:
    """A cluster as its source describes it, and the one unknown that a row was fitted for."""

    title: str
    node: str
    source: str
    node_size: int
    inside: Link
    between: Link
    bucket_bytes: float
    unknown: Literal["speed", "payload"] | None = None
    """speed: of its processors, as a share of the speed that `Row.rate` says; payload: share of the network's rate."""
    assumed: str


@dataclass(frozen=True, kw_only=True)
class Row:
    """A published result: efficiency over `base` processes with as many images each, or images per second.

    `rate` is images (for BERT: sequences) per second of one process alone, `backward` its seconds of a backward.
    """

    setup: str
    model: str
    images: int
    rate: float
    processes: int
    published: float
    base: int = 1
    quantity: Literal["efficiency", "images/s"] = "efficiency"
    backward: float | None = None
    fitted: bool = False
    note: str = ""


SETUPS = {
    "horovod": Setup(
        title="Horovod",
        node="4 Pascal GPUs, RoCE of 25 Gbit/s",
        source="Sergeev and Del Balso 2018, arXiv:1802.05799; docs/benchmarks.rst of Horovod; 79 %: its README of 2017",
        node_size=4,
        inside=PCIE,
        between=gbit(25, NETWORK_US),
        bucket_bytes=64e6,
        unknown="speed",
        assumed="GPUs joined by PCIe 3.0; buckets of 64 MB, Horovod's default; images/s of one GPU in proportion to "
        "TensorFlow's benchmark of a P100 (May 2017), ResNet-101 between ResNet-50 and ResNet-152 by multiply-adds",
    ),
    "goyal": Setup(
        title="Goyal et al.",
        node="8 P100 with NVLink, Ethernet of 50 Gbit/s",
        source="Goyal et al. 2017, arXiv:1706.02677, abstract and section 4.3",
        node_size=8,
        inside=NVLINK_P100,
        between=gbit(50, NETWORK_US),
        bucket_bytes=25e6,
        assumed="forward takes half of the 120 ms of backward; buckets of 25 MB",
    ),
    "dlperf": Setup(
        title="DLPerf",
        node="8 V100 with NVLink, InfiniBand of 100 Gbit/s",
        source="DLPerf Benchmark Test Report V1.0 (August 2020), github.com/Oneflow-Inc/DLPerf: PyTorch's DDP for "
        "ResNet-50, OneFlow for BERT-Base, all fp32",
        node_size=8,
        inside=NVLINK_V100,
        between=gbit(100, NETWORK_US),
        bucket_bytes=25e6,
        unknown="payload",
        assumed="buckets of 25 MB, DDP's default; sequences of 128 words",
    ),
}

# Images per second of a P100, batch 64: www.tensorflow.org/performance/benchmarks (May 2017, DGX-1, synthetic data).
P100 = {"ResNet-50": 219.0, "ResNet-152": 91.8, "Inception V3": 142.0, "VGG-16": 154.0}


def work(model: str) -> float:
    """Multiply-adds of an image in the forward pass, in millions."""
    return sum(amount for _, amount in LAYERS[model])


def between_resnets(model: str) -> float:
    """Images per second of a P100 for a ResNet between the two that were measured: linear in time over the work."""
    low, high = "ResNet-50", "ResNet-152"
    share = (work(model) - work(low)) / (work(high) - work(low))
    return 1 / ((1 - share) / P100[low] + share / P100[high])


FLAT_RING = "Horovod's ring joins all processes: four times as many messages, one after another, as between nodes here"
NO_CONTENTION = "collectives that slow down computing are not simulated"
STRAGGLERS = "waiting for the slowest of many processes is not simulated"


def _dlperf(model: str, images: int, alone: float, *results: tuple[int, float], fitted: int = 0) -> list[Row]:
    """Rows of one network: rates of 1 process and of (processes, images/s), as the report gives them."""
    return [
        Row(
            setup="dlperf", model=model, images=images, rate=alone, processes=processes, fitted=processes == fitted,
            published=rate / processes / alone, note=NO_CONTENTION if processes == 8 else "",
        )
        for processes, rate in results
    ]  # fmt: skip


ROWS = [
    Row(
        setup="horovod", model="ResNet-101", images=64, rate=between_resnets("ResNet-101"), processes=16,
        published=1656.82, quantity="images/s", fitted=True,
    ),
    Row(
        setup="horovod", model="ResNet-101", images=64, rate=between_resnets("ResNet-101"), processes=512,
        published=0.90, note=STRAGGLERS,
    ),
    Row(
        setup="horovod", model="Inception V3", images=64, rate=P100["Inception V3"], processes=512, published=0.90,
        note=STRAGGLERS,
    ),
    Row(setup="horovod", model="VGG-16", images=64, rate=P100["VGG-16"], processes=128, published=0.79),
    Row(
        setup="horovod", model="VGG-16", images=64, rate=P100["VGG-16"], processes=512, published=0.68,
        note=FLAT_RING,
    ),
    Row(
        setup="goyal", model="ResNet-50", images=32, rate=32 / (1.5 * 0.120), backward=0.120, base=8, processes=256,
        published=0.90, note=STRAGGLERS,
    ),
    *_dlperf("ResNet-50", 128, 354.40, (8, 2719.07), (16, 5307.21), (32, 10632.33)),
    *_dlperf("BERT-Base", 32, 145.21, (8, 1042.98), (16, 1890.26), (32, 3715.08), fitted=32),
    *_dlperf("BERT-Base", 64, 149.81, (8, 1138.89), (16, 2189.30), (32, 4310.42)),
    *_dlperf("BERT-Base", 96, 149.84, (8, 1158.51), (16, 2257.71), (32, 4455.97)),
]  # fmt: skip


@dataclass(frozen=True)
class OldTable:
    """The table of the older courseworks: seconds of an epoch on one GPU, and speedups by number of GPUs."""

    forward: float = 80.0
    backward: float = 95.0
    optimizer: float = 38.0
    steps: int = 391
    """Of an epoch: 50,000 images in batches of 128."""
    step_bytes: float = 94 * MEGA
    """Of gradients: those of a ResNet-50 with ten classes in fp32."""
    bucket_bytes: float = 25 * MEGA
    """Assumed: DDP's default."""
    speedups: tuple[tuple[int, float], ...] = ((2, 1.78), (4, 3.36), (8, 5.98))


OLD_TABLE = OldTable()

# Li et al. 2020 (arXiv:2006.15704): "speedup" by overlap, by backend and network. As quoted by others: not read there.
SAVED_BY_OVERLAP = {"NCCL, ResNet-50": 0.380, "NCCL, BERT": 0.352, "Gloo, ResNet-50": 0.268, "Gloo, BERT": 0.215}
