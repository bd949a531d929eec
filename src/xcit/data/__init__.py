"""Datasets, transforms and readers by kind of data."""
