"""Train reasoning language models by reinforcement learning with C3PO, on Ray, vLLM and DeepSpeed."""
