"""Counts the package's lines of code, without blank lines, comments and docstrings.

    python benchmarks/lines.py [--write]

Prints the number of lines of each subpackage ("room"), of each kind of line, and of each part in the table of
docs/architecture.md. With --write, it puts the numbers of the parts into this table.
"""

import argparse
import ast
import io
import re
import tokenize
from collections import Counter
from pathlib import Path

ROOT = Path(__file__).parents[1]
PACKAGE, DOCUMENT = ROOT / "src" / "xcit", ROOT / "docs" / "architecture.md"
HEADING = "## What is written by hand, and why"

_NO_CODE = {
    tokenize.COMMENT,
    tokenize.NL,
    tokenize.NEWLINE,
    tokenize.INDENT,
    tokenize.DEDENT,
    tokenize.ENDMARKER,
}


def code_lines(path: Path) -> set[int]:
    """Returns the line numbers of a file's lines that contain code."""
    text = path.read_text(encoding="utf-8")
    lines: set[int] = set()
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type not in _NO_CODE:
            lines.update(range(token.start[0], token.end[0] + 1))
    for node in ast.walk(ast.parse(text)):
        # A statement that is only a string is the docstring of a function, class, module or attribute.
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str):
            lines.difference_update(_lines_of(node))
    return lines


def kinds_of(path: Path) -> Counter[str]:
    """Counts the lines of a file by kind: imports, heads of functions, fields, constants, errors, and all others."""
    tree, lines = ast.parse(path.read_text(encoding="utf-8")), code_lines(path)
    found: dict[str, set[int]] = {"imports": set(), "heads of functions": set(), "fields": set(), "errors": set()}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import | ast.ImportFrom):
            found["imports"] |= _lines_of(node)
        elif isinstance(node, ast.FunctionDef):
            first = min([node.lineno, *(one.lineno for one in node.decorator_list)])
            found["heads of functions"] |= set(range(first, max(node.body[0].lineno, node.lineno + 1)))
        elif isinstance(node, ast.ClassDef):
            found["fields"] |= {line for one in node.body if isinstance(one, ast.AnnAssign) for line in _lines_of(one)}
        elif isinstance(node, ast.Raise):
            found["errors"] |= _lines_of(node)
    constants = [node for node in tree.body if isinstance(node, ast.Assign | ast.AnnAssign)]
    found["constants and tables"] = {line for node in constants for line in _lines_of(node)}
    counts = Counter({kind: len(numbers & lines) for kind, numbers in found.items()})
    counts["all else"] = len(lines) - len(lines & set().union(*found.values()))
    return counts


def part_lines(cell: str) -> int:
    """Returns the number of lines of the files or functions in the first cell of a table row."""
    count, folder = 0, Path()
    for name in re.findall(r"`([\w/*.]+\.py(?:: \w+)?)`", cell):
        place, _, function = name.partition(": ")
        folder = Path(place).parent if "/" in place or folder == Path() else folder
        paths = sorted((PACKAGE / folder).glob(Path(place).name))
        assert paths, f"{DOCUMENT}: there is no {place}"
        for path in paths:
            lines = code_lines(path)
            if function:
                nodes = ast.parse(path.read_text(encoding="utf-8")).body
                (node,) = (node for node in nodes if getattr(node, "name", "") == function)
                lines &= _lines_of(node)
            count += len(lines)
    return count


def counted(document: str) -> str:
    """Returns the document with the current numbers in its table."""
    before, heading, table = document.partition(HEADING)
    rows = []
    for row in table.split("\n"):
        cells = row.split(" | ")
        if len(cells) == 4 and cells[1].isdigit():
            cells[1] = str(part_lines(cells[0]))
        rows.append(" | ".join(cells))
    return before + heading + "\n".join(rows)


def _lines_of(node: ast.stmt) -> set[int]:
    assert node.end_lineno is not None
    return set(range(node.lineno, node.end_lineno + 1))


def main() -> None:
    """Counts and prints."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", action="store_true", help="Put the parts' lines into docs/architecture.md.")
    rooms: Counter[str] = Counter()
    kinds: Counter[str] = Counter()
    for path in sorted(PACKAGE.rglob("*.py")):
        place = path.relative_to(PACKAGE).parts
        rooms[place[0] if len(place) > 1 else "(no room)"] += len(code_lines(path))
        kinds += kinds_of(path)
    for title, counts in (("room", rooms), ("kind", kinds)):
        print(f"{title:22s} {'lines':>7s}")
        for name, count in counts.most_common():
            print(f"{name:22s} {count:7,} {count / rooms.total():6.1%}")
    print(f"{'in all':22s} {rooms.total():7,}")
    document = DOCUMENT.read_text(encoding="utf-8")
    for row in counted(document).partition(HEADING)[2].split("\n"):
        cells = row.split(" | ")
        if len(cells) == 4 and cells[1].isdigit():
            print(f"{cells[1]:>7s}  {cells[0].removeprefix('| ')}")
    if parser.parse_args().write:
        DOCUMENT.write_text(counted(document), encoding="utf-8")


if __name__ == "__main__":
    main()
