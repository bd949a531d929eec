"""Makes long runs of the fuzz tests, and prints one line per kind of input.

python -m tests.fuzz [KIND...] --count 10000 --seed 0 [--keep FOLDER]"""

import argparse
import sys
from pathlib import Path

from tests.fuzz.harness import fuzz
from tests.fuzz.targets import TARGETS


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument("kinds", nargs="*", choices=[[], *TARGETS], help="all kinds if left out")
    parser.add_argument("--count", type=int, default=10_000, help="inputs of each kind")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--keep", type=Path, help="a folder for the inputs that fail")
    parser.add_argument("--reasons", action="store_true", help="print the most frequent refusals")
    arguments = parser.parse_args()
    num_failed = 0
    for name in arguments.kinds or TARGETS:
        outcome = fuzz(TARGETS[name], range(arguments.count), seed=arguments.seed, keep=arguments.keep)
        print(f"{name}: {outcome}", flush=True)
        for number, text in outcome.failures.items():
            print(f"  {name} {number}: {text.rstrip()}", flush=True)
        if arguments.reasons:
            for reason, count in outcome.reasons.most_common(15):
                print(f"  {count} x {reason}")
        num_failed += len(outcome.failures)
    return min(num_failed, 1)


if __name__ == "__main__":
    sys.exit(main())
