"""Whether an effect is more than chance: over pairs of texts, over other units, over shuffled texts.

1. A pair's difference is the effect on the text with the concept minus that on the text without it. Student's t over
   the pairs gives interval and p-value of the mean difference.
2. Shuffled texts: in each pair the two texts change places at random. All tests are made again on what is left.
3. Other units: the sizes of the same effect of random units of the same layer and kind, their mean and their upper
   quantile. An effect that consistent but common units have too is not a link.
4. Benjamini-Hochberg over every test of one kind in a study.

All sums are float64.
"""

import math
from typing import NamedTuple

import torch
from jaxtyping import Float, Float64
from scipy import special
from torch import Tensor

from safe_sail.errors import BadInput
from safe_sail.records import Estimate

LEVEL = 0.95


class PairEffects(NamedTuple):
    """Mean differences over pairs, test by test."""

    mean: Float64[Tensor, " tests"]
    half_width: Float64[Tensor, " tests"]
    """Half of Student's 95 % interval."""
    p_value: Float64[Tensor, " tests"]
    """Two-sided; 1 where every difference is 0."""
    n_pairs: int

    def estimate(self, index: int) -> Estimate:
        """One test as a record."""
        return interval(float(self.mean[index]), float(self.half_width[index]), self.n_pairs)


def interval(mean: float, half_width: float, n: int) -> Estimate:
    """An estimate with an interval around it."""
    return Estimate(value=mean, low=mean - half_width, high=mean + half_width, n=n, level=LEVEL)


def pair_effects(differences: Float[Tensor, "pairs tests"]) -> PairEffects:
    """Mean, interval and p-value of each column.

    Raises:
        BadInput: there are fewer than two pairs, or a difference is not finite.
    """
    wide = differences.double().cpu()
    n = wide.shape[0]
    if n < 2 or not bool(torch.isfinite(wide).all()):
        raise BadInput(f"expected finite differences of at least 2 pairs of texts; got {n} pairs.")
    mean, error = wide.mean(0), wide.std(0) / math.sqrt(n)
    # Equal differences have no error: certain if they are not 0, nothing if they are.
    t = torch.where(error > 0, mean / error.clamp(min=torch.finfo(torch.float64).tiny), mean.sign() * torch.inf)
    t = torch.where(mean == 0, torch.zeros_like(t), t)
    p = 2 * torch.from_numpy(special.stdtr(n - 1, -t.abs().numpy()))
    return PairEffects(mean, float(special.stdtrit(n - 1, 0.5 + LEVEL / 2)) * error, p, n)


def shuffled(
    differences: Float[Tensor, "pairs tests"], signs: Float[Tensor, " pairs"]
) -> Float64[Tensor, "pairs tests"]:
    """The differences with the texts of some pairs in each other's place; one draw of signs serves all tests."""
    return differences.double() * signs.to(differences.device)[:, None]


def random_signs(n_pairs: int, generator: torch.Generator) -> Float64[Tensor, " pairs"]:
    """1 or -1 for each pair, at even odds."""
    return 2 * torch.randint(0, 2, (n_pairs,), generator=generator).double() - 1


class OtherUnits(NamedTuple):
    """Sizes of the effects that control units have."""

    mean: Estimate
    """n counts control units; Student's interval."""
    high: float
    """Their 95 % quantile; the largest where there are fewer than twenty."""


def other_units(effects: Float[Tensor, " controls"]) -> OtherUnits:
    """Mean size and upper quantile of control effects.

    Raises:
        BadInput: there are fewer than two.
    """
    sizes = effects.double().abs().cpu()
    n = len(sizes)
    if n < 2:
        raise BadInput(f"a control needs at least 2 random units or sets; got {n}. Ask for more, or for fewer units.")
    half = float(special.stdtrit(n - 1, 0.5 + LEVEL / 2)) * float(sizes.std()) / math.sqrt(n)
    mean = float(sizes.mean())
    return OtherUnits(interval(mean, half, n), float(sizes.quantile(LEVEL, interpolation="higher")))
