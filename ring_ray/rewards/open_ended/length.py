"""Length-bias control: what a long response must give up of its score.

Reward models and judges prefer longer responses even where they are no better, and training finds that out (Singhal et
al. 2023, arXiv 2310.03716; Huang et al. 2024, arXiv 2409.17407, subtract what length alone explains). Here the cost is
linear in the length, as such a bias is to a first approximation, and begins where a response is long enough, so that
nobody is paid for brevity. It depends on nothing but the response itself: the same one always earns the same.
"""

from ring_ray.config import LengthConfig


def length_controlled(score: float, tokens: int, config: LengthConfig) -> float:
    """max(0, score - penalty * max(0, tokens - free_tokens) / free_tokens), for a ``score`` from 0 to 1.

    To take back a known bias, have penalty / free_tokens be the score that a further token brings by itself: the slope
    of scores over lengths among responses that are equally good.
    """
    if config.free_tokens is None:
        return score
    excess = max(0, tokens - config.free_tokens) / config.free_tokens
    return max(0.0, score - config.penalty * excess)
