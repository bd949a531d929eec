"""Measures all figures of docs/performance.md, and writes them into this page.

    python benchmarks/performance.py [CASE ...]

Each case is a comparison as in `benchmarks/compare.py`. If no CASE is given, all cases are measured, which takes about
forty minutes on two idle cores. In the page, the text between `<!-- CASE -->` and `<!-- end of CASE -->` is replaced.
"""

import argparse
import sys
from pathlib import Path

from beside_peers import BenchResult, compare, draw_growth, markdown

DOCS = Path(__file__).resolve().parent.parent / "docs"


def beside_peers() -> BenchResult:
    contenders = ("xcit", "timm", "timm-compile", "onnxruntime")
    return compare(["small-12-p8"], [224, 384, 1024], contenders, memory=False, rounds=5, announce=say)


def compiled() -> BenchResult:
    return compare(
        ["small-12-p8"], [224, 384, 1024], ("xcit-compile", "timm-compile"), memory=False, rounds=5, announce=say
    )


def few_tokens() -> BenchResult:
    contenders = ("xcit", "xcit-compile", "timm", "timm-compile", "onnxruntime")
    return compare(["nano-12-p16", "small-12-p16"], [224], contenders, memory=False, rounds=25, announce=say)


def training() -> BenchResult:
    return compare(["small-12-p8"], [512], ("xcit-plain", "timm"), train=True, rounds=5, announce=say)


def growth() -> BenchResult:
    return compare(["small-12-p16"], [512, 1024, 2048, 4096], ("xcit", "timm"), rounds=3, announce=say)


CASES = {
    "beside-peers": beside_peers,
    "compiled": compiled,
    "few-tokens": few_tokens,
    "training": training,
    "growth": growth,
}


def say(line: str) -> None:
    print(line, flush=True)


def put(page: Path, case: str, figures: str) -> None:
    """Replaces a case's figures in the page."""
    opening, closing = f"<!-- {case} -->\n", f"<!-- end of {case} -->\n"
    before, found, rest = page.read_text(encoding="utf-8").partition(opening)
    _, ended, after = rest.partition(closing)
    if not (found and ended):
        sys.exit(f"{page} has no place for the figures of {case}")
    page.write_text(f"{before}{opening}\n{figures}\n{closing}{after}", encoding="utf-8")


def main() -> None:
    """Measures, prints and writes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("cases", nargs="*", metavar="CASE", choices=[*CASES, []], help=", ".join(CASES))
    for case in parser.parse_args().cases or CASES:
        result = CASES[case]()
        figures = markdown(result)
        say(figures)
        put(DOCS / "performance.md", case, figures.replace("### ", "#### "))
        if case == "growth":
            draw_growth(result, result.models[0], DOCS / "growth.png")


if __name__ == "__main__":
    main()
