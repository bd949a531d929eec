"""XCiT (Cross-Covariance Image Transformers, arXiv 2106.09681) on current PyTorch: models, training and inference.

A public name is imported when it is first used. So `import xcit` does not import torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from xcit import explain as explain
    from xcit.deploy import export as export
    from xcit.deploy import load_exported as load_exported
    from xcit.errors import XCiTError as XCiTError
    from xcit.inference.classify import extract_features as extract_features
    from xcit.inference.classify import predict as predict
    from xcit.inference.detect import detect as detect
    from xcit.inference.reading import Unreadable as Unreadable
    from xcit.inference.segment import segment as segment
    from xcit.measure.complexity import complexity as complexity
    from xcit.measure.knn import evaluate_knn as evaluate_knn
    from xcit.measure.linear import train_linear as train_linear
    from xcit.measure.test import test as test
    from xcit.models import XCiT as XCiT
    from xcit.models import XCiTConfig as XCiTConfig
    from xcit.training.run import train as train
    from xcit.zoo import convert as convert
    from xcit.zoo import fetch as fetch
    from xcit.zoo import find_checkpoint as find_checkpoint
    from xcit.zoo import get_backbone as get_backbone
    from xcit.zoo import get_model as get_model
    from xcit.zoo import list_models as list_models
    from xcit.zoo import load_weights as load_weights
    from xcit.zoo import save_model as save_model
    from xcit.zoo import verify as verify

__version__ = "0.1.0"

_HOME = {
    "Unreadable": "inference.reading",
    "XCiT": "models",
    "XCiTConfig": "models",
    "XCiTError": "errors",
    "complexity": "measure.complexity",
    "convert": "zoo",
    "detect": "inference.detect",
    "evaluate_knn": "measure.knn",
    "export": "deploy",
    "extract_features": "inference.classify",
    "fetch": "zoo",
    "find_checkpoint": "zoo",
    "get_backbone": "zoo",
    "get_model": "zoo",
    "list_models": "zoo",
    "load_exported": "deploy",
    "load_weights": "zoo",
    "predict": "inference.classify",
    "save_model": "zoo",
    "segment": "inference.segment",
    "test": "measure.test",
    "train": "training.run",
    "train_linear": "measure.linear",
    "verify": "zoo",
}
__all__ = [*_HOME]


def __getattr__(name: str) -> object:
    if name == "explain":  # `xcit.explain` is a module of this package; the other public names are names in modules
        return import_module("xcit.explain")
    if name not in _HOME:
        raise AttributeError(f"module 'xcit' has no attribute {name!r}")
    return getattr(import_module(f"xcit.{_HOME[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOME, "explain"})
