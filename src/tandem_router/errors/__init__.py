"""The one table of reasons: what went wrong, as a word a program can switch on and a sentence a person can act on.

Every refusal that leaves Tandem is a row here. `wire/status.py` turns rows into gRPC status with `google.rpc.ErrorInfo`
and back; docs/errors.md is generated from it. The code of a row is chosen by what the caller should do next
(AIP-193): fix the request, change something first, slow down, try again, resync, or tell us.
"""

from __future__ import annotations

from tandem_router.errors.codes import Code
from tandem_router.errors.error import TandemError
from tandem_router.errors.reasons import Reason
from tandem_router.errors.table import TABLE, Row

__all__ = ["DOMAIN", "TABLE", "Code", "Reason", "Row", "TandemError"]

DOMAIN = "tandem"
"""`ErrorInfo.domain` of every reason."""
