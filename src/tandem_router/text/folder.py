"""Opens a tokenizer on the router's own machine: a model folder, its tokenizer.json, or a zip of such files.

The path is an operator's, but it arrives in a request: only regular files are read, within the limits of an archive,
so that neither a device nor a pipe holds the reading thread. Links are followed, as model caches are made of them.
"""

from __future__ import annotations

import os
import stat
from pathlib import Path

from tandem_router.errors import TandemError
from tandem_router.text.archive import (
    KNOWN_NAMES,
    MAX_INFLATED_BYTES,
    TokenizerFiles,
    files_of,
    open_archive,
    unavailable,
)

__all__ = ["open_path"]


def open_path(path: str) -> TokenizerFiles:
    """The files behind an absolute path; raises TandemError(TOKENIZER_UNAVAILABLE) with the path and why.

    A file named *.json is the tokenizer.json, and its folder's other files belong to it.
    """
    try:
        place = Path(path)
        if stat.S_ISDIR(place.stat().st_mode):
            return _open_folder(place, place / "tokenizer.json")
        if place.suffix == ".json":
            return _open_folder(place.parent, place)
        if place.suffix == ".zip":
            return open_archive(_read(place, MAX_INFLATED_BYTES))
        raise unavailable("it is no folder, and no file named *.json or *.zip")
    except TandemError as error:
        raise unavailable(f"{path}: {error.sentence}") from None
    except OSError as error:
        raise unavailable(f"{path}: {error.strerror or error}") from None
    except ValueError as error:
        raise unavailable(f"{path}: {error}") from None


def _open_folder(folder: Path, tokenizer: Path) -> TokenizerFiles:
    texts: dict[str, str] = {}
    left = MAX_INFLATED_BYTES
    for name in KNOWN_NAMES:
        file = tokenizer if name == "tokenizer.json" else folder / name
        if file.exists():
            content = _read(file, left)
            left -= len(content)
            texts[name] = content.decode("utf-8")
    return files_of(texts, "the folder", [] if "tokenizer.json" in texts else os.listdir(folder))


def _read(file: Path, limit_bytes: int) -> bytes:
    # Non-blocking, as opening a pipe would wait for its other end.
    descriptor = os.open(file, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    with open(descriptor, "rb") as opened:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise unavailable(f"{file.name} is not a regular file")
        content = opened.read(limit_bytes + 1)
    if len(content) > limit_bytes:
        raise unavailable(f"its files have more than {MAX_INFLATED_BYTES} bytes")
    return content
