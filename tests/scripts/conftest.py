"""The data sets in miniature, made once for all tests of the data scripts."""

import pytest

from tests.miniature import Miniature, make_miniature


@pytest.fixture(scope="session")
def miniature(tmp_path_factory: pytest.TempPathFactory) -> Miniature:
    """Return the data sets in miniature."""
    return make_miniature(tmp_path_factory.mktemp("miniature"))
