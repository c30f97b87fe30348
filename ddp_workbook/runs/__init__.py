"""What a run keeps on disk and how it ends: checkpoints, stop signals, output files."""
