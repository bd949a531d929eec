"""Tests all readers of the package with damaged and hostile input; `__main__.py` makes long runs."""
