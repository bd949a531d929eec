"""Files, formats and tensor names of checkpoints, independent of the model classes."""
