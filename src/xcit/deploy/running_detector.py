"""Runs an exported detector; this is a separate module because it imports torchvision, which takes seconds."""

from pathlib import Path

import torch
from torch import Tensor

from xcit.deploy.formats import Run
from xcit.deploy.running import Exported
from xcit.deploy.sheet import Sheet
from xcit.errors import XCiTError
from xcit.models.detection.images import pad_and_stack
from xcit.models.detection.mask_rcnn import MaskRCNN
from xcit.models.detection.roi_heads import MIN_SCORE, NUM_DETECTIONS, Detections


class ExportedDetector(Exported, MaskRCNN):
    """A detector that runs from an exported file."""

    def __init__(self, run: Run, sheet: Sheet, path: Path) -> None:
        self._open(run, sheet, path)

    def _search(
        self,
        image: Tensor,
        scale: Tensor,
        min_score: float,
        max_objects: int = NUM_DETECTIONS,
        padded: tuple[int, int] | None = None,
    ) -> Detections:
        if max_objects > NUM_DETECTIONS:
            raise XCiTError(f"{self.path}: finds at most {NUM_DETECTIONS} objects in an image, not {max_objects}")
        if min_score < MIN_SCORE:
            raise XCiTError(
                f"{self.path}: only returns scores above {MIN_SCORE}: ask for a minimum score of at least {MIN_SCORE}"
            )
        height, width = image.shape[1:]
        fixed = self.sheet.facts.size
        if fixed is not None and height <= fixed[0] and width <= fixed[1]:  # `_outputs` refuses larger images
            padded = fixed
        size = torch.tensor([height, width], dtype=torch.float32)
        boxes, labels, scores, masks = self._outputs(pad_and_stack([image], padded), size, scale.to(torch.float32))
        count = min(int((scores > min_score).sum()), max_objects)  # the scores are in descending order
        return Detections(boxes[:count], labels[:count], scores[:count], masks[:count])
