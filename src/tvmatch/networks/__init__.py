"""Networks: the semi-Lipschitz DiT and an MLP for point clouds."""
