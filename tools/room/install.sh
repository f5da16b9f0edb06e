#!/bin/sh
# Install from this folder alone, without a network: sh install.sh
set -eu
cd "$(dirname "$0")"
"${PYTHON:-python3}" -m venv .venv
.venv/bin/python -m pip install --quiet --no-index --find-links wheels 'r2l[all,explorer]'
echo "ready: .venv/bin/jupyter lab notebooks"
