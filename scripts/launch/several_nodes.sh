#!/usr/bin/env bash
# several_nodes.sh: a run on the GPUs of several machines, over ssh, resumed where it was.
#
#   scripts/launch/several_nodes.sh hosts configs/runs/cpt-350m.yaml [key=value ...]
#
# hosts: a line a machine, "node1 slots=8". The program, its configs and its data lie under the same path on all of them, and so
# does the run's directory, on a filesystem that they share. ssh must need no password (ssh node2 hostname). Between the machines
# these ports are open: TCP for Open MPI and NCCL, UDP for the watch that names a rank that hangs.
set -euo pipefail
[[ $# -gt 1 ]] || { sed -n '2,9s/^# \{0,1\}//p' "$0"; exit 2; }
here=$(dirname "$(readlink -f "$0")")
# shellcheck source=scripts/launch/environment.sh
source "$here/environment.sh"
hosts=$1
[[ -r $hosts ]] || { echo "several_nodes.sh: cannot read $hosts: a line a machine, \"node1 slots=8\"" >&2; exit 2; }

# -x passes a variable on to the other machines; what is not set is not passed.
pass=()
for name in $(compgen -e | grep -E '^(NCCL|UCX|OMP)_' || true) LD_LIBRARY_PATH; do
    [[ -n ${!name:-} ]] && pass+=(-x "$name")
done
exec mpirun --hostfile "$hosts" --map-by ppr:"${GPUS:-8}":node --bind-to numa "${pass[@]}" \
    "$MOBILELLM" train "$2" --device cuda --resume "${@:3}"
