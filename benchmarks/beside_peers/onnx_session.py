"""Exports timm's model to an ONNX file for one image size, and runs the file in ONNX Runtime on the CPU."""

import warnings
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn

from beside_peers.work import Case


def open_session(
    build_model: Callable[[], nn.Module], case: Case, folder: Path, *, keeps_memory: bool
) -> Callable[[Tensor], Tensor]:
    """Returns a function that computes logits of images in ONNX Runtime; exports the model if there is no file.

    Args:
        build_model: returns the model in evaluation mode.
        case: the case to measure, which has the images and the number of threads.
        folder: folder for the ONNX file.
        keeps_memory: whether ONNX Runtime keeps its working memory for the next run.
    """
    import onnxruntime

    path = folder / f"{case.architecture}-{case.image_size}-{case.batch_size}.onnx"
    if not path.exists():
        _export(build_model(), case, path)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = case.threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    # The threads of ONNX Runtime wait for work in a busy loop. The loop must stop after a run, because it would slow
    # down the next contender.
    options.add_session_config_entry("session.force_spinning_stop", "1")
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    run_options = onnxruntime.RunOptions()
    if not keeps_memory:
        run_options.add_run_config_entry("memory.enable_memory_arena_shrinkage", "cpu:0")

    def forward(images: Tensor) -> Tensor:
        (logits,) = session.run(None, {"images": images.numpy()}, run_options)
        return torch.from_numpy(logits)

    return forward


def _export(model: nn.Module, case: Case, path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # from the exporter, of no use here
        torch.onnx.export(
            model,
            (case.images(),),
            path,
            input_names=["images"],
            output_names=["logits"],
            dynamo=True,
            verbose=False,
        )
