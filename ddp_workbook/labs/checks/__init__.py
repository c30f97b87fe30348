"""The judges: one module for each lab, with the programs that its answer is put through."""
