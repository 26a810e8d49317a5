"""The `tandem` command."""

from __future__ import annotations

from tandem_router.cli.app import main

__all__ = ["main"]
