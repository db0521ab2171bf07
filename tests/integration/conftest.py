"""The models of several files of tests."""

import pytest

from ring_ray.engines.tiny_model import make_tiny_model
from tests.integration.policies import Policy


@pytest.fixture(scope="module")
def policies(tmp_path_factory: pytest.TempPathFactory) -> tuple[Policy, Policy]:
    """Old and new weights of one model."""
    return Policy(tmp_path_factory.mktemp("old"), seed=0), Policy(tmp_path_factory.mktemp("new"), seed=1)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Directory of a model that trains in moments."""
    path = tmp_path_factory.mktemp("tiny")
    make_tiny_model(path, seed=0, hidden_size=32)
    return str(path)
