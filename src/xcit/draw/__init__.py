"""Draws pictures of arrays: label maps, detections, attention, features, curves and confusion matrices."""
