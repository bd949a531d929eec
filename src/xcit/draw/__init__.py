"""Draws arrays as pictures."""
