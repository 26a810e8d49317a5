"""`python -m tandem_engine`."""

from __future__ import annotations

from tandem_engine.main import main

if __name__ == "__main__":
    raise SystemExit(main())
