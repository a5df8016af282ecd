"""Pages that draw with a trained run: one that a server of yours answers, and one that needs no server."""
