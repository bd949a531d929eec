"""Reads, writes and downloads checkpoint files, and converts their tensor names; it does not use the model classes."""
