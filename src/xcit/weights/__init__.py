"""Files, formats and key maps of checkpoints: knows no model class."""
