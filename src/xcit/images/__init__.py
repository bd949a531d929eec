"""Finds, reads and preprocesses images, reads large images by rows, and writes maps and polygons."""
