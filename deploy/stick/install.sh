#!/bin/sh
# Installs labref from this folder, without a network: sudo sh install.sh. See README.html beside it.
set -eu
here=$(CDPATH='' cd -- "$(dirname -- "$0")" && pwd)
for python in "${PYTHON:-python@PYTHON@}" python@PYTHON@ python3 "$here/current/bin/python"; do
    if "$python" -c 'import lzma, sys, venv; sys.exit(sys.version_info[:2] != (3, @MINOR@))' 2>/dev/null; then
        exec "$python" -I "$here/installer/install.py" "$@"
    fi
done
echo "There is no Python @PYTHON@ on this computer. Install it from the system's own packages (Debian, Ubuntu: python@PYTHON@;" >&2
echo "Red Hat, SUSE: python@PYTHON@), or say where it is: sudo PYTHON=/path/to/python@PYTHON@ sh install.sh" >&2
exit 1
