"""Decisions, and nothing else: no I/O and no clock. What is decided here is proved by properties in tests/policy."""
