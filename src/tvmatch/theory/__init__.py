"""Distributions whose flow map is known, distances between distributions, Lipschitz constants, and the bound."""

from tvmatch.theory.bound import Bound, evaluate_bound
from tvmatch.theory.distributions import Checkerboard, Distribution, Samples, TwoMoons, eight_gaussians
from tvmatch.theory.exact_network import GaussianFlow
from tvmatch.theory.gaussian import Gaussian
from tvmatch.theory.guided import GuidedMixture
from tvmatch.theory.lipschitz import largest_singular_value, velocity_lipschitz
from tvmatch.theory.mixture import GaussianMixture, flow_along
from tvmatch.theory.wasserstein import w2_gaussians, w2_samples

__all__ = [
    "Bound",
    "Checkerboard",
    "Distribution",
    "Gaussian",
    "GaussianFlow",
    "GaussianMixture",
    "GuidedMixture",
    "Samples",
    "TwoMoons",
    "eight_gaussians",
    "evaluate_bound",
    "flow_along",
    "largest_singular_value",
    "velocity_lipschitz",
    "w2_gaussians",
    "w2_samples",
]
