"""Creates the model card (README.md) of a model's folder: a description, example code, figures and the licence."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from xcit.errors import XCiTError
from xcit.zoo.folders import LIBRARY, Shared
from xcit.zoo.kinds import kind_of_config
from xcit.zoo.records import Checkpoint, DenseRecord, Record
from xcit.zoo.shapes import architecture_of
from xcit.zoo.stored import num_parameters

# Identifiers in the Hub's list of licences. In the field `license`, the Hub only accepts such an identifier or "other".
_HUB_LICENCES = {"apache-2.0", "mit", "bsd-3-clause", "cc-by-4.0", "cc-by-nc-4.0", "cc0-1.0", "gpl-3.0", "other"}

_PAPER = "[XCiT: Cross-Covariance Image Transformers](https://arxiv.org/abs/2106.09681)"


@dataclass(frozen=True, kw_only=True)
class Figure:
    """A figure in the model card.

    Attributes:
        metric: name of the metric.
        value: the figure, in percent.
        data: name of the data set.
        measured_by: who measured it.
    """

    metric: str
    value: float
    data: str
    measured_by: str


def published_figures(record: Record) -> list[Figure]:
    """Returns the published figures of a record."""
    if isinstance(record, DenseRecord):
        return [
            Figure(metric=figure.metric, value=figure.value, data=record.dataset, measured_by=figure.measured_by)
            for figure in record.figures
        ]
    figures = []
    for accuracy in record.accuracies if isinstance(record, Checkpoint) else ():
        how = "" if accuracy.method == "classifier" else f" by {accuracy.method}"
        how += f" under {accuracy.attack}" if accuracy.attack else ""
        for name, value in (("top-1", accuracy.top1), ("top-5", accuracy.top5)):
            if value is not None:
                figures.append(
                    Figure(metric=name + how, value=value, data=record.dataset, measured_by=accuracy.measured_by)
                )
    return figures


def measured_figures(report: Path) -> list[Figure]:
    """Reads the figures from a report.json of `xcit test`.

    Raises:
        XCiTError: if the file can't be read, or is not a report of `xcit test`.
    """
    try:
        content = json.loads(report.read_text(encoding="utf-8"))
        data, by = Path(str(content["data"])).name, f"xcit test, {content['num_images']:,} images"
        found = {
            metric: value
            for key, metric in {"top1": "top-1", "top5": "top-5", "mIoU": "mIoU", "mAP": "mAP"}.items()
            if isinstance(value := content.get(key), int | float)
        }
        for kind in ("box", "mask"):
            if kind in content:
                found[f"{kind} AP"] = content[kind]["AP"]
        figures = [
            Figure(metric=metric, value=float(value), data=data, measured_by=by) for metric, value in found.items()
        ]
    except OSError as error:
        raise XCiTError(f"{report}: can't be read: {error.strerror or error}") from None
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise XCiTError(f"{report} is not a report.json of `xcit test`: {error}") from None
    if not figures:
        raise XCiTError(f"{report} is not a report.json of `xcit test`: it contains no figure")
    return figures


def model_card(shared: Shared, figures: list[Figure]) -> str:
    """Returns the text of a model card, which begins with the metadata for the Hub."""
    kind = kind_of_config(shared.config)
    backbone = kind.backbone(shared.config)
    name = getattr(shared.info, "name", "") or architecture_of(backbone)
    is_timms = shared.timm_config is not None
    lines = [
        _for_the_hub(shared, name, figures, is_timms),
        f"# {name}",
        "",
        f"A {kind.name} of the family XCiT ({_PAPER}), {architecture_of(backbone)}: width {backbone.embed_dim}, "
        f"{backbone.depth} blocks, patches of {backbone.patch_size}, {num_parameters(shared.config):,} parameters.",
        "",
        *_facts(shared),
        "",
        "## Use",
        "",
        "```python",
        *_use(kind.hub_tag(shared.config), is_timms),
        "```",
        "",
    ]
    if not is_timms:
        lines += [
            "Only the package `xcit` can load this folder, because timm and transformers have no such model.",
            "",
        ]
    if figures:
        lines += [
            "## Figures",
            "",
            "| metric | data | value | measured by |",
            "|---|---|---|---|",
            *(f"| {one.metric} | {one.data} | {one.value:.2f}% | {one.measured_by} |" for one in figures),
            "",
        ]
    return "\n".join(lines)


def _for_the_hub(shared: Shared, name: str, figures: list[Figure], is_timms: bool) -> str:
    from huggingface_hub import EvalResult, ModelCardData  # the import takes a second

    tag = kind_of_config(shared.config).hub_tag(shared.config)
    licence = shared.licence.lower()
    data: Mapping[str, Any] = {
        "library_name": "timm" if is_timms else LIBRARY,
        "pipeline_tag": tag or None,
        "tags": [*([tag] if tag else []), *(["timm", "transformers"] if is_timms else []), LIBRARY],
        "license": (licence if licence in _HUB_LICENCES else "other") if licence else None,
        "license_name": licence if licence and licence not in _HUB_LICENCES else None,
        "model_name": name if figures else None,
        "eval_results": [
            EvalResult(
                task_type=tag,
                dataset_type=one.data.lower(),
                dataset_name=one.data,
                metric_type="accuracy" if one.metric.startswith("top-") else one.metric,
                metric_name=f"{one.metric}, measured by {one.measured_by}",
                metric_value=one.value,
            )
            for one in figures
        ]
        or None,
    }
    return f"---\n{ModelCardData(**data).to_yaml()}\n---\n"


def _facts(shared: Shared) -> list[str]:
    spec = getattr(shared.info, "preprocessing", None)
    names = tuple(getattr(shared.info, "class_names", ()))
    facts = []
    if shared.config.num_classes:
        shown = f": {', '.join(names[:10])}{', ...' if len(names) > 10 else ''}" if names else ""
        facts.append(f"- classes: {shared.config.num_classes}{shown}")
    if spec is not None:
        assumed = " (assumed)" if shared.info is not None and shared.info.assumed else ""
        facts.append(f"- images: {spec.sentence()}{assumed}")
    facts.append(f"- licence of the weights: {shared.licence or 'not stated'}")
    facts += [f"- source: {source['location']}" for source in shared.sources]
    facts.append("- digests and versions: `manifest.json`")
    return facts


def _use(tag: str, is_timms: bool) -> list[str]:
    lines = ["import xcit", "", 'model = xcit.get_model("hf-hub:USER/REPO")  # or the path of this folder']
    if is_timms:
        lines += [
            "",
            "import timm",
            "",
            'model = timm.create_model("hf-hub:USER/REPO", pretrained=True)  # or "local-dir:FOLDER"',
        ]
    if is_timms and tag == "image-classification":
        lines += ["", "from transformers import pipeline", "", f'classify = pipeline("{tag}", "USER/REPO")']
    return lines
