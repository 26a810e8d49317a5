"""`tandem engine`: the reference engine, with its own flags."""

from __future__ import annotations

import typer

__all__ = ["engine"]


def engine(context: typer.Context) -> None:
    """Run the reference engine (`tandem engine --help` lists its flags)."""
    # Imported here: the engine brings numpy, which no other command needs.
    from tandem_engine.main import main

    raise typer.Exit(main(context.args))
