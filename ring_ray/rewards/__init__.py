"""Verifiers: what turns a response into a reward. One verifier a file, one registry."""
