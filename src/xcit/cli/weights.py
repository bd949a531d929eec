"""`xcit fetch`, `xcit convert` and `xcit verify`: download, convert and check weights."""

from pathlib import Path

import click

from xcit.cli.lines import say, say_rows
from xcit.cli.options import file_with_key, key_option

FORMATS = ("xcit", "official", "timm", "mmpretrain", "dino", "mmseg", "mmdet", "timm-hub")


@click.command()
@click.argument("names", nargs=-1, required=True, metavar="NAME...")
@click.option(
    "--to",
    "folder",
    type=click.Path(path_type=Path),
    help="Folder for the weights instead of the cache. Another machine can use the folder as XCIT_MIRROR.",
)
def fetch(names: tuple[str, ...], folder: Path | None) -> int:
    """Download weights to the cache or to a folder. NAME may be a pattern, as in `xcit list`."""
    from xcit.cli import SOME_FAILED
    from xcit.errors import XCiTError
    from xcit.progress import download_bar
    from xcit.zoo import fetch as fetch_one
    from xcit.zoo import find_record, list_models

    wanted = [
        found for name in names for found in (list_models(name) if set("*?[") & set(name) else [find_record(name).name])
    ]
    if not wanted:
        raise XCiTError(f"no model matches {' or '.join(map(repr, names))}; `xcit list` shows all models")
    num_failed = 0
    for name in dict.fromkeys(wanted):
        try:
            with download_bar() as downloaded:
                path = fetch_one(name, folder, progress=downloaded)
        except XCiTError as error:
            num_failed += 1
            click.echo(f"xcit: {error}", err=True)
        else:
            click.echo(f"{name}: {path}")
    return SOME_FAILED if num_failed else 0


@click.command()
@click.argument("source")
@click.argument("destination", type=click.Path(path_type=Path))
@click.option("--to", "to", type=click.Choice(FORMATS), required=True, help="Format of DESTINATION.")
@click.option(
    "--key", help="Which weights of SOURCE to convert, if it has several sets, such as student in a DINO file."
)
@click.option("--overwrite", is_flag=True, help="Replace DESTINATION if it exists.")
@click.option(
    "--licence", default="", metavar="NAME", help="With --to timm-hub: licence of the weights, such as apache-2.0."
)
@click.option(
    "--report",
    type=click.Path(path_type=Path),
    help="With --to timm-hub: a report.json of `xcit test`, for the model card.",
)
def convert(
    source: str, destination: Path, to: str, key: str | None, overwrite: bool, licence: str, report: Path | None
) -> None:
    """Convert the checkpoint SOURCE to DESTINATION, without changing the values of the weights.

    SOURCE is a file of any format, a model's folder, or hf-hub:USER/REPO. DESTINATION is a file ending in .safetensors
    or .pth. With --to timm-hub, DESTINATION is a folder for the Hugging Face Hub. timm and transformers can load the
    folder, if they have this architecture.
    """
    from xcit.zoo import convert as convert_file
    from xcit.zoo.folders import is_for_timm

    stored = convert_file(source, destination, to, key=key, overwrite=overwrite, licence=licence, report=report)
    num_tensors = len(stored.state if stored.set_aside else stored.whole)
    click.echo(f"{source} ({stored.format}) -> {destination} ({to}): {num_tensors} tensors")
    if to == "timm-hub" and not is_for_timm(destination):
        click.echo("timm and transformers have no such model: only xcit can load this folder")
    if stored.set_aside:
        click.echo(
            f"left out, because they are not part of the classifier: {', '.join(stored.set_aside[:5])}, "
            f"{len(stored.set_aside)} in all"
        )


@click.command()
@click.argument("name_or_path", required=False)
@key_option
@click.option("--all", "is_all", is_flag=True, help="Check all models of `xcit list`, and download missing weights.")
def verify(name_or_path: str | None, key: str | None, is_all: bool) -> int:
    """Check the weights of a model or a file: digest, names and shapes, finite values, number of parameters.

    With --all, all models are downloaded to the cache and checked. The command prints a line for each model, and lists
    the failures at the end. If the command is stopped and started again, it downloads only weights that are missing in
    the cache.
    """
    if is_all == (name_or_path is not None):
        raise click.UsageError("give a name or a path, or --all")
    if is_all:
        return _verify_all()
    from xcit.progress import download_bar
    from xcit.zoo import verify as verify_file

    assert name_or_path is not None
    with download_bar() as downloaded:
        verified = verify_file(file_with_key(name_or_path, key), progress=downloaded)
    rows = [
        ("file", str(verified.path)),
        ("format", verified.format),
        ("digest", f"{verified.digest} ({'as recorded in the file' if verified.recorded else 'none is recorded'})"),
        ("names, shapes", f"{verified.num_tensors} tensors, as {verified.architecture} has them"),
        ("values", "all finite"),
        ("parameters", f"{verified.params:,}"),
    ]
    say_rows(rows)
    return 0


def _verify_all() -> int:
    """Checks all models. A model that can only be downloaded with a browser does not count as a failure."""
    from xcit.cli import SOME_FAILED
    from xcit.errors import XCiTError, printable_line
    from xcit.progress import download_bar
    from xcit.zoo import find_record, list_models
    from xcit.zoo import verify as verify_file

    names = list_models()
    failed, by_hand = list[str](), 0
    for name in names:
        try:
            with download_bar() as downloaded:
                verified = verify_file(name, progress=downloaded)
        except XCiTError as error:
            if find_record(name).by_hand and not find_record(name).sources:
                by_hand += 1
                say(f"{name}: not checked: {printable_line(str(error))}", indent=2)
            else:
                failed.append(name)
                say(f"{name}: failed: {printable_line(str(error))}", indent=2)
        else:
            say(f"{name}: {verified.num_tensors} tensors, {verified.params:,} parameters, {verified.digest}", indent=2)
    good = len(names) - len(failed) - by_hand
    line = f"{good} of {len(names)} models are right: names, shapes, digest, finite values"
    line += f"; {by_hand} have to be downloaded with a browser" if by_hand else ""
    click.echo(f"{line}; {len(failed)} failed: {', '.join(failed)}" if failed else line)
    return SOME_FAILED if failed else 0
