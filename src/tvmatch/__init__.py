"""Terminal Velocity Matching (arXiv 2511.19797): generators that draw an image in one to four network calls.

Nothing heavy is imported here; take the part that you need, for instance::

    from tvmatch.flow_map import FlowMap
    from tvmatch.objectives import TerminalVelocityMatching
    from tvmatch.kernels.dual_attention import dual_attention
"""

__version__ = "0.1.0"
