"""Damaged and hostile input for everything that the package reads: `harness.py`; long runs by `__main__.py`."""
