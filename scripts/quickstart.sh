#!/usr/bin/env bash
# Installs into .venv if needed, then shows real photos as tokens and back. Usage: scripts/quickstart.sh [--out DIR]
set -euo pipefail
scripts=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
"$scripts/install.sh"
exec "$scripts/../.venv/bin/zoo" quickstart "$@"
