"""Registers our models with other libraries, one file per library; importing a file registers them."""
