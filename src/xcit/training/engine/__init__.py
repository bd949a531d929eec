"""Trains and evaluates any task, without code for a particular one."""
