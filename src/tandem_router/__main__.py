"""`python -m tandem_router`: the same as `tandem`."""

from __future__ import annotations

from tandem_router.cli import main

if __name__ == "__main__":
    main()
