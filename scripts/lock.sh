#!/usr/bin/env bash
# Resolve pyproject.toml with its extras into requirements.lock, from which scripts/install.sh installs
# everything but the extras distributed, federated, evidently, backbones and executorch. Pins stay as they are where they can;
# with --upgrade (or --upgrade-package NAME) they move. Each has the SHA-256 of all its files.
#
# One lock serves every platform: the CUDA packages, which only Linux's GPU build of torch needs,
# are left out here and come with that build (scripts/install.sh). The CPU builds of torch have other
# files: requirements-cpu.lock, made anew when torch or torchvision move (TORCH_INDEX as there).
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

readonly TORCH_INDEX=${TORCH_INDEX:-https://download.pytorch.org/whl/cpu}
draft=$(mktemp)
trap 'rm -f "$draft" requirements.lock.new requirements-cpu.lock.new' EXIT

compile() { .venv/bin/uv pip compile --python-version 3.11 --generate-hashes \
    --no-header --no-annotate --no-emit-index-url --quiet "$@"; }
# The whole entry of a package, with its hashes; its version alone.
entry() { awk -v start="$2==" 'index($0, start) == 1, !/\\$/' "$1"; }
version() { sed -n "s/^$2==\([^ ]*\).*/\1/p" "$1"; }

cp requirements.lock "$draft"
compile pyproject.toml --extra pipeline --extra export --extra dicom --extra volumes --extra dev --extra docs \
    --output-file "$draft" "$@" >/dev/null
{
    echo "# Made from pyproject.toml by: make lock"
    awk '/^[a-z0-9]/ { own = !/^(nvidia|cuda|triton)/ } own && !/^ *#/' "$draft"
} >requirements.lock.new

torch=$(version requirements.lock.new torch) vision=$(version requirements.lock.new torchvision)
if [[ $(version requirements-cpu.lock torch) != "$torch+cpu" ||
    $(version requirements-cpu.lock torchvision) != "$vision" ]]; then
    printf '%s\n' "torch==$torch+cpu" "torchvision==$vision+cpu" |
        compile - --no-deps --default-index "$TORCH_INDEX" >"$draft"
    {
        grep '^#' requirements-cpu.lock
        entry "$draft" torch
        # PyPI's torchvision works as well: the hashes of both.
        entry requirements.lock.new torchvision | sed '$s/$/ \\/'
        entry "$draft" torchvision | tail -n +2
    } >requirements-cpu.lock.new
    mv requirements-cpu.lock.new requirements-cpu.lock
fi
mv requirements.lock.new requirements.lock
