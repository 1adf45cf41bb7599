#!/usr/bin/env bash
# setup.sh: installs what the project needs and this machine lacks. Called by make; a second call finds everything and touches no
# network.
#
#   scripts/setup.sh GROUP...            install what is missing (groups: see packages.txt)
#   scripts/setup.sh --check GROUP [CC]  install nothing; say what is missing and exit 1 if anything is
#
# What is missing is asked of the compiler, pkg-config and PATH, not of dpkg, so that libraries from another package manager, a
# cluster's modules or one's own build count as well. Python packages go into build/venv (or the folder VENV) and nowhere else.
set -euo pipefail
cd "$(dirname "$0")/.."

compiler=${CC:-gcc}
venv=${VENV:-build/venv}

say() { echo "setup: $*"; }

die() {
    printf 'setup: %s\n' "$@" >&2
    exit 1
}

# A python3 that can make virtual environments. The first one on PATH may be a bare build without ensurepip.
find_python() {
    local python
    for python in python3 /usr/bin/python3 /usr/local/bin/python3; do
        if "$python" -c 'import ensurepip, venv, sys; sys.exit(sys.version_info < (3, 10))' 2>/dev/null; then
            echo "$python"
            return 0
        fi
    done
    return 1
}

present() { # PROBE of packages.txt
    local name=${1#*:}
    case $1 in
        compiler) command -v "${compiler%% *}" >/dev/null ;;
        command:*) command -v "$name" >/dev/null ;;
        pkg-config:*) pkg-config --exists "$name" 2>/dev/null ;;
        header:*) echo "#include <$name>" | $compiler -include stddef.h -include stdint.h -include stdarg.h -include setjmp.h -E -x c - >/dev/null 2>&1 ;;
        python:ensurepip) find_python >/dev/null ;;
        file:*) compgen -G "$name" >/dev/null ;;
        *) die "scripts/packages.txt: $1 is not a probe" ;;
    esac
}

missing_packages() { # GROUP...
    local wanted groups package probe
    while read -r groups package probe; do
        [[ -z $groups || $groups == \#* ]] && continue
        for wanted; do
            if [[ ,$groups, == *,$wanted,* ]]; then
                present "$probe" || echo "$package"
                break
            fi
        done
    done <scripts/packages.txt
}

apt_install() { # PACKAGE...
    local sudo=()
    command -v apt-get >/dev/null || die "this machine has no apt-get. Install these, by the names they have here, and call make again:" "  $*"
    if [[ $(id -u) != 0 ]]; then
        # sudo may ask for a password, if there is somebody to ask.
        if ! command -v sudo >/dev/null || ! { sudo -n true 2>/dev/null || [[ -t 0 ]]; }; then
            die "these packages are missing, and installing them needs root or sudo:" "  apt-get install $*"
        fi
        sudo=(sudo)
    fi
    say "installing with apt: $*"
    # A third-party source that is down must not stop us: whether the packages can be had is for apt-get install to say.
    "${sudo[@]}" apt-get -qq -o Acquire::Retries=3 -o DPkg::Lock::Timeout=300 update || say "apt-get update failed; going on with the lists as they are"
    "${sudo[@]}" env DEBIAN_FRONTEND=noninteractive apt-get -qq -y --no-install-recommends -o Acquire::Retries=3 \
        -o DPkg::Lock::Timeout=300 -o Dpkg::Use-Pty=0 install "$@" >/dev/null || die "apt-get could not install: $*"
}

install_packages() { # GROUP...
    local missing
    missing=$(missing_packages "$@")
    [[ -z $missing ]] && return
    # shellcheck disable=SC2086 # one word a package
    apt_install $missing
    missing=$(missing_packages "$@")
    [[ -z $missing ]] || die "installed, but still not usable (a different $compiler, pkg-config or python3 before it on PATH?):" "  ${missing//$'\n'/ }"
}

# A copy of the requirements in the environment says which it was made from.
install_python() { # REQUIREMENTS
    local requirements=$1 stamp=$venv/${1##*/}
    "$venv/bin/python" -c '' 2>/dev/null || {
        say "making $venv with $(find_python)"
        rm -rf "$venv"
        "$(find_python)" -m venv "$venv"
    }
    cmp -s "$requirements" "$stamp" && return
    say "installing $requirements into $venv"
    "$venv/bin/python" -m pip install --quiet --disable-pip-version-check --retries 5 -r "$requirements" ||
        die "pip could not install $requirements into $venv"
    cp "$requirements" "$stamp"
}

if [[ ${1-} == --check ]]; then
    compiler=${3:-$compiler}
    present compiler || [[ $compiler == gcc ]] || die "the compiler $compiler is not on PATH"
    missing=$(missing_packages "$2")
    [[ -z $missing ]] || die "missing: ${missing//$'\n'/ }" "To install them run: make setup"
    exit
fi

[[ $# -gt 0 ]] || die "which group? See scripts/packages.txt"
install_packages "$@"
for group in "$@"; do
    if [[ -f scripts/requirements-$group.txt ]]; then install_python "scripts/requirements-$group.txt"; fi
done
