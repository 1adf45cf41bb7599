#!/usr/bin/env bash
# scaling.sh: makes the tables of docs/scaling.md, which is to be written again when train/roofline.c changes. Needs no GPU.
#
#   scripts/scaling.sh [build/mobilellm]
#
# Each table is what `mobilellm plan CONFIG --device h100 --ranks 8` estimates of the three students, in micro-batches of 32,768
# tokens; the text around the tables stays as it is.
set -euo pipefail
cd "$(dirname "$0")/.."
exec python3 - "${1:-build/mobilellm}" docs/scaling.md <<'END'
import json
import re
import subprocess
import sys

program, document = sys.argv[1:]
STUDENTS, LENGTHS, MICRO = ["350m", "650m", "1.4b"], [2048, 8192], 32768


def plan(student, length, ranks):
    command = [program, "plan", "configs/runs/cpt-350m.yaml", f"model=configs/models/flash-{student}.yaml",
               f"data.seq_len={length}", f"batch.micro={MICRO // length}", "--device", "h100", "--ranks", str(ranks), "--json"]
    return json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout)


PLANS = {(s, t): plan(s, t, 8) for s in STUDENTS for t in LENGTHS}


def table(head, rows):
    lines = [head, ["---:"] * len(head), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def rate(tokens):
    return f"{tokens / 1e6:.2f} M" if tokens >= 1e6 else f"{tokens / 1e3:.1f} k"


def milliseconds(seconds):
    return f"{1e3 * seconds:,.0f}" if seconds > 0.1 else f"{1e3 * seconds:.1f}"


def scaling(kind, length):
    runs = [{r["gpus"]: r for r in PLANS[s, length][kind]} for s in STUDENTS]
    head = ["GPUs"] + [f"{s.upper()}: ms" if i == 0 else i for s in STUDENTS for i in (0, "tokens/s", "MFU %")]
    rows = []
    for n in sorted({n for run in runs for n in run}):
        cells = [[milliseconds(run[n]["step_s"]), rate(run[n]["tokens_per_s"]), f"{100 * run[n]['mfu']:.1f}"] for run in runs]
        rows.append([f"{n:,}", *sum(cells, [])])
    return table(head, rows)


def parts():
    keys = [(s, t) for t in LENGTHS for s in STUDENTS]
    head = ["ms of a step on 8 GPUs"] + [f"{s.upper()}, {t}" for s, t in keys]
    rows = [[part, *(f"{PLANS[k]['parts_ms'][part]:.1f}" for k in keys)] for part in PLANS[keys[0]]["parts_ms"]]
    rows.append(["all", *(f"{1e3 * PLANS[k]['step_s']:.1f}" for k in keys)])
    rows.append(["MFU %", *(f"{100 * PLANS[k]['mfu']:.1f}" for k in keys)])
    for ranks in (1, 8):
        bytes_of = [plan(s, t, ranks)["memory_bytes_per_rank"] for s, t in keys]
        rows.append([f"GiB a GPU, of {ranks}", *(f"{n / 2**30:.1f}" for n in bytes_of)])
    return table(head, rows)


TABLES = {"parts": parts(), **{f"{name} {t}": scaling(kind, t) for t in LENGTHS
                               for name, kind in (("same step", "same_step"), ("same rows", "same_rows_per_gpu"))}}
with open(document) as file:
    text = file.read()
for name, lines in TABLES.items():
    text, n = re.subn(rf"(<!-- {name} -->\n).*?(\n<!-- end -->)", lambda m: m[1] + lines + m[2], text, flags=re.S)
    if n != 1:
        sys.exit(f"{document}: found {n} places for the table '{name}', expected 1: <!-- {name} --> ... <!-- end -->")
with open(document, "w") as file:
    file.write(text)
END
