"""Shared by all tests."""

from hypothesis import settings

settings.register_profile("no_deadline", deadline=None)  # a loaded machine is slow, not wrong
settings.load_profile("no_deadline")
