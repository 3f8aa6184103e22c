"""What all tests share: a feature store of their own, and a hostile checkpoint."""

from pathlib import Path

import pytest
import torch


@pytest.fixture(scope="session", autouse=True)
def own_store(tmp_path_factory):
    """Keep what a test stores under store="auto" out of the checkout."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("VLMAD_STORE", str(tmp_path_factory.mktemp("store")))
        yield


class Hostile:
    """Runs a command when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


@pytest.fixture
def pickled(tmp_path):
    """A checkpoint that makes the file "it ran" when it is unpickled."""
    path = tmp_path / "evil.pt"
    torch.save({"weight": Hostile(tmp_path / "it ran")}, path)
    torch.load(path, weights_only=False)  # our own file, opened once to show that it runs code
    (tmp_path / "it ran").unlink()
    return path
