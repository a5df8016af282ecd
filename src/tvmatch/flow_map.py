"""The flow map of a network: jumps between any two times, and their terminal velocity (DESIGN section 1)."""

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch._C._functorch import is_functorch_wrapped_tensor

from tvmatch.checks import check_data, check_guidance, check_labels, check_output, check_times
from tvmatch.interpolant import per_sample
from tvmatch.networks.base import Network, Tangents
from tvmatch.networks.duals import TangentError, check_pair, push_forward


class Jump(NamedTuple):
    """A jump and its velocity at the end time, with the network's part in them; each has the shape of x."""

    x_s: Tensor  # x + f(x, t, s)
    df_ds: Tensor  # w [F + (s - t) dF/ds]
    output: Tensor  # F
    slope: Tensor  # dF/ds


class FlowMap(nn.Module):
    """What a network F(x, t, s, class, w) means as a map from time t down to time s.

    With `scaled` parameterisation the network's output is multiplied by the guidance scale: displacement
    f = (s - t) w F and velocity u = w F(x, t, t); without it the factor w is absent.

    Shapes: x [B, ...] with the network's data shape; t, s, w [B]; label [B] int64, -1 for the null class.
    1 >= t >= s >= 0, w > 0. `ValueError` names what does not fit; a tangent that is lost on the way out of the network
    raises `TangentError` (of a part of it, only `networks.probe.verify_tangents` tells).
    """

    def __init__(self, network: Network, scaled: bool = True) -> None:
        super().__init__()
        self.network = network
        self.scaled = scaled
        self.tangent_seen = False

    def displacement(self, x: Tensor, t: Tensor, s: Tensor, label: Tensor, w: Tensor) -> Tensor:
        """f(x, t, s) = (s - t) w F(x, t, s, class, w)."""
        return self._gap(x, t, s, w) * self._evaluate(x, t, s, label, w)

    def jump(self, x: Tensor, t: Tensor, s: Tensor, label: Tensor, w: Tensor) -> Tensor:
        """x + f(x, t, s): an estimate of x_s in one network call."""
        return x + self.displacement(x, t, s, label, w)

    def velocity(self, x: Tensor, t: Tensor, label: Tensor, w: Tensor) -> Tensor:
        """u(x, t) = w F(x, t, t, class, w): the same network where the two times meet."""
        s = t.clone()  # the compiler makes other code for one tensor given twice than for two
        return self._factor(w, x) * self._evaluate(x, t, s, label, w)

    def average_velocity(self, x: Tensor, t: Tensor, s: Tensor, label: Tensor, w: Tensor) -> Tensor:
        """w F(x, t, s) = f / (s - t): the mean velocity of a jump, smooth where its ends meet."""
        return self._factor(w, x) * self._evaluate(x, t, s, label, w)

    def average_velocity_derivative(
        self, x: Tensor, t: Tensor, s: Tensor, label: Tensor, w: Tensor, tangents: Tangents
    ) -> tuple[Tensor, Tensor]:
        """`average_velocity` and its derivative along a direction in (x, t, s)."""
        output, slope = self.network_derivative(x, t, s, label, w, tangents)
        factor = self._factor(w, x)
        return factor * output, factor * slope

    def unconditional_velocity(self, x: Tensor, t: Tensor) -> Tensor:
        """u(x, t, null, 1): the velocity without class and without guidance."""
        return self.velocity(x, t, torch.full((len(x),), -1, device=x.device), torch.ones_like(t))

    def terminal_velocity(
        self, x: Tensor, t: Tensor, s: Tensor, label: Tensor, w: Tensor, detach_jvp: bool = False
    ) -> tuple[Tensor, Tensor]:
        """The jump and its velocity at the end time: (x + f, df/ds), df/ds = w [F + (s - t) dF/ds].

        One forward-mode pass with tangents (0, 0, 1) for (x, t, s); gradients flow back through both results, or with
        `detach_jvp` not through dF/ds (an ablation).
        """
        return self.jump_with_velocity(x, t, s, label, w, detach_jvp)[:2]

    def jump_with_velocity(
        self, x: Tensor, t: Tensor, s: Tensor, label: Tensor, w: Tensor, detach_jvp: bool = False
    ) -> Jump:
        """`terminal_velocity` together with the F and dF/ds that it is made of."""
        output, slope = self.network_derivative(x, t, s, label, w, Tangents(s=torch.ones_like(s)))
        if detach_jvp:
            slope = slope.detach()
        gap = per_sample(s - t, x)
        factor = self._factor(w, x)
        return Jump(x + factor * gap * output, factor * (output + gap * slope), output, slope)

    def network_derivative(
        self, x: Tensor, t: Tensor, s: Tensor, label: Tensor, w: Tensor, tangents: Tangents
    ) -> tuple[Tensor, Tensor]:
        """(F, dF): the network and its derivative along any direction in (x, t, s)."""
        self._check(x, t, s, label, w)
        network = self.network
        if getattr(network, "carries_tangents", False):
            output, slope = network(x, t, s, label, w, tangents=tangents)
            check_pair(output, slope, type(network).__name__)
        else:
            output, slope = push_forward(
                lambda x, t, s: network(x, t, s, label, w), (x, t, s), tangents, type(network).__name__
            )
        check_output(output, x, type(network).__name__)
        self._refuse_lost_zero(x, t, s, label, w, tangents, slope)
        return output, slope

    def _refuse_lost_zero(
        self, x: Tensor, t: Tensor, s: Tensor, label: Tensor, w: Tensor, tangents: Tangents, slope: Tensor
    ) -> None:
        """Raise if the derivative is exactly zero although the output moves along the direction.

        A fresh network with zero modulation layers really has derivative zero, so a zero alone proves nothing: the
        network is asked at this point and a small step further on, both times plainly, so that equal means equal to
        the last bit. Once a tangent was seen, the path is trusted: that a part of the network loses its own is for
        `networks.probe.verify_tangents` to find.
        """
        if self.tangent_seen or torch.compiler.is_compiling() or is_functorch_wrapped_tensor(slope):
            return
        if bool(slope.detach().any()):
            self.tangent_seen = True
            return
        # as the step calls it, with gradients if it has them: a compiled network then has nothing more to compile
        moved = [p if d is None else p - 0.01 * d for p, d in zip((x, t, s), tangents, strict=True)]
        for place, (time, towards) in enumerate(((t, tangents.t), (s, tangents.s)), start=1):
            if towards is not None:  # what lies outside [0, 1] a network need not know
                inside = (moved[place] >= 0) & (moved[place] <= 1)
                moved[place] = torch.where(inside, moved[place], time + 0.01 * towards)
        ahead, here = (self.network(*point, label, w).detach() for point in (moved, (x, t, s)))
        if not torch.equal(ahead.nan_to_num(), here.nan_to_num()):
            raise TangentError(
                f"{type(self.network).__name__}: the derivative came out as exactly zero, but the output changes "
                "along that direction. An operation inside lost the tangent without a word (a custom operator or a "
                "compiled autograd.Function, for example); see docs/mathematics.md."
            )

    def _evaluate(self, x: Tensor, t: Tensor, s: Tensor, label: Tensor, w: Tensor) -> Tensor:
        self._check(x, t, s, label, w)
        output = self.network(x, t, s, label, w)
        check_output(output, x, type(self.network).__name__)
        return output

    def _check(self, x: Tensor, t: Tensor, s: Tensor, label: Tensor, w: Tensor) -> None:
        check_data(x, self.network.data_shape)
        check_times(t, s, len(x))
        check_labels(label, self.network.num_classes, len(x))
        check_guidance(w, len(x))

    def _factor(self, w: Tensor, x: Tensor) -> Tensor | float:
        return per_sample(w, x) if self.scaled else 1.0

    def _gap(self, x: Tensor, t: Tensor, s: Tensor, w: Tensor) -> Tensor:
        return per_sample(s - t, x) * self._factor(w, x)
