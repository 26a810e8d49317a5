"""The `tandem` command."""

from __future__ import annotations

import os

__all__ = ["main"]


def main() -> None:
    """Run the command line; exits the process."""
    # gRPC's core logs every GOAWAY on stderr at its default level; it reads this once, when it is imported.
    os.environ.setdefault("GRPC_VERBOSITY", "ERROR")
    from tandem_router.cli.app import main as run

    run()
