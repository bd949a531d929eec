"""A recipe trained on its data: `run.py`; how (`engine/`), on what (`tasks/`), and with which numbers (`recipes/`)."""
