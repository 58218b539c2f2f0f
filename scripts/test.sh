#!/usr/bin/env bash
# Installs the [dev] extra into .venv if needed, then runs the tests. Usage: scripts/test.sh [PYTEST OPTIONS]
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
scripts/install.sh dev
exec .venv/bin/python -m pytest -q -n 2 --dist loadfile --no-loadscope-reorder "$@"
