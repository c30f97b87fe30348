"""The plumbing behind the workbook: what the notebooks and distributed_train.py call."""

import os

# torch reads this once, at its first allocation on the CPU. Large tensors then come in huge pages on Linux, which the
# kernel hands out faster; elsewhere it has no effect.
os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")
