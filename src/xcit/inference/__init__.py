"""Inference on images: classes, features, label maps, objects and attention."""
