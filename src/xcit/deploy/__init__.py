"""Exports models to files that other runtimes run, and runs such files.

The package knows no data set: the caller passes batches of images.
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
