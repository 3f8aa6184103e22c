"""Features that are no numbers, or of different lengths."""

import pytest
import torch
from fixtures import faults, tiny
from fixtures.cases import cases, encode

from vlmad_utils import data
from vlmad_utils.data import DataError
from vlmad_utils.features import Arrays


@cases(("NaN", float("nan")), ("infinite", float("inf")), ("beyond float16", 1e5))
def test_a_model_that_gives_no_numbers_for_an_image_is_reported(tmp_path, monkeypatch, case):
    paths, model = faults.pictures(tmp_path / "images", 3), tiny.model()
    right = encode(paths, blocks=(2,))
    original = model.encode_image

    def sick(pixels, **asked):
        out = original(pixels, **asked)
        for i, one in enumerate(pixels):
            if torch.equal(one, model.preprocess(data.read_image(paths[1]))):
                out["tokens-2"] = out["tokens-2"].clone()
                out["tokens-2"][i, 0, 0] = case[0]
        return out

    monkeypatch.setattr(model, "encode_image", sick)
    found = r"NaN or numbers beyond 65504 \(tokens-2\)"
    with pytest.raises(DataError, match=rf"01\.png: the model gave {found}: check its weights"):
        encode(paths, tmp_path / "store", blocks=(2,))
    with pytest.warns(UserWarning, match=r"01\.png"):
        found = encode(paths, tmp_path / "store", blocks=(2,), on_error="skip")
    assert torch.allclose(found.tokens[2], right.tokens[2][[0, 2]], atol=1e-3)
    monkeypatch.undo()  # with the model mended the image is encoded
    found = encode(paths, tmp_path / "store", blocks=(2,))
    assert torch.allclose(found.tokens[2], right.tokens[2], atol=1e-3)


def test_arrays_of_different_lengths_are_named():
    with pytest.raises(ValueError, match=r"One row per image.*'image': 1, 'tokens\[2\]': 3"):
        Arrays(torch.zeros(1, 4), (2, 2), tokens={2: torch.zeros(3, 4, 5)})
    assert len(Arrays(torch.zeros(3, 4), (2, 2), tokens={2: torch.zeros(3, 4, 5)})[1:]) == 2
