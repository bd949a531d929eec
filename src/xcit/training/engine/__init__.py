"""Trains and evaluates any task; knows none by name."""
