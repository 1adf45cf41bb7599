#!/usr/bin/env bash
# setup_cuda.sh: a CUDA compiler in build/cuda, for machines that have none. Called by make setup-cuda; needs no root and no GPU.
#
# The compiler comes as Python packages (requirements-cuda.txt: 116 MB to load, 270 MB on disk), so it is installed as ours are,
# into an environment of its own; build/cuda points into it. A second call finds everything.
set -euo pipefail
cd "$(dirname "$0")/.."

VENV=build/venv-cuda scripts/setup.sh cuda
packages=$(cd build && compgen -G 'venv-cuda/lib/python3*/site-packages')
ln -sfn "$packages/nvidia/cu13" build/cuda
ln -sfn "$packages" build/cuda-frontend
compiler=$(build/cuda/bin/nvcc --version | grep release)
echo "setup: build/cuda has ${compiler##*, }; make finds it when there is no other. See scripts/cuda.mk"
