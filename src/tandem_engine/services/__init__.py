"""The engine's gRPC services: each engine's own protocol with its habits, health, and the ledger."""
