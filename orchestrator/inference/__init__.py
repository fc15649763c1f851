"""Batch runs: a file of mixed tasks, many prompts in one forward pass, through Ray Data.

`predictor.py` answers rows and knows no Ray; `batch_run.py` is the run. Neither sees the registry:
versions are resolved once, before a run starts, and handed over.
"""
