#!/usr/bin/env bash
# Resolve pyproject.toml with its extras into requirements.lock, from which scripts/install.sh installs
# everything; only the extra distributed is left out. Pins stay as they are where they can; with
# --upgrade (or --upgrade-package NAME) they move.
#
# One lock serves every platform: the CUDA packages, which only Linux's GPU build of torch needs,
# are left out here and come with that build (scripts/install.sh).
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

draft=$(mktemp)
trap 'rm -f "$draft"' EXIT
cp requirements.lock "$draft"
.venv/bin/uv pip compile pyproject.toml --python-version 3.11 \
    --extra pipeline --extra export --extra dicom --extra dev \
    --no-header --no-annotate --no-emit-index-url --quiet --output-file "$draft" "$@" >/dev/null
{
    echo "# Made from pyproject.toml by: make lock"
    grep -E '^[a-z0-9]' "$draft" | grep -vE '^(nvidia|cuda|triton)'
} >requirements.lock.new
mv requirements.lock.new requirements.lock
