"""Reads, writes and downloads checkpoint files, and converts their tensor names, without using the model classes."""
