"""`xcit list` and `xcit info`: list the available models, and describe a model."""

import math
from typing import TYPE_CHECKING, Any

import click

from xcit.cli.lines import say, say_rows, terminal_width
from xcit.cli.options import file_with_key, key_option

if TYPE_CHECKING:
    from xcit.zoo import Record

TASKS = ("image-classification", "image-features", "semantic-segmentation", "object-detection")


@click.command("list")
@click.argument("pattern", required=False)
@click.option(
    "--task", type=click.Choice(TASKS), metavar="TASK", help=f"Only models for this task: {', '.join(TASKS)}."
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def list_(pattern: str | None, task: str | None, as_json: bool) -> None:
    """List the models with names that match PATTERN: a shell-style pattern, or the beginning of a name."""
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
    records = [find_record(name) for name in names]
    rows = [{"name": record.name, **record.row(), "data": record.dataset} for record in records]
    known = dict.fromkeys([*_COLUMNS, *(column for row in rows for column in row)])
    columns = [column for column in known if column not in ("name", "data") and any(row.get(column) for row in rows)]
    width = max(map(len, names))
    lines = ["  ".join([f"{'name':{width}}", *columns, "data"])]
    for row in rows:
        cells = [f"{row.get(column, ''):>{len(column)}s}" for column in columns]
        lines.append("  ".join([f"{row['name']:{width}}", *cells, row["data"]]))
    if max(map(len, lines)) <= (terminal_width() or math.inf):
        click.echo("\n".join(lines))
        return
    for row in rows:
        say(row["name"])
        figures = [f"{column.strip()} {row[column].strip()}" for column in columns if row.get(column)]
        say("  " + ", ".join([row["data"], *figures]), indent=2)


# The columns, in their order. The heading " px" has a space because the values in this column have three digits.
_COLUMNS = (
    " px",
    "top-1 official",
    "top-1 mmpretrain",
    "top-1 k-NN",
    "top-1 linear",
    "top-1 attacked",
    "mIoU",
    "box AP",
    "mask AP",
)


@click.command()
@click.argument("name")
@key_option
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def info(name: str, key: str | None, as_json: bool) -> None:
    """Show what is known about a model or a weights file.

    For a model: its architecture, numbers of parameters and FLOPs, accuracies, preprocessing and sources. For a weights
    file: its format, architecture, classes and preprocessing.
    """
    import dataclasses
    import json

    from xcit.zoo import find_record
    from xcit.zoo.names import is_file

    name = file_with_key(name, key)
    if is_file(name):
        _print_file(name, as_json)
        return
    record = find_record(name)
    if as_json:
        counts = _counts(record)
        click.echo(json.dumps({**dataclasses.asdict(record), "complexity": counts}, indent=1))
        return
    rows = [
        ("name", record.name),
        ("also", ", ".join(record.aliases)),
        ("task", record.task),
        *record.details(_counts(record)),
        ("recipe", record.recipe or "none in this package"),
        ("licence", record.licence),
        *(
            ("source", source.label + (f" (SHA-256 {source.sha256}...)" if source.sha256 else ""))
            for source in record.sources
        ),
        *([("source", f"{record.by_hand} (with a browser; then --weights FILE)")] if record.by_hand else []),
        *([("source", "in this package")] if record.packaged else []),
    ]
    say_rows(rows)


def _print_file(name: str, as_json: bool) -> None:
    """Prints what is known about a weights file, from its metadata, its name, its digest or its tensors."""
    import json

    from xcit.config import to_dict
    from xcit.zoo.load import read_source
    from xcit.zoo.shapes import architecture_of
    from xcit.zoo.statement import read_metadata
    from xcit.zoo.stored import describe, num_parameters

    stored = read_source(name, None)
    stated = describe(stored)
    backbone, info = stated.kind.backbone(stated.config), stated.info
    spec = getattr(info, "preprocessing", None)
    if as_json:
        content = {"format": stored.format, "kind": stated.kind.name, "config": to_dict(stated.config)}
        click.echo(json.dumps({**content, "info": None if info is None else to_dict(info)}, indent=1))
        return
    prepared = "not known: give --mean, --std and --size, or the model's name with --weights"
    if info is not None and spec is not None:
        prepared = spec.sentence() + (" (assumed)" if info.assumed else "")
    elif stated.kind.name == "detector":
        prepared = f"to fit {stated.config.long_side} x {stated.config.short_side}; mean {stated.config.mean}"
    origin = "its metadata" if read_metadata(stored) is not None else "its tensors"
    if origin == "its tensors" and info is not None and not getattr(info, "assumed", True):
        origin = f"its name or digest, which are those of {info.name}"
    rows = [
        ("file", str(stored.path)),
        ("format", stored.format),
        ("known by", origin),
        ("kind", stated.kind.name),
        (
            "architecture",
            f"{architecture_of(backbone)}: width {backbone.embed_dim}, {backbone.depth} blocks, patches of "
            f"{backbone.patch_size} with stem strides {', '.join(map(str, backbone.strides))}",
        ),
        ("images", f"{backbone.in_channels} channels"),
        ("classes", str(stated.config.num_classes)),
        ("parameters", f"{num_parameters(stated.config):,}"),
        ("preprocessing", prepared),
    ]
    say_rows(rows)


def _counts(record: "Record") -> dict[str, Any]:
    import dataclasses

    from xcit.measure.complexity import complexity
    from xcit.zoo.stored import num_parameters

    if record.kind.counts_flops:
        return dataclasses.asdict(complexity(record.model, int(record.row()[" px"])))
    return {"params": num_parameters(record.model)}
