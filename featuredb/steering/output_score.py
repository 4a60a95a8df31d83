"""Output score: how far a feature, steered with, puts out the tokens of its logit lens.

(1 - r / |V|) · p, with r the best rank, from 0, and p the largest probability of its 20 most
promoted tokens among the next tokens of a neutral prompt, when 10 times the largest activation of
any feature at the prompt's last token is added to the feature's there (Arad, Mueller and Belinkov,
arXiv 2505.20063, and its published code).
"""

from __future__ import annotations

from torch import Tensor

AMPLIFICATION = 10.0
"""Times the largest activation at the prompt's last token, as in the paper."""


def output_scores(logits: Tensor, promoted: Tensor) -> Tensor:
    """Scores float32 [n] from logits [n, vocab] of steered passes.

    promoted: token ids int64 [n, k], those that each row's feature promotes.
    """
    wide = logits.float()
    best = wide.gather(1, promoted).max(dim=1, keepdim=True).values
    rank = (wide > best).sum(dim=1)
    probability = (best.squeeze(1) - wide.logsumexp(dim=1)).exp()
    return (1 - rank / wide.shape[1]) * probability
