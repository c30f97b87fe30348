"""Gloo of torch 2.9 and 2.10 prints a line for every group, past sys.stdout; this keeps it out of what people read."""

from __future__ import annotations

import os
import re

import torch
from torch.distributed import distributed_c10d

# "[Gloo] Rank 0 is connected to 1 peer ranks. Expected number of connected peer ranks is : 1": printed piece by piece,
# so that the lines of two ranks can be mixed.
GLOO_LINE = re.compile(r"\[Gloo\] Rank|connected to \d+ peer ranks|number of connected peer ranks")


def silence_gloo() -> None:
    """From now on, groups of this process are made without that line. Newer versions of torch print none."""
    if torch.__version__ >= "2.11" or distributed_c10d.ProcessGroupGloo.__module__ == __name__:
        return

    class ProcessGroupGloo(distributed_c10d.ProcessGroupGloo):
        """Gloo's group, made while file descriptor 1 leads nowhere."""

        def __init__(self, *arguments: object, **options: object) -> None:
            stdout, nowhere = os.dup(1), os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, 1)
            try:
                super().__init__(*arguments, **options)
            finally:
                os.dup2(stdout, 1)
                os.close(stdout)
                os.close(nowhere)

    distributed_c10d.ProcessGroupGloo = ProcessGroupGloo
