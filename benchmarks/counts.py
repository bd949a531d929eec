"""Prints the parameters and FLOPs of the 42 published ImageNet classifiers, and the published figures."""

import json
from pathlib import Path

import xcit
from xcit.zoo import CHECKPOINTS

PUBLISHED = Path(__file__).parents[1] / "tests" / "data" / "zoo.json"


def main() -> None:
    rows = json.loads(PUBLISHED.read_text(encoding="utf-8"))
    print(f"{'name':44s} {'parameters':>12s} {'FLOPs':>16s} {'torch FLOPs':>17s}  difference to published")
    num_different = 0
    for row in rows:
        counts = xcit.complexity(CHECKPOINTS[row["name"]].config, row["image_size"])
        difference = counts.params - row["params"], counts.flops - row["flops"]
        num_different += difference != (0, 0)
        print(f"{row['name']:44s} {counts.params:12,} {counts.flops:16,} {counts.torch_flops:17,}  {difference}")
    print(f"{num_different} of {len(rows)} rows differ")


if __name__ == "__main__":
    main()
