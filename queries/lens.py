"""Whether the tokens a direction promotes say something: does a logit stand out?"""

from __future__ import annotations

from collections.abc import Sequence
from statistics import NormalDist

CHANCE = 0.01
"""How likely it is that chance alone lifts any token of any of the SAE's features that high."""


def standing_out(
    promoted: Sequence[float], suppressed: Sequence[float], vocabulary: int, features: int
) -> tuple[float, float] | None:
    """The logits above and below which a token stands out, None where there is no telling.

    A direction that says nothing about the output still has 20 tokens that it promotes most. Were
    its logits normal over the vocabulary, the k-th largest of V would be near ``mu + z sd`` with
    ``z = Phi^-1(1 - k / V)``, the k-th smallest near ``mu - z sd``: that gives mu and sd from the
    stored ends of both lists. A token stands out beyond ``mu +- sd Phi^-1(1 - CHANCE / (V F))``,
    which no token of any of the SAE's F features would reach by chance but once in a hundred SAEs
    (Bonferroni's bound; Dunn, Multiple Comparisons among Means, 1961). That a lens is worth
    reading where its distribution has outliers is from Gurnee et al., Universal Neurons in GPT2
    Language Models (2024), and Bloom and Lin, Understanding SAE Features with the Logit Lens
    (2024), who use kurtosis and skewness. More than k outliers widen sd, so that fewer pass.

    Args:
        promoted: Logits, largest first.
        suppressed: Logits, smallest first.
        vocabulary: V.
        features: F.
    """
    k = min(len(promoted), len(suppressed))
    if k == 0 or 2 * k >= vocabulary:
        return None
    normal = NormalDist()
    high, low = promoted[k - 1], suppressed[k - 1]
    middle = (high + low) / 2
    deviation = (high - low) / 2 / normal.inv_cdf(1 - k / vocabulary)
    # By symmetry: 1 minus so small a share would lose its digits.
    reach = -normal.inv_cdf(CHANCE / (vocabulary * features)) * deviation
    return middle + reach, middle - reach
