"""The scheduler: a response leaves the engine's process once, when it ends, not token by token."""

from collections.abc import Iterable
from typing import Any

import numpy as np
from vllm.v1.core.sched.scheduler import Scheduler
from vllm.v1.engine import EngineCoreOutput, EngineCoreOutputs
from vllm.v1.outputs import LogprobsLists
from vllm.v1.request import Request, RequestStatus


class ResponseScheduler(Scheduler):  # type: ignore[misc]
    """Nobody reads a token before its response has ended: sending each costs as much time as a small model takes.

    An interruption aborts all requests. vLLM would answer for them itself, without what is held here. So they end
    with the next step, which is due at once.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._held: dict[str, list[EngineCoreOutput]] = {}  # by request: one a step
        self._interrupted = False

    def update_from_output(self, scheduler_output: Any, model_runner_output: Any) -> dict[int, EngineCoreOutputs]:
        found: dict[int, EngineCoreOutputs] = super().update_from_output(scheduler_output, model_runner_output)
        for of_client in found.values():
            of_client.outputs = [whole for output in of_client.outputs if (whole := self._whole(output)) is not None]
        if self._interrupted:
            self._interrupted = False
            for request in super().finish_requests(None, RequestStatus.FINISHED_ABORTED):
                end = EngineCoreOutput(request.request_id, [], finish_reason=request.get_finished_reason())
                found.setdefault(request.client_index, EngineCoreOutputs()).outputs.append(self._whole(end))
        return {client: of_client for client, of_client in found.items() if _says_something(of_client)}

    def finish_requests(self, request_ids: str | Iterable[str] | None, finished_status: RequestStatus) -> list[Request]:
        """The requests that ended: none yet where all were to."""
        if request_ids is None:
            self._interrupted = bool(self.requests)
            return []
        finished: list[Request] = super().finish_requests(request_ids, finished_status)
        for request in finished:
            self._held.pop(request.request_id, None)
        return finished

    def get_num_unfinished_requests(self) -> int:
        # While it is paused vLLM leaves out those that wait; they end with the step as well.
        return len(self.requests) if self._interrupted else super().get_num_unfinished_requests()

    def _whole(self, output: EngineCoreOutput) -> EngineCoreOutput | None:
        """All that a request put out, once it has ended."""
        self._held.setdefault(output.request_id, []).append(output)
        return _merge(self._held.pop(output.request_id)) if output.finished else None


def _says_something(outputs: EngineCoreOutputs) -> bool:
    return bool(outputs.outputs or outputs.finished_requests or outputs.scheduler_stats)


def _merge(outputs: list[EngineCoreOutput]) -> EngineCoreOutput:
    """One output of the tokens, log-probs and routed experts of several; the rest is the last one's."""
    merged = outputs[-1]
    merged.new_token_ids = [token for output in outputs for token in output.new_token_ids]
    if logprobs := [output.new_logprobs for output in outputs if output.new_logprobs is not None]:
        columns = zip(*(one[:3] for one in logprobs), strict=True)  # the fourth is of speculative decoding
        merged.new_logprobs = LogprobsLists(*map(np.concatenate, columns))
    if routed_experts := [output.routed_experts for output in outputs if output.routed_experts is not None]:
        merged.routed_experts = np.concatenate(routed_experts)
    return merged
