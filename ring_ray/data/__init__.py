"""Prompts: read or generated, checked, rendered, split into training and held-out, and served in order."""
