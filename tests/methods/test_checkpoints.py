"""Checkpoints that are damaged or pickled are refused with advice."""

import pytest
import torch
from fixtures.cases import cases

from vlmad_utils.methods import april_gan, training


def test_a_pickled_checkpoint_of_a_method_is_refused_with_advice(pickled):
    for method in (training.load_checkpoint, lambda path, _: april_gan.load(path)):
        with pytest.raises(
            ValueError,
            match=r"evil\.pt.*pickled.*torch\.load\(path, weights_only=True\).*save_checkpoint",
        ):
            method(pickled, "april_gan")
    assert not (pickled.parent / "it ran").exists()


@cases(
    (
        "weights cut off",
        lambda path: path.write_bytes(path.read_bytes()[:-8]),
        "x.safetensors.*damaged.*restore both, or train anew",
    ),
    ("weights empty", lambda path: path.write_bytes(b""), "x.safetensors.*damaged"),
    (
        "a pickle called safetensors",
        lambda path: torch.save({"a": torch.ones(1)}, path),
        "x.safetensors.*damaged",
    ),
    (
        "card cut off",
        lambda path: path.with_suffix(".json").write_text('{"method":'),
        "its card x.json is damaged",
    ),
    (
        "card is not text",
        lambda path: path.with_suffix(".json").write_bytes(b"\xff\xfe\xff"),
        "its card x.json is damaged",
    ),
    (
        "card of another method",
        lambda path: path.with_suffix(".json").write_text('{"method": "other"}'),
        "x.json describes 'other'",
    ),
)
def test_damaged_checkpoints_are_named_with_advice(tmp_path, case):
    breaks, words = case
    training.save_checkpoint(torch.nn.Linear(2, 3), tmp_path / "x.safetensors", method="m")
    assert training.load_checkpoint(tmp_path / "x.safetensors", "m")[1] == {"method": "m"}
    breaks(tmp_path / "x.safetensors")
    with pytest.raises(ValueError, match=words):
        training.load_checkpoint(tmp_path / "x.safetensors", "m")
