"""What %%ranks starts on every rank: runs the file that it is given, as torchrun would run a script of yours.

torchrun --nproc_per_node=2 ddp_workbook/run_cell.py cell.py
"""

import gc
import runpy
import sys

from torch.distributed.elastic.multiprocessing.errors import record

from ddp_workbook.distributed import bind_to_loopback


@record  # torchrun then shows the error of the rank that failed first
def main() -> None:
    sys.stdout.reconfigure(line_buffering=True)  # whole lines, so that the ranks' output does not run together
    bind_to_loopback()
    runpy.run_path(sys.argv[1], run_name="__main__")


if __name__ == "__main__":
    main()
    gc.collect()  # a DDP model in the cell may hold the process group: distributed.process_group says what that does
