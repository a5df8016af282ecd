"""Ablations: grids of training options with seeds, on tasks small enough to repeat, and what they showed."""
