"""The published numbers, measured anew: what is to be measured, on what, and the page that says how it went."""
