"""Scripted engines over real gRPC: all five protocols with their habits, and every fault a router must survive.

Public, for tests of routers and of new dialects. Each engine runs in the caller's event loop, on loopback.
"""

from tandem_router.testing.grpc_engines.engine import ScriptedGrpcEngine
from tandem_router.testing.grpc_engines.meeting import Meeting
from tandem_router.testing.grpc_engines.recorded import Seen
from tandem_router.testing.grpc_engines.script import Archive, Failing, GrpcScript, Listening, Tls

__all__ = ["Archive", "Failing", "GrpcScript", "Listening", "Meeting", "ScriptedGrpcEngine", "Seen", "Tls"]
