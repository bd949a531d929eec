"""Training: `run.py` starts a run. The training loop is in `engine/`, tasks are in `tasks/`, configs in `recipes/`."""
