"""Moving averages of all weights in one pass over memory."""

from .op import move_averages

__all__ = ["move_averages"]
