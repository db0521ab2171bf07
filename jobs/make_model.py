"""Write the quickstart's model, a tiny mixture of experts with random weights and a byte-level tokenizer, to DIR."""

import argparse

from ring_ray.engines.tiny_model import make_tiny_model


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("directory", metavar="DIR", help="Hugging Face model directory to write; use it as model.path")
    parser.add_argument("--seed", type=int, default=0, help="of the weights: the same seed gives the same model")
    parser.add_argument("--hidden", type=int, default=128, help="width of the residual stream, a multiple of 32")
    parser.add_argument("--layers", type=int, default=2, help="transformer blocks")
    arguments = parser.parse_args()
    if arguments.hidden < 32 or arguments.hidden % 32 or arguments.layers < 1:
        parser.error("--hidden must be a positive multiple of 32, and --layers at least 1")
    parameters = make_tiny_model(
        arguments.directory, arguments.seed, hidden_size=arguments.hidden, layers=arguments.layers
    )
    print(f"{arguments.directory}: {parameters:,} parameters")


if __name__ == "__main__":
    main()
