#!/usr/bin/env python3
"""Draws what training runs have logged: loss, learning rate, gradient norm and speed over tokens.

usage: scripts/plot.py RUN_DIR... [-o OUT.png]

Reads RUN_DIR/metrics.jsonl, which a running training keeps up to date. Several runs are laid over each other. Without -o the
picture is RUN_DIR/metrics.png, of the first run.
"""

import argparse
import json
import math
import os
import sys
from pathlib import Path
from statistics import median

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from matplotlib.ticker import EngFormatter

COLORS = ["#2563a8", "#d9622b", "#2f8f5b", "#8d4bb0", "#b8962e", "#4c9fb0", "#c2476f", "#6b6b6b"]
MARKERS = "osD^vP*X"
PANELS = [("lr", "learning rate"), ("grad_norm", "gradient norm"), ("tokens_per_s", "tokens / s")]
STYLE = {
    "font.size": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": "#888888",
    "axes.titlesize": 10.5,
    "axes.titlelocation": "left",
    "axes.grid": True,
    "grid.color": "#e6e6e6",
    "xtick.color": "#555555",
    "ytick.color": "#555555",
    "legend.frameon": False,
}


class NothingToPlot(Exception):
    pass


def read_run(directory):
    """The rows of RUN_DIR/metrics.jsonl: ("train", "eval"). What is null there is NaN here."""
    path = Path(directory) / "metrics.jsonl"
    try:
        lines = path.read_text().split("\n")
    except OSError as problem:
        raise NothingToPlot(f"{path}: {problem.strerror}. Give the directory of a run (its checkpoint.dir).") from None
    rows = {"train": [], "eval": []}
    for number, line in enumerate(lines[:-1], 1):  # what follows the last newline is a line still being written, or nothing
        try:
            row = {key: math.nan if value is None else value for key, value in json.loads(line).items()}
            rows[row["kind"]].append(row)
        except (ValueError, AttributeError, KeyError):
            raise NothingToPlot(f'{path}:{number}: expected a JSON object of kind "train" or "eval".') from None
    if not rows["train"] and not rows["eval"]:
        raise NothingToPlot(f"{path}: nothing is logged yet. The first line comes after train.log_every steps.")
    return rows


def smooth(values):
    """The median of the values around each point, at most 100 on each side, fewer near the ends: without the lag of a running
    average, which shows a falling loss too high. NaNs are passed over."""
    reach = min(100, max(1, len(values) // 50))
    smoothed = []
    for i, value in enumerate(values):
        near = min(reach, i, len(values) - 1 - i)
        around = [v for v in values[i - near : i + near + 1] if math.isfinite(v)]
        smoothed.append(median(around) if math.isfinite(value) else math.nan)
    return smoothed


def column(rows, key):
    return [row.get(key, math.nan) for row in rows]


def limit_to_most(axis, series):
    """Leaves the highest twentieth of the values out of the picture: the first steps and spikes would flatten all the others."""
    values = sorted(v for one in series for v in one if math.isfinite(v))
    if len(values) < 20:
        return
    low, high = values[0], values[int(0.95 * (len(values) - 1))]
    if high > low:
        axis.set_ylim(low - 0.05 * (high - low), high + 0.1 * (high - low))


def draw_loss(axis, runs, names):
    prefixes = sorted({row["prefix"] for rows in runs for row in rows["eval"]})
    for rows, name, color in zip(runs, names, colors()):
        tokens, loss = column(rows["train"], "tokens"), column(rows["train"], "loss")
        axis.plot(tokens, loss, color=color, alpha=0.28, linewidth=0.8)
        axis.plot(tokens, smooth(loss), color=color, linewidth=1.8, label=f"{name}, train")
        for i, prefix in enumerate(prefixes):
            points = [row for row in rows["eval"] if row["prefix"] == prefix]
            if points:
                axis.plot(column(points, "tokens"), column(points, "loss"), color=color, linestyle=(0, (1, 1.5)), linewidth=1,
                          marker=MARKERS[i % len(MARKERS)], markersize=5.5, markerfacecolor="white", markeredgewidth=1.3,
                          label=f"{name}, {prefix}")
    limit_to_most(axis, [column(rows[kind], "loss") for rows in runs for kind in ("train", "eval")])
    axis.set_title("loss (nats per token)")
    axis.legend(loc="upper right", fontsize=9)


def draw_panel(axis, runs, key, title):
    for rows, color in zip(runs, colors()):
        tokens, values = column(rows["train"], "tokens"), column(rows["train"], key)
        if key == "lr":
            axis.plot(tokens, values, color=color, linewidth=1.6)
        else:
            axis.plot(tokens, values, color=color, alpha=0.28, linewidth=0.8)
            axis.plot(tokens, smooth(values), color=color, linewidth=1.6)
    if key == "grad_norm":
        limit_to_most(axis, [column(rows["train"], key) for rows in runs])
    else:
        axis.set_ylim(0, 1.08 * max((v for rows in runs for v in column(rows["train"], key) if v > 0), default=1))
    if key == "lr":
        axis.yaxis.set_major_formatter(lambda value, _: f"{value:.1e}" if value else "0")
    if key == "tokens_per_s":
        axis.yaxis.set_major_formatter(EngFormatter(sep=""))
    axis.set_title(title)


def colors():
    while True:
        yield from COLORS


def draw(runs, names, out):
    with plt.rc_context(STYLE):
        figure = plt.figure(figsize=(11, 7.2), layout="constrained")
        grid = figure.add_gridspec(2, len(PANELS), height_ratios=[1.9, 1])
        axes = [figure.add_subplot(grid[0, :])] + [figure.add_subplot(grid[1, i]) for i in range(len(PANELS))]
        draw_loss(axes[0], runs, names)
        for axis, (key, title) in zip(axes[1:], PANELS):
            draw_panel(axis, runs, key, title)
        for axis in axes:
            axis.xaxis.set_major_formatter(EngFormatter(sep=""))
            axis.set_xlabel("tokens", color="#555555")
            axis.margins(x=0.015)
        figure.savefig(out, dpi=140)
        plt.close(figure)


def short_names(directories):
    """The last parts of the paths, or the whole ones where those are alike."""
    names = [Path(directory).resolve().name for directory in directories]
    return names if len(set(names)) == len(names) else [str(directory) for directory in directories]


def main():
    parser = argparse.ArgumentParser(description="Draws the metrics of training runs.")
    parser.add_argument("runs", nargs="+", metavar="RUN_DIR", help="directory that holds metrics.jsonl")
    parser.add_argument("-o", "--out", help="picture to write (default: RUN_DIR/metrics.png)")
    args = parser.parse_args()
    out = args.out or os.path.join(args.runs[0], "metrics.png")
    try:
        draw([read_run(directory) for directory in args.runs], short_names(args.runs), out)
    except (NothingToPlot, OSError, ValueError) as problem:  # ValueError: matplotlib does not know the ending of OUT
        sys.exit(f"plot.py: {problem}")
    print(out)


if __name__ == "__main__":
    main()
