"""Data sets, batches, models, optimizer, one step, one epoch, one evaluation. Knows no files of a run."""
