"""Measures the accuracy, speed and size of models."""
