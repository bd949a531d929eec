"""Registering our models with other libraries, a file each; importing the file registers."""
