"""What a run tells the world: every step to metrics.jsonl, W&B, Ray and the terminal; at the end, summary.json."""

from ring_ray.tracking.tracker import Sink, Tracker

__all__ = ["Sink", "Tracker"]
