"""`xcit list` and `xcit info`: what there is."""

import click


@click.command("list")
@click.argument("pattern", required=False)
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def list_(pattern: str | None, as_json: bool) -> None:
    """List the models whose names match PATTERN (shell-style; a beginning is enough)."""
    import json

    from xcit.errors import XCiTError
    from xcit.zoo import find_checkpoint, list_models

    names = list_models(pattern)
    if not names:
        raise XCiTError(f"no model matches {pattern!r}; `xcit list` shows all")
    if as_json:
        click.echo(json.dumps(names, indent=1))
        return
    width = max(map(len, names))
    click.echo(f"{'name':{width}}  px  top-1 official  top-1 mmpretrain  top-1 k-NN  top-1 linear  data")
    for name in names:
        record = find_checkpoint(name)
        top1 = {(a.method, a.measured_by): f"{a.top1:.1f}" for a in record.accuracies}
        official = top1.get(("classifier", "xcit")) or top1.get(("classifier", "official"), "")
        mmpretrain = top1.get(("classifier", "mmpretrain"), "")
        knn, linear = (top1.get((method, "official"), "") for method in ("k-NN", "linear"))
        click.echo(
            f"{name:{width}} {record.preprocessing.image_size:3d}  {official:>14s}  {mmpretrain:>16s}  {knn:>10s}  "
            f"{linear:>12s}  {record.dataset}"
        )


@click.command()
@click.argument("name")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def info(name: str, as_json: bool) -> None:
    """Show architecture, counts, accuracies, preprocessing and sources of a model."""
    import dataclasses
    import json

    from xcit.counting import complexity
    from xcit.zoo import find_checkpoint

    record = find_checkpoint(name)
    counts = complexity(record.config, record.preprocessing.image_size)
    if as_json:
        click.echo(json.dumps({**dataclasses.asdict(record), "complexity": dataclasses.asdict(counts)}, indent=1))
        return
    config, spec = record.config, record.preprocessing
    if spec.resize == "exact":
        resize = f"straight to {spec.image_size} x {spec.image_size}"
    else:
        resize = f"short side to {spec.resize_to}, centre {spec.image_size} x {spec.image_size}"
    classes = f"{config.num_classes} classes" if config.num_classes else "without labels; no classifier"
    rows = [
        ("name", record.name),
        ("also", ", ".join(record.aliases)),
        ("task", record.task),
        ("data", f"{record.dataset}, {classes}" + (", distilled" if record.distilled else "")),
        (
            "architecture",
            f"{record.architecture}: width {config.embed_dim}, {config.depth} + {config.cls_depth} blocks, "
            f"{config.num_heads} heads, patches of {config.patch_size}",
        ),
        ("parameters", f"{counts.params:,}"),
        ("FLOPs", f"{counts.flops:,} (published rule: multiply-accumulates, without the head)"),
        ("torch FLOPs", f"{counts.torch_flops:,} (torch's counter: 2 a multiply-accumulate)"),
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
