#!/usr/bin/env bash
# one_node.sh: a run on all GPUs of this machine, resumed where it was.
#
#   scripts/launch/one_node.sh configs/runs/cpt-350m.yaml [key=value ...]
#   GPUS=4 scripts/launch/one_node.sh ...
#
# Ctrl-C, or SIGUSR1 to mpirun, ends it with a checkpoint; the same command goes on.
set -euo pipefail
[[ $# -gt 0 ]] || { sed -n '2,7s/^# \{0,1\}//p' "$0"; exit 2; }
here=$(dirname "$(readlink -f "$0")")
# shellcheck source=scripts/launch/environment.sh
source "$here/environment.sh"
gpus=${GPUS:-$(nvidia-smi --list-gpus 2>/dev/null | wc -l)}
[[ $gpus -gt 0 ]] || { echo "one_node.sh: nvidia-smi lists no GPU. Look at scripts/gpu_check.sh, or say how many: GPUS=8" >&2; exit 2; }

# --bind-to numa: a rank's threads and pinned memory stay near its GPU. Without a scheduler mpirun would bind to one core.
exec mpirun -np "$gpus" --bind-to numa -x OMP_NUM_THREADS "$MOBILELLM" \
    train "$1" --device cuda --resume "${@:2}"
