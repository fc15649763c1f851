"""A batch run from its input to its output: `request.py` checks and pins, `run.py` works on a run
under its lease, `resume.py` finds out what of a run still holds. The ledger says what counts
(`registry/batch_book.py`); workers, who see neither, write parts (`inference/shard_worker.py`)."""
