# shellcheck shell=bash
# environment.sh: what the launchers here set for every rank. Sourced by them; each line can be overridden from outside.
#
# NCCL and UCX find network adapters by themselves, and are wrong in known ways: the lines below are those that a cluster's
# administrator is asked for. `mobilellm --version` says which libraries are found, scripts/gpu_check.sh what they reach.

# The program: a bundle's where this is one, or else what make built.
launched_from=$(readlink -f "$(dirname "${BASH_SOURCE[0]}")/../..")
[[ -x $launched_from/bin/mobilellm ]] && PATH=$launched_from/bin:$PATH
MOBILELLM=${MOBILELLM:-$launched_from/$([[ -x $launched_from/bin/mobilellm ]] && echo bin || echo build)/mobilellm}

# Which Ethernet interface carries NCCL's first contact. Unset, NCCL takes the first that is up, which may be a container's
# bridge: "NCCL WARN Bootstrap: no socket interface found" or a hang at the start. ^docker0,lo = any but these.
export NCCL_SOCKET_IFNAME=${NCCL_SOCKET_IFNAME:-^docker0,lo,virbr0}

# Which InfiniBand adapters carry the data. Unset: all, storage's too where a cluster has one. Example: mlx5_0,mlx5_1.
[ -n "${NCCL_IB_HCA:-}" ] && export NCCL_IB_HCA

# WARN names the adapter or peer that failed. INFO shows rings, trees and transports (NET/IB/0/GDRDMA is what one wants to see
# between nodes, P2P/CUMEM within): for the first run on a new machine.
export NCCL_DEBUG=${NCCL_DEBUG:-WARN}

# A peer that dies must end the run, not hang it: mobilellm asks NCCL for asynchronous errors itself, and this makes InfiniBand
# give up on a dead link after some 8 s (4.096 us x 2^timeout, seven times).
export NCCL_IB_TIMEOUT=${NCCL_IB_TIMEOUT:-18}

# The network's part of the model's bits: with the same GPUs and nodes NCCL chooses the same rings again, unless it is told to
# tune itself. Fixing the algorithm as well keeps bits when a node is exchanged for one like it.
[ -n "${NCCL_ALGO:-}" ] && export NCCL_ALGO

# MPI here only starts ranks, agrees on small numbers and writes checkpoints, all in the host's memory: UCX need not look whether
# a pointer is a GPU's. Where UCX picks a transport that is broken, name those that work: UCX_TLS=self,sm,rc,tcp.
export UCX_MEMTYPE_CACHE=${UCX_MEMTYPE_CACHE:-n}

# Each rank drives one GPU; its CPU threads serve the data loader and the checkpoint.
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-4}
