"""Runs commands as in an installation without extras, and prints their results as JSON.

    python without_extras.py COMMANDS.json

All packages except the core's requirements (and their requirements) are hidden: imports fail, and the metadata of
installed packages does not list them. COMMANDS.json is a list of commands, each a list of arguments. The output is a
list of [exit status, standard output, standard error]; the status of a crash is "traceback".
"""

import io
import json
import re
import sys
import tomllib
import traceback
from collections.abc import Iterator
from contextlib import redirect_stderr, redirect_stdout
from importlib import metadata
from importlib.machinery import ModuleSpec, PathFinder
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]

_ANYWHERE = metadata.DistributionFinder.Context()


def _name(requirement: str) -> str:
    match = re.match(r"[A-Za-z0-9._-]+", requirement)
    assert match is not None, requirement
    return re.sub(r"[-_.]+", "-", match[0]).lower()


def core_distributions() -> set[str]:
    """Returns the normalised names of the core's requirements and of their requirements, without extras."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    found: set[str] = {"xcit"}
    waiting = [_name(requirement) for requirement in project["dependencies"]]
    while waiting:
        name = waiting.pop()
        if name in found:
            continue
        try:
            required = metadata.requires(name) or []
        except metadata.PackageNotFoundError:  # its marker is for another system
            continue
        found.add(name)
        waiting += [_name(one) for one in required if "extra ==" not in one]
    return found


def hidden_modules(core: set[str]) -> set[str]:
    """Returns the installed top-level modules that belong to none of the core's distributions."""
    owners = metadata.packages_distributions()
    return {module for module, names in owners.items() if not core.intersection(map(_name, names))}


def hide(core: set[str], modules: set[str]) -> None:
    """Hides modules and distributions from this process."""

    class Finder(PathFinder):
        @classmethod
        def find_spec(cls, fullname: str, path: Any = None, target: Any = None) -> ModuleSpec | None:
            return None if fullname.partition(".")[0] in modules else PathFinder.find_spec(fullname, path, target)

        @staticmethod
        def find_distributions(context: Any = _ANYWHERE) -> Iterator[metadata.PathDistribution]:
            return (one for one in PathFinder.find_distributions(context) if _name(one.name) in core)

    sys.meta_path = [Finder if finder is PathFinder else finder for finder in sys.meta_path]
    for name in [name for name in sys.modules if name.partition(".")[0] in modules]:
        del sys.modules[name]  # modules that Python imported at start


def run(arguments: list[str]) -> tuple[int | str, str, str]:
    """Runs one command; returns its exit status, standard output and standard error."""
    from xcit.cli import main

    out, err = io.StringIO(), io.StringIO()
    sys.argv = ["xcit", *arguments]
    status: int | str = "traceback"
    with redirect_stdout(out), redirect_stderr(err):
        try:
            main()
        except SystemExit as end:
            status = end.code if isinstance(end.code, int) else str(end.code)
        except BaseException:
            traceback.print_exc()
    return status, out.getvalue(), err.getvalue()


if __name__ == "__main__":
    commands = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    core_names = core_distributions()
    hide(core_names, hidden_modules(core_names))
    sys.stdout.write(json.dumps([run(command) for command in commands]))
