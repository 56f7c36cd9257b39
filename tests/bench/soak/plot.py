"""`python plot.py soak.json soak.png` plots a soak; it runs in an environment of its own, with matplotlib alone."""

import json
import sys
from pathlib import Path

import matplotlib as mpl

mpl.use("Agg")

from matplotlib import pyplot as plt

PANELS = {
    "memory.": "memory of each replica, MiB",
    "descriptors.": "open descriptors of each replica",
    "documents.": "documents of each collection",
    "bytes.": "KiB of each collection",
    "p99.": "p99, ms",
}


def main(source: str, target: str) -> None:
    soak = json.loads(Path(source).read_text())
    samples = soak["samples"]
    figure, axes = plt.subplots(len(PANELS), 1, sharex=True, figsize=(11, 4 * len(PANELS)), layout="constrained")
    for axis, (prefix, title) in zip(axes, PANELS.items(), strict=True):
        for name in dict.fromkeys(name for sample in samples for name in sample["values"]):
            if name.startswith(prefix):
                points = [(sample["minute"], sample["values"][name]) for sample in samples if name in sample["values"]]
                growth = soak["slopes"][name]["per_100_turns"]
                label = f"{name.removeprefix(prefix)}: {growth:+.3g} for 100 turns"
                axis.plot(*zip(*points, strict=True), label=label, linewidth=1)
        axis.axvline(soak["after"], color="grey", linestyle=":")
        axis.set_title(title, loc="left")
        axis.set_ylim(bottom=0)
        axis.grid(visible=True, alpha=0.3)
        axis.legend(fontsize=7, loc="upper left")
    axes[-1].set_xlabel(f"minutes; {samples[-1]['turns']} turns in all; slopes after the dotted line")
    figure.savefig(target, dpi=100)


if __name__ == "__main__":
    main(*sys.argv[1:3])
