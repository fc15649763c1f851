"""Side by side with PEFT: the same weights and rows, checked equal first, then timed in turn.

Each benchmark is a module to run (`python -m benchmarks.train_step`) and leaves its figures, with
the machine they come from, in `results/`. Nothing here asserts a time.
"""
