"""Launch the same short distributed run again and again: a run that has done its work must exit with code 0.

    python bench/launches.py [--launches 50] [--processes 2]

Each launch is a whole run (digits, one epoch) under torchrun. Exit codes other than 0 are counted, and shown with the
last lines of output.
"""

from __future__ import annotations

import collections
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass

import tyro


@dataclass(frozen=True)
class Options:
    launches: int = 50
    processes: int = 2


def main(options: Options) -> int:
    codes: collections.Counter[int] = collections.Counter()
    seconds = []
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
        command += [f"--nproc_per_node={options.processes}", "distributed_train.py", "--recipe", "resnet50-digits"]
        command += ["--epochs", "1", "--results-dir", folder, "--checkpoint-dir", folder]
        for number in range(1, options.launches + 1):
            start = time.perf_counter()
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            seconds.append(time.perf_counter() - start)
            codes[done.returncode] += 1
            if done.returncode:
                print(f"launch {number}: exit code {done.returncode}", *done.stderr.splitlines()[-15:], sep="\n")
    seconds.sort()
    print(f"{options.launches} launches of {options.processes} processes: exit codes {dict(codes)}")
    print(f"seconds per launch: median {seconds[len(seconds) // 2]:.1f}, worst {seconds[-1]:.1f}")
    return 0 if set(codes) == {0} else 1


if __name__ == "__main__":
    sys.exit(main(tyro.cli(Options, description=__doc__)))
