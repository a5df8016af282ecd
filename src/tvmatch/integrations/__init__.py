"""Bridges to other projects and formats."""
