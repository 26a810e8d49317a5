"""Frozen values that every room speaks in; no clock, no environment, no randomness."""
