#!/usr/bin/env bash
# The main job, small: English text from a Debian package becomes tokens; two ranks train a hybrid network on them, are stopped
# half-way and resumed; the result is measured on held-out text beside compressors, and continues a sentence.
# Called by `make demo`, which has installed and built what this needs. Everything it makes lies in build/demo.
set -euo pipefail
cd "$(dirname "$0")/.."
out=build/demo python=build/venv/bin/python mobilellm=build/mobilellm
started=$SECONDS

if [ "$(id -u)" = 0 ]; then export OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1; fi
export OMPI_MCA_rmaps_base_oversubscribe=1 PRTE_MCA_rmaps_default_mapping_policy=:oversubscribe # for machines with one core
ranks() { mpirun -np 2 --bind-to none "$@"; }
export OMP_NUM_THREADS=$(( $(nproc) > 2 ? $(nproc) / 2 : 1 ))

dtype=f32 # the faster one without AVX-512
if grep -qw avx512bw /proc/cpuinfo; then dtype=bf16; fi
train() { ranks $mobilellm train configs/runs/demo.yaml dtype=$dtype "$@"; }

say() { printf '\n\033[1m== %s\033[0m  [%d s]\n' "$*" $((SECONDS - started)); }

# The dictionary's files: the system's, or unpacked from the package (which, installed, would bring a dictionary server along).
find_dictionary() {
    dictionary=/usr/share/dictd
    if [ -e $dictionary/gcide.dict.dz ]; then return; fi
    dictionary=$out/package/usr/share/dictd
    if [ -e "$dictionary/gcide.dict.dz" ]; then return; fi
    echo "demo: downloading Debian's package dict-gcide into $out, without installing it"
    (cd "$out" && rm -f dict-gcide_*.deb && apt-get -qq download dict-gcide && dpkg-deb -x dict-gcide_*.deb package) || {
        echo "demo: dict-gcide cannot be had from apt: is it in this release, and has apt-get update been run?" >&2
        exit 1
    }
}

figure() { $python -c 'import json,sys; print(json.load(open(sys.argv[1]))["total"][sys.argv[2]])' "$out/eval.json" "$1"; }

mkdir -p "$out"
if [ ! -s "$out/train.idx" ] || [ ! -s "$out/heldout.idx" ]; then
    say "text: the Collaborative International Dictionary of English (package dict-gcide, GPL-2+), entries shuffled and split"
    find_dictionary
    $python data/prepare.py gcide --out "$out" --dictionary "$dictionary/gcide.dict.dz" --index "$dictionary/gcide.index"
    say "tokens: a byte-level BPE of 8,192 trained on the training text"
    $python data/prepare.py tokenizer --vocab-size 8192 --out "$out/tokenizer.json" "$out/train.jsonl"
    $python data/prepare.py text --tokenizer "$out/tokenizer.json" --out "$out/train" "$out/train.jsonl"
    $python data/prepare.py text --tokenizer "$out/tokenizer.json" --out "$out/heldout" "$out/heldout.jsonl"
fi
$mobilellm data info "$out/train" "$out/heldout"

say "training: 2 ranks, stopped half-way"
rm -rf "$out/run" "$out/again"
steps=$($mobilellm plan configs/runs/demo.yaml --json | $python -c 'import json,sys; print(json.load(sys.stdin)["steps"])')
every=100 half=$((steps / 2))
before=$(((half - 1) / every * every)) # the last checkpoint before the stop
train checkpoint.every=$every train.stop_after=$half

say "is a resumed run the same run? from the checkpoint of step $before on once more: the same bits at step $half?"
mkdir "$out/again"
cp "$out/run/$(printf 'step_%010d.h5' "$before")" "$out/again/"
train checkpoint.dir="$out/again" train.stop_after=$half --resume > "$out/again.log"
$python - "$mobilellm" "$out" <<'EOF'
import json, subprocess, sys
crcs = [{t["path"]: t["crc32"] for t in json.loads(subprocess.check_output([sys.argv[1], "inspect", f"{sys.argv[2]}/{run}", "--json"]))["tensors"]}
        for run in ("run", "again")]
assert crcs[0] == crcs[1], [name for name in crcs[0] if crcs[0][name] != crcs[1].get(name)]
print(f"yes: all {len(crcs[0])} tensors, optimizer state included, are bit-equal")
EOF

say "training: resumed to the end"
train --resume

say "held-out text"
ranks $mobilellm eval "$out/run" --data "$out/heldout" --json > "$out/eval.json"
$mobilellm inspect "$out/run" --verify | sed -n 1,9p
$python scripts/plot.py "$out/run" -o "$out/curve.png"

say "a sample: the model goes on from \"The ship\""
ids=$($python data/prepare.py encode --tokenizer "$out/tokenizer.json" "The ship")
$mobilellm generate "$out/run" --prompt-tokens "$ids" --n-tokens 60 --temperature 0.7 --seed 3 > "$out/sample.ids"
$python data/prepare.py decode --tokenizer "$out/tokenizer.json" < "$out/sample.ids"

say "bits per byte of the held-out text, each with the training text as context"
$python scripts/compressors.py "$out/train.txt" "$out/heldout.txt" --model "mobilellm.c" "$(figure bits_per_byte)"
printf '\nThe curve is in %s. Whole wall time: %d s.\n' "$out/curve.png" $((SECONDS - started))
