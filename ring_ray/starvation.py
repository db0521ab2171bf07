"""Whether there is enough to train on: a step that can't ever be filled is an error, not a run that hangs."""

from ring_ray.config import AlgoConfig, ConfigError
from ring_ray.roles import BufferStatus

MAX_PASSES = 10  # over the data for one step; a step that needs more is not going to come


class StarvedError(RuntimeError):
    """The buffer can't be filled: the data, or what the options leave of it, is too little for the budget."""


def check_budget(algo: AlgoConfig, prompts: int, max_response_tokens: int) -> None:
    """Refuse a budget that not even one pass of longest responses over the data could fill."""
    most = prompts * algo.group_size * max_response_tokens
    if algo.selection == "tokens" and algo.token_budget > most:
        raise ConfigError(
            f"algo.token_budget={algo.token_budget}: one step can never be filled, a pass over the data gives at most "
            f"{most} tokens ({prompts} prompts x algo.group_size={algo.group_size} x "
            f"rollout.max_response_tokens={max_response_tokens})"
        )
    if algo.selection == "groups" and algo.groups_per_step > prompts:
        raise ConfigError(
            f"algo.groups_per_step={algo.groups_per_step}: one step can never be filled, the data has {prompts} prompts"
        )


def check_supply(algo: AlgoConfig, status: BufferStatus, *, scored_groups: int, prompts: int) -> None:
    """Raise `StarvedError` where a step won't be filled.

    ``scored_groups`` since the last step, of as many ``prompts`` as the data has.
    """
    passes = scored_groups / prompts
    if passes < 1 or status.ready or (passes < MAX_PASSES and status.queued > 0):
        return
    key = "token_budget" if algo.selection == "tokens" else "groups_per_step"
    raise StarvedError(
        f"one optimizer step can't be filled: {passes:.1f} passes over the {prompts} prompts gave "
        f"{status.queued:.0%} of algo.{key}={getattr(algo, key)}. Lower it, raise algo.group_size, add data, "
        f"or look at the rewards and at algo.filter_zero_advantage={algo.filter_zero_advantage}"
    )
