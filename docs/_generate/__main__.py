"""Write the pages that are made from code, or with --check fail when one differs from what would be written."""

from __future__ import annotations

import argparse
import sys

from api_page import api_page
from errors_page import errors_page
from schema import ROOT, load
from settings_page import settings_page


def main() -> int:
    """0, or 1 when --check found a difference."""
    parser = argparse.ArgumentParser(prog="python docs/_generate", description=__doc__)
    parser.add_argument("--check", action="store_true", help="write nothing")
    check = parser.parse_args().check
    files = load()
    pages = {"api.md": api_page(files), "errors.md": errors_page(files), "settings.md": settings_page()}
    stale = []
    for name, page in pages.items():
        path = ROOT / "docs" / name
        if path.exists() and path.read_text(encoding="utf-8") == page:
            continue
        stale.append(name)
        if not check:
            path.write_text(page, encoding="utf-8")
    if stale and check:
        print(f"docs/{', docs/'.join(stale)} differ from the code they are made from; run `make docs`", file=sys.stderr)
    return int(bool(stale) and check)


sys.exit(main())
