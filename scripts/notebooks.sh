#!/usr/bin/env bash
# Runs notebooks/*.py in an empty folder and writes them with their outputs. Usage: scripts/notebooks.sh [OUT]
# Without OUT the committed notebooks are renewed, with their trainings at full length: 15 minutes in the longest.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
export PATH=$PWD/.venv/bin:$PATH TQDM_DISABLE=1 # a bar is a hundred lines in a file
out=$(realpath -m "${1:-notebooks}")
[ $# = 0 ] || export ZOO_NOTEBOOK_STEPS=4 # elsewhere they only have to run
empty=$(mktemp -d) # a notebook uses no path of the repository
trap 'rm -rf "$empty"' EXIT
mkdir -p "$out"
for source in "$PWD"/notebooks/*.py; do
    name=$(basename "$source" .py)
    cp "$out/$name.ipynb" "$empty" 2>/dev/null || true # its cell ids stay
    cd "$empty"
    jupytext --quiet --update --to ipynb --output "$name.ipynb" "$source"
    jupyter nbconvert --log-level ERROR --to notebook --execute --inplace --coalesce-streams \
        --ExecutePreprocessor.record_timing=False "$name.ipynb"
    mv "$name.ipynb" "$out"
    echo "$out/$name.ipynb"
done
