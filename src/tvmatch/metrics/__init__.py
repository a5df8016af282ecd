"""How good samples are. `tvmatch.metrics.judge` (the digits' judge) needs scikit-learn and is imported on its own."""

from tvmatch.metrics.frechet import FeatureAccumulator, FeatureStatistics, frechet_distance

__all__ = ["FeatureAccumulator", "FeatureStatistics", "frechet_distance"]
