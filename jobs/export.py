"""Write the model of a checkpoint to DIR, as transformers and vLLM load it: safetensors, config and tokenizer."""

import argparse

from ring_ray.checkpoint.export import export_model
from ring_ray.checkpoint.store import CheckpointError


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("checkpoint", metavar="CHECKPOINT", help="such as outputs/quickstart/checkpoints/step-00000040")
    parser.add_argument("directory", metavar="DIR", help="directory to write, new or empty; use it as model.path")
    parser.add_argument(
        "--model", metavar="MODEL", help="where the model that training began from is now, if it was moved"
    )
    parser.add_argument("--trust-remote-code", action="store_true", help="run Python code that comes with that model")
    arguments = parser.parse_args()
    try:
        export_model(
            arguments.checkpoint,
            arguments.directory,
            model_path=arguments.model,
            trust_remote_code=arguments.trust_remote_code,
        )
    except (CheckpointError, OSError) as error:  # OSError: no such model, or DIR can't be written
        parser.exit(2, f"error: {error}\n")
    print(arguments.directory)


if __name__ == "__main__":
    main()
