"""`xcit list` and `xcit info`: what there is."""

from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from xcit.images.preprocess import SegmentationPreprocessing
    from xcit.models.detection.config import MaskRCNNConfig
    from xcit.zoo import Checkpoint, DetectorRecord, SegmenterRecord

TASKS = ("image-classification", "image-features", "semantic-segmentation", "object-detection")


@click.command("list")
@click.argument("pattern", required=False)
@click.option("--task", type=click.Choice(TASKS), help="Only models for this.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def list_(pattern: str | None, task: str | None, as_json: bool) -> None:
    """List the models whose names match PATTERN (shell-style; a beginning is enough)."""
    import json

    from xcit.errors import XCiTError
    from xcit.zoo import find_record, list_models

    names = list_models(pattern, task=task)
    if not names:
        kind = "" if task is None else f" for {task}"
        raise XCiTError(f"no model{kind} matches {pattern!r}; `xcit list` shows all")
    if as_json:
        click.echo(json.dumps(names, indent=1))
        return
    rows = [_list_row(find_record(name)) for name in names]
    columns = [column for column in _COLUMNS if any(row.get(column) for row in rows)]
    width = max(map(len, names))
    click.echo("  ".join([f"{'name':{width}}", *columns]))
    for row in rows:
        cells = [f"{row.get(column, ''):>{len(column)}s}" for column in columns[:-1]]
        click.echo("  ".join([f"{row['name']:{width}}", *cells, row["data"]]))


# A heading is as wide as its figures: three digits for the pixels.
_FIGURES = ("top-1 official", "top-1 mmpretrain", "top-1 k-NN", "top-1 linear", "mIoU", "box AP", "mask AP")
_COLUMNS = (" px", *_FIGURES, "data")


def _list_row(record: "Checkpoint | SegmenterRecord | DetectorRecord") -> dict[str, str]:
    """What the list says of a model, by column."""
    from xcit.zoo import Checkpoint, SegmenterRecord

    row = {"name": record.name, "data": record.dataset}
    if isinstance(record, Checkpoint):
        top1 = {(a.method, a.measured_by): f"{a.top1:.1f}" for a in record.accuracies}
        return row | {
            " px": str(record.preprocessing.image_size),
            "top-1 official": top1.get(("classifier", "xcit")) or top1.get(("classifier", "official"), ""),
            "top-1 mmpretrain": top1.get(("classifier", "mmpretrain"), ""),
            "top-1 k-NN": top1.get(("k-NN", "official"), ""),
            "top-1 linear": top1.get(("linear", "official"), ""),
        }
    side = (record.preprocessing if isinstance(record, SegmenterRecord) else record.model).short_side
    return row | {" px": str(side)} | {figure.metric: f"{figure.value:.1f}" for figure in record.figures}


@click.command()
@click.argument("name")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def info(name: str, as_json: bool) -> None:
    """Show architecture, counts, accuracies, preprocessing and sources of a model."""
    import dataclasses
    import json

    from xcit.zoo import Checkpoint, find_record

    record = find_record(name)
    if as_json:
        counts = _counts(record)
        click.echo(json.dumps({**dataclasses.asdict(record), "complexity": counts}, indent=1))
        return
    rows = [
        ("name", record.name),
        ("also", ", ".join(record.aliases)),
        ("task", record.task),
        *(_classifier_rows(record) if isinstance(record, Checkpoint) else _dense_rows(record)),
        ("recipe", record.recipe),
        ("licence", record.licence),
        *(
            ("source", source.label + (f" (SHA-256 {source.sha256}...)" if source.sha256 else ""))
            for source in record.sources
        ),
        *([("source", "in this package")] if record.packaged else []),
    ]
    for label, value in rows:
        click.echo(f"{label:14s} {value}")


def _counts(record: "Checkpoint | SegmenterRecord | DetectorRecord") -> dict[str, object]:
    import dataclasses

    from xcit.measure.complexity import complexity
    from xcit.zoo import Checkpoint
    from xcit.zoo.stored import num_parameters

    if isinstance(record, Checkpoint):
        return dataclasses.asdict(complexity(record.config, record.preprocessing.image_size))
    return {"params": num_parameters(record.model)}


def _classifier_rows(record: "Checkpoint") -> list[tuple[str, str]]:
    counts = _counts(record)
    config, spec = record.config, record.preprocessing
    if spec.resize == "exact":
        resize = f"straight to {spec.image_size} x {spec.image_size}"
    else:
        resize = f"short side to {spec.resize_to}, centre {spec.image_size} x {spec.image_size}"
    classes = f"{config.num_classes} classes" if config.num_classes else "without labels; no classifier"
    return [
        ("data", f"{record.dataset}, {classes}" + (", distilled" if record.distilled else "")),
        (
            "architecture",
            f"{record.architecture}: width {config.embed_dim}, {config.depth} + {config.cls_depth} blocks, "
            f"{config.num_heads} heads, patches of {config.patch_size}",
        ),
        ("parameters", f"{counts['params']:,}"),
        ("FLOPs", f"{counts['flops']:,} (published rule: multiply-accumulates, without the head)"),
        ("torch FLOPs", f"{counts['torch_flops']:,} (torch's counter: 2 a multiply-accumulate)"),
        ("preprocessing", f"{resize}, bicubic; mean {spec.mean}, std {spec.std}"),
        *(
            (
                "accuracy",
                f"top-1 {accuracy.top1:.2f}%"
                + (f", top-5 {accuracy.top5:.2f}%" if accuracy.top5 is not None else "")
                + (f" by {accuracy.method}" if accuracy.method != "classifier" else "")
                + f", measured by {accuracy.measured_by}",
            )
            for accuracy in record.accuracies
        ),
    ]


def _dense_rows(record: "SegmenterRecord | DetectorRecord") -> list[tuple[str, str]]:
    from xcit.zoo import SegmenterRecord

    config = record.config
    if isinstance(record, SegmenterRecord):
        head: str = record.model.kind
        spec: SegmentationPreprocessing | MaskRCNNConfig = record.preprocessing
    else:
        head, spec = "mask-rcnn", record.model
    return [
        ("data", f"{record.dataset}, {record.model.num_classes} classes"),
        (
            "architecture",
            f"{head} on {record.architecture}: width {config.embed_dim}, {config.depth} blocks, "
            f"{config.num_heads} heads, patches of {config.patch_size}",
        ),
        ("parameters", f"{_counts(record)['params']:,}"),
        (
            "preprocessing",
            f"to fit {spec.long_side} x {spec.short_side}, bilinear; mean {spec.mean}, std {spec.std}",
        ),
        *(
            ("accuracy", f"{figure.metric} {figure.value:.1f}%, measured by {figure.measured_by}")
            for figure in record.figures
        ),
    ]
