"""Tandem: a gRPC-native control plane and token router for inference split into prefill and decode."""

__version__ = "0.1.0"
