"""The training tasks. Each task has one file with its data, loss and metrics; the other files contain shared code."""
