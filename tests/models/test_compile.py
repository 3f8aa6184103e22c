"""Blocks through torch.compile: the same features, or one warning and the same features."""

import pickle
import warnings

import pytest
import torch
from fixtures import tiny

from vlmad_utils.models.compiling import as_they_are, fast

ASKED = {"blocks": (1, "final"), "windows": (2, 3), "patches": True}


@pytest.fixture
def model():
    """A tiny CLIP of the test's own; compiled code of other tests is forgotten."""
    torch._dynamo.reset()
    found = tiny.model.__wrapped__()
    yield found
    torch._dynamo.reset()


@pytest.mark.slow
@pytest.mark.parametrize("backend, precision", [("aot_eager", "fp32"), ("eager", "bf16")])
def test_compiled_blocks_give_the_same_features(model, backend, precision):
    images = tiny.arrays("inputs")["test_images"][:2]
    model.precision = precision
    expected = model.encode_image(images, **ASKED)
    model.compile = backend
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        found = model.encode_image(images, **ASKED)
    assert model.compile == backend  # it did not fall back
    assert {name.partition(" by")[0] for name in model.made if "compiled" in name} == {
        "compiled run_blocks",
        "compiled run_windows",
    }
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, atol=1e-5, rtol=1e-5)
    assert pickle.loads(pickle.dumps(model)).made == {}


def test_where_compiling_fails_one_warning_says_so(model):
    def broken(graph, inputs):
        raise RuntimeError("no compiler here")

    images = tiny.arrays("inputs")["test_images"][:2]
    expected = model.encode_image(images, **ASKED)
    torch._dynamo.register_backend(compiler_fn=broken, name="broken")
    model.compile = "broken"
    with pytest.warns(UserWarning, match="without torch.compile.*no compiler here") as found:
        again = model.encode_image(images, **ASKED)
        model.encode_image(images, **ASKED)
    assert len([each for each in found if "torch.compile" in str(each.message)]) == 1
    assert all(torch.equal(again[name], value) for name, value in expected.items())


def test_too_little_memory_is_no_failure_of_the_compiler(model):
    def full(*_):
        raise torch.OutOfMemoryError("CUDA out of memory")

    model.compile = "eager"
    model.made["compiled full by eager"] = full
    with pytest.raises(torch.OutOfMemoryError):
        fast(model, full)
    assert model.compile == "eager"


def test_a_trial_is_not_compiled_and_the_compiler_comes_back(model):
    model.compile = "eager"
    with pytest.raises(ZeroDivisionError), as_they_are(model):
        model.encode_image(tiny.arrays("inputs")["test_images"][:1])
        assert not [name for name in model.made if name.startswith("compiled")]
        raise ZeroDivisionError
    assert model.compile == "eager"
