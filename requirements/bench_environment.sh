#!/usr/bin/env bash
# Installs a pinned set that nothing of the project may see into an environment of its own:
# `bench_environment.sh bench-litellm .venv/bin/python` makes build/bench-litellm with that Python.
# Quick when it is there already.
set -euo pipefail
python="$(cd "$(dirname "$2")" && pwd)/$(basename "$2")"
cd "$(dirname "$0")/.."
set="requirements/$1.txt"
folder="build/$1"
state="$(sha256sum < "$set" | cut -d' ' -f1) $PWD"
if [[ -f "$folder/.stamp" && "$(cat "$folder/.stamp")" == "$state" && -x "$folder/bin/python" ]]; then
    exit 0
fi

echo "-> packages of $set, into $folder"
# Wheels alone: nothing that was fetched runs before it is asked to.
wanted=(--quiet --require-hashes --no-deps --only-binary :all: -r "$set")
uv="$(dirname "$python")/uv"
if [[ -x "$uv" ]]; then
    # shellcheck source=requirements/uv_settings.sh
    source requirements/uv_settings.sh "$python"
    "$uv" venv --quiet --clear --python "$python" "$folder"
    "$uv" pip install --python "$folder/bin/python" "${wanted[@]}"
else
    "$python" -m venv --clear "$folder"
    "$folder/bin/python" -m pip install --disable-pip-version-check "${wanted[@]}"
fi
echo "$state" > "$folder/.stamp"
