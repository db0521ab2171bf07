"""The sandbox: runs code that a model wrote, and judges what it did (docs/sandbox.md)."""
