"""Say what one GPU would hold in each phase of a run, and whether that fits. Nothing is started."""

import argparse

from ring_ray.compose import composed
from ring_ray.config import ConfigError
from ring_ray.memory import FREE_SHARE, GIB, check_memory, memory_plan, model_shape, table


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--gpu-gib", type=float, default=80.0, help="memory of one GPU (default: 80)")
    parser.add_argument(
        "overrides", nargs="*", metavar="KEY=VALUE", help="as for jobs/train.py, such as experiment=ring_lite"
    )
    arguments = parser.parse_args()
    gpu_bytes = arguments.gpu_gib * GIB
    try:
        config = composed(arguments.overrides)
        if config.model.path is None:
            parser.error("give model.path=DIR; a config.json in it is enough")
        shape = model_shape(config.model.path, config.model)
        rows = memory_plan(config, shape, gpu_bytes)
        print(f"{shape.parameters / 1e9:.2f} B parameters, {shape.active_parameters / 1e9:.2f} B active")
        print(table(config, rows))
        check_memory(config, rows, gpu_bytes)
    except (ConfigError, OSError) as error:  # OSError: no such model
        parser.exit(2, f"error: {error}\n")
    print(f"fits a GPU of {arguments.gpu_gib:g} GiB with {FREE_SHARE:.0%} to spare")


if __name__ == "__main__":
    main()
