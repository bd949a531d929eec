"""Exports models to files for other runtimes, and runs these files.

The package does not read data sets: the caller passes batches of images.
"""

from xcit.deploy.exporting import ExportReport, Origin, Wanted, export, export_model, origin_of, weights_of
from xcit.deploy.formats import FORMATS, Target, is_exported
from xcit.deploy.running import exported_or, load_exported
from xcit.deploy.sheet import FeatureOutput

__all__ = [
    "FORMATS",
    "ExportReport",
    "FeatureOutput",
    "Origin",
    "Target",
    "Wanted",
    "export",
    "export_model",
    "exported_or",
    "is_exported",
    "load_exported",
    "origin_of",
    "weights_of",
]
