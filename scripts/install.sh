#!/usr/bin/env bash
# Make the environment .venv from requirements.lock, every file checked by its SHA-256. Does nothing
# where that is done already.
#
#   TORCH=cpu|cuda    the PyTorch build; default: cuda where nvidia-smi finds a GPU, else cpu
#   PYTHON=...        a Python 3.11; default: the first of python3.11, python3, python that is one
#   TORCH_INDEX=...   where the CPU builds are; default: https://download.pytorch.org/whl/cpu
#
# Behind a mirror: pip's index-url is used, and handed on to uv; or set UV_DEFAULT_INDEX yourself.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

readonly UV_VERSION=0.13.8
readonly TORCH_INDEX=${TORCH_INDEX:-https://download.pytorch.org/whl/cpu}
readonly venv=.venv
export PIP_DISABLE_PIP_VERSION_CHECK=1
unset PYTHONPATH PYTHONHOME

say() { echo "==> $*"; }
fail() { echo "error: $*" >&2; exit 1; }

find_python() {
    local candidates=(python3.11 python3 python) candidate
    [[ -z ${PYTHON:-} ]] || candidates=("$PYTHON")
    for candidate in "${candidates[@]}"; do
        if "$candidate" -c 'import sys; sys.exit(sys.version_info[:2] != (3, 11))' 2>/dev/null; then
            echo "$candidate"
            return
        fi
    done
    fail "Python 3.11 is needed; ${candidates[*]}: not found or another version." \
        "Install it (apt install python3.11-venv, brew install python@3.11, pyenv install 3.11)" \
        "or name it: make setup PYTHON=/path/to/python3.11"
}

choose_torch() {
    case ${TORCH:-} in
        cpu | cuda) echo "$TORCH" ;;
        "") if nvidia-smi -L 2>/dev/null | grep -q GPU; then echo cuda; else echo cpu; fi ;;
        *) fail "TORCH=$TORCH: must be cpu or cuda" ;;
    esac
}

uv_install() { "$venv/bin/uv" pip install --python "$venv/bin/python" "$@"; }

# From here on uv uses the index that pip is configured with, unless it has one of its own.
share_index() {
    local index
    index=${PIP_INDEX_URL:-$("$venv/bin/pip" config get global.index-url 2>/dev/null || true)}
    if [[ -n $index && -z ${UV_DEFAULT_INDEX:-}${UV_INDEX_URL:-} ]]; then
        export UV_DEFAULT_INDEX=$index
    fi
}

# On Linux PyPI's torch is the CUDA build; the CPU build has an index of its own.
install_cpu_torch() {
    say "installing torch, the CPU build"
    "$venv/bin/pip" install --no-deps --retries 2 --timeout 15 --extra-index-url "$TORCH_INDEX" \
        --require-hashes --requirement requirements-cpu.lock
}

install_cuda_torch() {
    [[ $(uname) == Linux ]] || fail "TORCH=cuda: there is no CUDA build for $(uname)"
    say "installing torch with CUDA (a download of 2.6 GB)"
    # Its CUDA packages are not in the lock; torch names their exact versions.
    uv_install --no-deps --require-hashes --requirements <(pin torch; pin torchvision) &&
        uv_install --constraint <(pins) torch torchvision ||
        fail "could not install torch: is the package index reachable?"
}

pin() { awk -v start="$1==" 'index($0, start) == 1, !/\\$/' requirements.lock; }  # with its hashes
pins() { sed -n 's/^\([a-z0-9][^ ]*\).*/\1/p' requirements.lock; }  # without

install_environment() {  # sets build
    local python
    # --clear empties what a link leads to: the environment of another clone.
    [[ ! -L $venv ]] || fail "$venv is a link; remove it to get an environment here"
    python=$(find_python)
    say "creating $venv with $("$python" --version)"
    "$python" -m venv --clear "$venv" ||
        fail "$python cannot create an environment; on Debian and Ubuntu: apt install python3.11-venv"
    "$venv/bin/pip" install --quiet --retries 2 "uv==$UV_VERSION" ||
        fail "could not install uv: is the package index reachable?"
    share_index
    if [[ $build == cpu && $(uname) == Linux ]] && ! install_cpu_torch; then
        echo "The CPU build is not to be had: is $TORCH_INDEX reachable? (TORCH_INDEX=... names a mirror)" >&2
        [[ -z ${TORCH:-} ]] || fail "could not install torch"
        build=cuda
    fi
    [[ $build == cpu ]] || install_cuda_torch
    say "installing $(grep -c == requirements.lock) pinned packages"  # on macOS torch is one of them
    # Compiled here: where Python may not write bytecode, every start would compile it all again.
    uv_install --quiet --no-deps --compile-bytecode --require-hashes \
        --requirements requirements.lock ||
        fail "could not install requirements.lock: is the package index reachable?"
}

# The stamps are written last, so that a half-finished install is done again. A moved or copied
# folder counts as new: an environment holds absolute paths.
wanted=$({ cat requirements.lock requirements-cpu.lock scripts/install.sh && pwd; } | cksum)
done_before=$(cat "$venv/.environment" 2>/dev/null || true)
if [[ $done_before != "$wanted ${TORCH:-${done_before##* }}" ]]; then
    build=$(choose_torch)
    install_environment
    echo "$wanted $build" >"$venv/.environment"
fi
wanted=$(cksum <pyproject.toml)
if [[ $wanted != "$(cat "$venv/.project" 2>/dev/null || true)" ]]; then
    say "installing dynammo, editable"
    uv_install --quiet --no-deps --no-build-isolation --editable . ||
        fail "could not install this project: see the message above"
    echo "$wanted" >"$venv/.project"
    say "ready: $venv/bin/dynammo, with torch $("$venv/bin/python" -c 'from importlib.metadata import version; print(version("torch"))')"
fi
