"""Measures models: how good, how fast and how large they are."""
