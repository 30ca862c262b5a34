# Sourced with a Python that has pip: uv reads neither pip's settings nor its names for certificates
# and mirrors, so they are handed on.
pip_setting() { "$1" -m pip config get "$2" 2>/dev/null || true; }
: "${SSL_CERT_FILE:=${PIP_CERT:-$(pip_setting "$1" global.cert)}}"
: "${UV_DEFAULT_INDEX:=${PIP_INDEX_URL:-$(pip_setting "$1" global.index-url)}}"
: "${UV_INDEX:=${PIP_EXTRA_INDEX_URL:-$(pip_setting "$1" global.extra-index-url)}}"
for name in SSL_CERT_FILE UV_DEFAULT_INDEX UV_INDEX; do
    if [[ -n "${!name}" ]]; then export "${name?}"; else unset "$name"; fi
done

# uv's file cache and the environment may lie on different disks, where it cannot link and would warn.
export UV_LINK_MODE="${UV_LINK_MODE:-copy}"
if [[ "$(df -P . | tail -1 | cut -d' ' -f1)" == "$(df -P "$HOME" | tail -1 | cut -d' ' -f1)" ]]; then
    export UV_LINK_MODE=hardlink
fi
