"""Outbound gRPC: channels to workers, and the grpcio bodies of `EngineClient` and `EngineDialer`."""
