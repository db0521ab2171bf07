"""The 25 verifiable instructions of IFEval (arXiv 2311.07911). One kind a file, all listed in `instructions`."""
