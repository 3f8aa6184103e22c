"""What all tests share: a feature store of their own."""

import pytest


@pytest.fixture(scope="session", autouse=True)
def own_store(tmp_path_factory):
    """What a test stores under store="auto" stays out of the checkout."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("VLMAD_STORE", str(tmp_path_factory.mktemp("store")))
        yield
