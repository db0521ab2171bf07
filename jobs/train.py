"""Train one model, or with -m a sweep: `python jobs/train.py --help` tells what can be set."""

from ring_ray.compose import main

if __name__ == "__main__":
    main()
