"""What all actors have in common."""

import os
from typing import Any

import ray

from ring_ray.actors.processes import Whereabouts, offer_stacks


class Worker:
    """An actor that goes by the name it was given, such as "policy rank 0", and that can be found when it hangs."""

    def __new__(cls, *_: Any) -> "Worker":
        offer_stacks()
        return super().__new__(cls)

    def __repr__(self) -> str:
        return ray.get_runtime_context().get_actor_name() or type(self).__name__

    @ray.method
    def whereabouts(self) -> Whereabouts:
        return Whereabouts(ray.get_runtime_context().get_node_id(), os.getpid())
