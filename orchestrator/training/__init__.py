"""The gang: one Ray Train run, DeepSpeed around the frozen base, many tasks trained at once.

`gang.py` is the driver's side, `worker.py` a rank's; the files between them know neither Ray nor
the registry. Workers speak to one actor, the board, and never to the database.
"""
