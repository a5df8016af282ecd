"""Operators with hand-written derivatives."""
