#!/usr/bin/env bash
# setup_cuda.sh: what compiling cuda/ needs and this machine lacks. Called by make setup-cuda; needs no root and no GPU, and a
# second call finds everything.
#
# A compiler, where there is no toolkit: it comes as Python packages (requirements-cuda.txt: 104 MB to load, 271 MB on disk), so it
# is installed as ours are, into an environment of its own, and build/cuda points into it. And the headers of cuDNN's frontend,
# where cuDNN's own are; without them attention is by our own kernels alone.
set -euo pipefail
cd "$(dirname "$0")/.."

frontend=nvidia-cudnn-frontend==1.32.0 # the first release whose packed statistics can be trusted is 1.28
environment=build/venv-cuda

say() { echo "setup: $*"; }

# The one that scripts/cuda.mk finds.
find_compiler() {
    local compiler
    for compiler in "${CUDA_HOME:-}/bin/nvcc" "$(command -v nvcc || true)" /usr/local/cuda/bin/nvcc build/cuda/bin/nvcc; do
        "$compiler" --version >/dev/null 2>&1 && echo "$compiler" && return
    done
    return 1
}

if ! compiler=$(find_compiler); then
    VENV=$environment scripts/setup.sh cuda
    ln -sfn "$(cd build && compgen -G 'venv-cuda/lib/python3*/site-packages/nvidia/cu13')" build/cuda
    compiler=$(find_compiler)
fi
toolkit=$(realpath "$("$compiler" --dryrun any.cu 2>&1 | sed -n 's/^#\$ TOP=//p')")
say "CUDA compiler: $compiler, $("$compiler" --version | grep -o 'V[0-9.]*$'), of $toolkit"

# Without what it depends on, which is a gigabyte of Python that compiles kernels.
if [[ -f $toolkit/include/cudnn.h && ! -d $environment/$frontend ]]; then
    say "loading the headers of $frontend"
    [[ -x $environment/bin/python ]] || python3 -m venv "$environment"
    "$environment/bin/python" -m pip install --quiet --disable-pip-version-check --retries 5 --no-deps --target "$environment/$frontend" "$frontend"
fi
if [[ -d $environment/$frontend ]]; then
    ln -sfn "venv-cuda/$frontend" build/cuda-frontend
else
    say "no cudnn.h: attention by our own kernels alone"
fi
