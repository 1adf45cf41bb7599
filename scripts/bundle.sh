#!/usr/bin/env bash
# bundle.sh: everything that a cluster's node needs to run mobilellm, in one archive that can be unpacked anywhere. `make bundle`.
#
#   scripts/bundle.sh ARCHIVE.tar.xz FOLDER PROGRAM...
#
# The programs are named as they lie in FOLDER, mobilellm first; in the archive they lie so in bin. Inside are also Open MPI with
# its plugins, HDF5 and oneDNN, what all of these need except the C library, the configs, scripts and tests. CUDA's libraries and
# the driver are the node's (mobilellm --version says what it found). Left out are Open MPI's plugins for other networks (UCX, OFI,
# PSM, verbs): MPI only starts ranks and writes checkpoints here, over TCP and shared memory.
set -euo pipefail
[[ ${3-} == mobilellm ]] || { sed -n '2,9s/^# \{0,1\}//p' "$0"; exit 2; }
archive=$1 folder=$2
shift 2
program=$folder/mobilellm
cuda=$("$program" --version | grep '^CUDA [0-9]' || true)
limit=$((40 << 20))

stage=$(mktemp -d)
trap 'rm -rf "$stage"' EXIT
name=mobilellm-$("$program" --version | awk 'NR == 1 {print $2}')
root=$stage/$name
mkdir -p "$root"/{bin,lib,libexec,share,etc}

where() { ompi_info --path "$1" --parsable | cut -d: -f3; }
plugins=$(where pkglibdir)
[[ $plugins == /usr/* ]] || { echo "bundle.sh: Open MPI's plugins are in $plugins; a bundle is made from one installed under /usr" >&2; exit 1; }
for each; do install -D "$folder/$each" "$root/libexec/$each"; done
cp "$(readlink -f "$(command -v mpirun)")" "$root/libexec/mpirun"
cp "$(readlink -f "$(command -v orted)")" "$root/libexec/orted"
cp -rL "$(where pkgdatadir)" "$root/share/openmpi"
[[ -d /etc/openmpi ]] && cp -rL /etc/openmpi "$root/etc/openmpi"
mkdir -p "$root/${plugins#/usr/}"
for plugin in "$plugins"/*.so; do
    case ${plugin##*/} in
    *ucx* | *ofi* | *psm* | *openib* | *flux* | *monitoring* | *spml* | *sshmem* | *memheap* | *scoll* | *atomic* | libompi_dbg*) ;;
    *) cp -L "$plugin" "$root/${plugins#/usr/}/" ;;
    esac
done
# PMIx has plugins too, in a prefix of its own on Debian.
pmix=$(ldconfig -p | awk '/libpmix\.so\.2 / {print $NF; exit}')
pmix=$(dirname "$(dirname "$(readlink -f "${pmix:-/usr/lib/libpmix.so.2}")")")
if [[ -d $pmix/lib/pmix ]]; then
    mkdir -p "$root/pmix"
    cp -rL "$pmix/lib" "$pmix/share" "$root/pmix/"
    rm -f "$root"/pmix/lib/*.a
fi

# The libraries of all of that, and theirs. The C library is the node's: one as old as this machine's or newer.
find "$root" -type f \( -name '*.so*' -o -path '*/libexec/*' \) -print0 | xargs -0 ldd 2>/dev/null |
    awk '$2 == "=>" && $3 ~ /^\// {print $3}' | sort -u | while read -r library; do
    case ${library##*/} in
    libc.so* | libm.so* | libdl.so* | librt.so* | libpthread.so* | libresolv.so* | libutil.so* | ld-linux*) ;;
    *) cp -L "$library" "$root/lib/" ;;
    esac
done
find "$root" -type f \( -name '*.so*' -o -path '*/libexec/*' \) -exec strip --strip-unneeded {} + 2>/dev/null || true

# Each command in bin is a script that tells Open MPI and the loader where they are. orted is what mpirun starts on other nodes.
for command in mpirun orted "$@"; do
    mkdir -p "$(dirname "$root/bin/$command")"
    cat >"$root/bin/$command" <<'END'
#!/bin/sh
self=$(readlink -f "$0")
root=${self%/bin/*}
export OPAL_PREFIX="$root" PMIX_INSTALL_PREFIX="$root/pmix" OPAL_SYSCONFDIR="$root/etc/openmpi"
export LD_LIBRARY_PATH="$root/lib${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}"
export PATH="$root/bin:$PATH"
# Without ssh and Slurm there are no other nodes, which Open MPI has to be told.
command -v ssh >/dev/null || command -v srun >/dev/null || export OMPI_MCA_plm=isolated
exec "$root/libexec/${self#"$root/bin/"}" "$@"
END
    chmod +x "$root/bin/$command"
done

git ls-files -z README.md LICENSE configs docs data/*.py scripts tests | xargs -0 cp --parents -t "$root"
cat >"$root/Makefile" <<'END'
# What make can do in a bundle; scripts/gpu.mk says what it is.
BUILD = build
EMU_DIR = build/emu
BINARIES = bin
all:
	@cat README.bundle
include scripts/gpu.mk
END
cat >"$root/README.bundle" <<END
$name, built $(date -u +%Y-%m-%d) on $(sed -n 's/^PRETTY_NAME="\(.*\)"/\1/p' /etc/os-release) with glibc $(ldd --version | awk 'NR == 1 {print $NF}').
Unpack it anywhere (the same path on all nodes), then: bin/mobilellm --version, bin/mpirun -np 8 bin/mobilellm train ...
$(if [[ $cuda ]]; then cat <<'CUDA'
A GPU needs its driver and cuBLASLt, NCCL and cuDNN: the system's, those in LD_LIBRARY_PATH, or those that PyTorch brought along in
the Python environment that is active. On a machine with GPUs, with make or without:
  make gpu-check   scripts/gpu_check.sh                            driver, libraries, speeds, links, a few training steps
  make test-gpu    scripts/test_gpu.sh                             the tests of bin/tests, and training as a whole
  make bench-gpu   python3 scripts/bench/gpu.py --binaries bin     speed and memory, into docs/results-gpu.md
They want bash and python3 (its own library is enough); each program of bin/tests runs by itself too.
CUDA
else echo "It was built without CUDA: for CPUs alone."; fi)
END

mkdir -p "$(dirname "$archive")"
# All programs hold the same kernels; a dictionary as large as they are together finds them again.
tar -C "$stage" --sort=name --owner=0 --group=0 --numeric-owner -cf - "$name" | xz --lzma2=preset=6,dict=128MiB >"$archive.part"
size=$(stat -c %s "$archive.part")
if ((size > limit)); then
    echo "bundle.sh: the archive takes $((size >> 20)) MiB, more than $((limit >> 20)) MiB. The largest in it:" >&2
    find "$root" -type f -printf '%s %P\n' | sort -nr | head -5 >&2
    exit 1
fi
mv "$archive.part" "$archive"
echo "$archive: $(awk "BEGIN {printf \"%.1f\", $size / 1048576}") MiB, ${cuda:-for CPUs alone: no CUDA compiler here (make setup-cuda)}"
