"""Trains a recipe: `run.py`, with the training loop in `engine/`, the tasks in `tasks/`, and configs in `recipes/`."""
