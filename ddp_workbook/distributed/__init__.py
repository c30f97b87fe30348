"""Processes that work together: process group, collectives, DDP, communication hooks, torchrun, %%ranks cells."""
