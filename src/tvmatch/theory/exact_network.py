"""A network that is the exact flow map of Gaussian data: what every objective must be content with."""

from torch import Tensor, nn

from tvmatch.networks.base import Network


class GaussianFlow(Network):
    """F(x, t, s) = (x_s - x_t) / ((s - t) w) for data N(mean, diag(deviation^2)), unconditional.

    With c_t = (1-t)^2 a^2 + t^2 along an axis of deviation a, (c_s - c_t) / (s - t) is a polynomial, so that

        w F = -m + [s + t - a^2 (2 - s - t)] / [sqrt(c_t) (sqrt(c_s) + sqrt(c_t))] (x - (1-t) m)

    is smooth where the two times meet, and there it is the velocity. mean, deviation [D] are parameters.
    """

    def __init__(self, mean: Tensor, deviation: Tensor) -> None:
        if mean.dim() != 1 or deviation.shape != mean.shape or not bool((deviation > 0).all()):
            raise ValueError(f"mean and deviation are [D], deviations positive; got {mean} and {deviation}.")
        super().__init__(num_classes=0, data_shape=(len(mean),))
        self.mean, self.deviation = nn.Parameter(mean.clone()), nn.Parameter(deviation.clone())

    def root(self, t: Tensor) -> Tensor:
        """sqrt(c_t), [B, D]."""
        return ((1 - t[:, None]).square() * self.deviation.square() + t[:, None].square()).sqrt()

    def forward(self, x: Tensor, t: Tensor, s: Tensor, label: Tensor, w: Tensor) -> Tensor:
        total = (s + t)[:, None]
        rate = (total - self.deviation.square() * (2 - total)) / (self.root(t) * (self.root(s) + self.root(t)))
        return (rate * (x - (1 - t)[:, None] * self.mean) - self.mean) / w[:, None]
