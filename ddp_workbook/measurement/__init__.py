"""Everything that is timed: worker pool, benchmark, experiment, step-time breakdown, batch-size sweep."""
