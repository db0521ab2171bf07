"""What an actor is called in the Ray dashboard, in its logs and in its errors."""

import ray


class Named:
    """An actor that goes by the name it was given, such as "policy rank 0"."""

    def __repr__(self) -> str:
        return ray.get_runtime_context().get_actor_name() or type(self).__name__
