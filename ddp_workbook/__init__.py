"""The plumbing behind the workbook: what the notebooks and distributed_train.py call."""
