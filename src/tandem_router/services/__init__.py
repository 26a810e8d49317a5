"""One servicer per proto service: unpack, call, pack. No state here."""
