"""From records to numbers, tables and figures: statistics, speedup, cost model, plots. No torch."""
