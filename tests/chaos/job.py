"""`jobs/train.py`, which also writes the journal of the run: `python -m tests.chaos.job OVERRIDES`."""

from unittest.mock import patch

from ring_ray import compose
from ring_ray.actors.cluster import spawned
from tests.chaos.recording import recorded

if __name__ == "__main__":
    with patch("ring_ray.launch.spawned", recorded(spawned)):
        compose.main()
