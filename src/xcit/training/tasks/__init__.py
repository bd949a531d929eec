"""The tasks: loss, metrics and data of each, in one file per task."""
