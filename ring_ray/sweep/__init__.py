"""A sweep whose runs are jobs of a cluster: which starts when, which has its result already, how far each is."""

from ring_ray.sweep.launch import command, launch_sweep
from ring_ray.sweep.results import accuracy
from ring_ray.sweep.scheduler import JobRecord, State, SweepJob

__all__ = ["JobRecord", "State", "SweepJob", "accuracy", "command", "launch_sweep"]
