"""Rows through the model, for batch runs and for programs of their own.

`predictor.py` answers encoded rows and `row_answers.py` rows as they come; neither knows Ray.
`shard_worker.py` makes a shard's part, `shard_stream.py` has Ray Data do so; `batch_predictor.py`
is for pipelines of the user's. None sees the registry: versions are resolved before, and given.
"""
