"""What a batch means: loss, metrics and data wiring, one file per task."""
