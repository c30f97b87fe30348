"""What this machine offers and what a run uses: accelerator, backend, precision, threads."""

from __future__ import annotations

import ctypes
import os
import platform
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import psutil
import torch
import torch.distributed as dist

from ddp_workbook.config import TrainConfig
from ddp_workbook.errors import InputError
from ddp_workbook.records.run import Environment

GLIBC_TRIM_THRESHOLD, GLIBC_MMAP_THRESHOLD = -1, -3  # M_TRIM_THRESHOLD and M_MMAP_THRESHOLD in malloc.h
AUTOCAST_DTYPES = {"fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16}


def available_cores() -> int:
    """CPU cores that this process may use (fewer than the machine has, inside a container or under taskset)."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def physical_cores() -> int:
    """Physical cores that this process may use: torch's own default number of threads.

    Fewer than the available ones where each core runs two threads. Equal to them where the system does not say.
    """
    return min(psutil.cpu_count(logical=False) or available_cores(), available_cores())


def choose_device(asked: str, processes: int = 1, local_rank: int = 0) -> torch.device:
    """Device of one process. `asked` is TrainConfig.device, `processes` the number of processes of the whole run.

    Several processes use the CPU instead of MPS, because Gloo has no MPS collectives. Raises InputError when the
    device asked for does not exist.
    """
    accelerator = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    kind = accelerator.type if accelerator else "cpu"
    if asked == "auto":
        asked = kind if kind in ("cuda", "mps") else "cpu"
        if asked == "mps" and processes > 1:
            asked = "cpu"
    if asked == "mps" and processes > 1:
        raise InputError("--device mps cannot run several processes (Gloo has no MPS collectives); use --device cpu")
    if asked not in ("cpu", kind):
        raise InputError(f"--device {asked} is not available on this machine; use --device auto or --device cpu")
    if asked == "cuda":
        return torch.device("cuda", local_rank % torch.cuda.device_count())
    return torch.device(asked)


def choose_backend(asked: str, device: torch.device, local_processes: int = 1) -> str:
    """Backend of the collectives. Raises InputError for NCCL where it cannot work."""
    if asked == "auto":
        shared = device.type == "cuda" and local_processes > torch.cuda.device_count()
        asked = "gloo" if shared else dist.get_default_backend_for_device(device)  # NCCL needs one GPU per process
    if asked == "nccl":
        if device.type != "cuda" or not dist.is_nccl_available():
            raise InputError("--backend nccl needs CUDA devices; use --backend gloo or --backend auto")
        if local_processes > torch.cuda.device_count():
            raise InputError(
                f"--backend nccl needs one GPU per process ({local_processes} processes, "
                f"{torch.cuda.device_count()} GPUs); use --backend gloo or fewer processes"
            )
    return asked


def has_bf16(device: torch.device) -> bool:
    """True when the hardware multiplies bf16 natively, not through fp32."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    if device.type == "mps":
        return torch.backends.mps.is_macos_or_newer(14, 0)
    checks = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")
    if any(getattr(torch.cpu, check, bool)() for check in checks):
        return True
    return sys.platform == "linux" and " bf16" in _cpuinfo("Features")  # Arm


def choose_precision(asked: str, device: torch.device) -> str:
    """fp32, bf16 or fp16. Raises InputError when the device does not offer the one asked for."""
    if asked == "auto":
        if device.type == "mps":
            return "fp32"  # the first Apple chips emulate bf16
        if has_bf16(device):
            return "bf16"
        return "fp16" if device.type == "cuda" else "fp32"
    if asked == "bf16" and not has_bf16(device):
        raise InputError(f"--precision bf16 is not in this {device.type}'s hardware; use --precision fp32 or auto")
    if asked == "fp16" and device.type == "cpu":
        raise InputError("--precision fp16 needs an accelerator; on a CPU use --precision bf16, fp32 or auto")
    return asked


class Precision:
    """Number format of a step: device, autocast type, and the gradient scaler that only fp16 needs."""

    def __init__(self, device: torch.device, name: str) -> None:
        self.device, self.name, self.dtype = device, name, AUTOCAST_DTYPES[name]
        self.scaler = torch.amp.GradScaler(device.type, enabled=name == "fp16")

    @classmethod
    def of(cls, config: TrainConfig, device: torch.device) -> Precision:
        """The precision of a run on this device. Raises InputError when the device does not offer it."""
        return cls(device, choose_precision(config.precision, device))

    def autocast(self) -> torch.autocast:
        """Context in which forward computes in this precision."""
        return torch.autocast(self.device.type, dtype=self.dtype, enabled=self.dtype is not None)


def choose_threads(asked: int, local_processes: int) -> int:
    """CPU threads of one process: its share of the cores unless asked otherwise."""
    return asked or max(1, available_cores() // local_processes)


def prepare_cpu(config: TrainConfig, local_processes: int) -> int:
    """Set how this process uses the CPU: its threads, whose number is returned, and what becomes of freed memory."""
    (return_freed_memory if config.shard == "full" else keep_freed_memory)()
    threads = choose_threads(config.threads, local_processes)
    torch.set_num_threads(threads)
    return threads


def keep_freed_memory() -> None:
    """From now on glibc keeps what tensors free, for the next step, which asks for as much again.

    By default it gives most of it back to the system, which clears all pages before it hands them out the next time: a
    tenth of the time of a ResNet-50's step (bench/README.md). With other C libraries this does nothing.
    """
    _mallopt(GLIBC_MMAP_THRESHOLD, 2**30)
    _mallopt(GLIBC_TRIM_THRESHOLD, 2**31 - 1)


def return_freed_memory() -> None:
    """From now on glibc gives freed tensors of 1 MiB and more back to the system at once.

    Pieces that it keeps fall apart: a sharded ResNet-50, whose blocks are gathered and freed in each step, then takes
    more memory than the whole one (bench/README.md). With other C libraries this does nothing.
    """
    _mallopt(GLIBC_MMAP_THRESHOLD, 2**20)
    _mallopt(GLIBC_TRIM_THRESHOLD, 2**20)


def _mallopt(option: int, value: int) -> None:
    with suppress(OSError, AttributeError, TypeError):  # Windows, macOS, musl
        ctypes.CDLL(None).mallopt(option, value)


def synchronize(device: torch.device) -> None:
    """Wait until the device has finished its queue; only then is a clock reading right."""
    if device.type != "cpu":
        torch.accelerator.synchronize(device)


def peak_memory_bytes() -> int:
    """Largest resident memory of this process so far."""
    if sys.platform == "win32":
        return psutil.Process().memory_info().peak_wset
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024  # macOS counts bytes, Linux kilobytes


def accelerator_peak_bytes(device: torch.device) -> int | None:
    """Largest memory of tensors on a CUDA device so far; None on other devices."""
    return torch.cuda.max_memory_allocated(device) if device.type == "cuda" else None


def describe_environment(device: torch.device) -> Environment:
    """The machine and the software, for the record of a run."""
    import torchvision

    on_cuda = device.type == "cuda"
    return Environment(
        cpu=_cpu_name(),
        cores=available_cores(),
        memory_bytes=psutil.virtual_memory().total,
        os=f"{platform.system()} {platform.release()} {platform.machine()}",
        python=platform.python_version(),
        torch=torch.__version__,
        torchvision=torchvision.__version__,
        device=device.type,
        accelerator=torch.cuda.get_device_name(device) if on_cuda else ("Apple GPU" if device.type == "mps" else None),
        accelerator_count=torch.cuda.device_count() if on_cuda else int(device.type == "mps"),
        git_commit=_git_commit(),
    )


def _cpuinfo(key: str) -> str:
    lines = Path("/proc/cpuinfo").read_text(errors="replace").splitlines()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith(key)), "")


def _cpu_name() -> str:
    if sys.platform == "linux" and (name := _cpuinfo("model name")):
        return name
    if sys.platform == "darwin":
        return _output_of("sysctl", "-n", "machdep.cpu.brand_string") or platform.processor()
    return platform.processor() or platform.machine()


def _git_commit() -> str | None:
    """Commit of the running code, with a plus sign when files differ from it; None outside a git checkout."""
    root = Path(__file__).resolve().parent
    commit = _output_of("git", "-C", str(root), "rev-parse", "--short=10", "HEAD")
    changed = _output_of("git", "-C", str(root.parent), "status", "--porcelain", "--untracked-files=no", "--", "*.py")
    return f"{commit}+" if commit and changed else commit or None


def _output_of(*command: str) -> str:
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=10, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""
