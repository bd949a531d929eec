"""Training: `run.py` starts a run, `engine/` has the training loop, `tasks/` the tasks, and `recipes/` the configs."""
