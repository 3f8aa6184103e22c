"""Properties of prompts that hold for any words, states and templates."""

import numpy as np
import pytest
import torch
from fixtures.properties import examples
from hypothesis import given
from hypothesis import strategies as st

from vlmad_utils.models import prompts


class Letters:
    """A text model whose embedding depends on the characters only and has any length.

    It remembers what it was asked.
    """

    def __init__(self):
        self.seen = []

    def encode_text(self, texts):
        self.seen += texts
        return torch.tensor(
            np.array(
                [
                    np.random.default_rng(list(t.encode())).normal(size=6) * (1 + len(t))
                    for t in texts
                ]
            )
        )


words = st.text("abc xyz", min_size=1, max_size=6)
entries = st.builds(
    lambda before, after: f"{before}{{}}{after}",
    st.text("abc ", max_size=4),
    st.text("xyz ", max_size=4),
)
sides = st.lists(entries, min_size=1, max_size=4)
ensembles = st.fixed_dictionaries(
    {"normal": sides, "anomalous": sides, "templates": st.lists(entries, min_size=1, max_size=3)}
)


@examples(60)
@given(words, ensembles, st.booleans(), st.randoms(use_true_random=False))
def test_prototypes_are_unit_vectors_that_no_order_changes(name, ensemble, first, random):
    model = Letters()
    found = prompts.prototypes(model, name, ensemble, first)
    assert found.shape == (2, 6) and found.dtype == torch.float32
    assert torch.allclose(found.norm(dim=1), torch.ones(2), atol=1e-5)
    asked = [text for side in prompts.compose(name, ensemble) for text in side]
    assert len(model.seen) == len(set(model.seen)) and set(model.seen) == set(
        asked
    )  # each distinct prompt once
    mixed = {key: random.sample(values, len(values)) for key, values in ensemble.items()}
    assert torch.allclose(prompts.prototypes(Letters(), name, mixed, first), found, atol=1e-5)
    doubled = {key: values * 2 for key, values in ensemble.items()}  # the same weight for each
    assert torch.allclose(prompts.prototypes(Letters(), name, doubled, first), found, atol=1e-5)


@examples(60)
@given(words, ensembles, st.fixed_dictionaries({}, optional={"normal": sides, "anomalous": sides}))
def test_prompts_are_all_pairs_of_state_and_template(name, ensemble, extra):
    for side, found in zip(
        ("normal", "anomalous"), prompts.compose(name, ensemble, extra_states=extra)
    ):
        states = ensemble[side] + extra.get(side, [])
        assert len(found) == len(states) * len(ensemble["templates"])
        assert found == [
            t.replace("{}", s.replace("{}", name)) for s in states for t in ensemble["templates"]
        ]


@examples(40)
@given(
    ensembles,
    st.sampled_from(["normal", "anomalous", "templates"]),
    st.sampled_from(["", "no mark", "{} and {}", "{", 3, None]),
)
def test_an_entry_without_just_one_mark_is_refused(ensemble, key, entry):
    with pytest.raises(ValueError, match="one '{}'"):
        prompts.compose("x", {**ensemble, key: [*ensemble[key], entry]})


@examples(25)
@given(st.dictionaries(st.integers(), st.tuples(words, ensembles), min_size=1, max_size=4))
def test_many_are_those_of_each_and_share_their_prompts(requests):
    model = Letters()
    found = prompts.prototype_table(model, requests)
    assert len(model.seen) == len(set(model.seen))
    assert all(
        torch.equal(found[key], prompts.prototypes(Letters(), *request))
        for key, request in requests.items()
    )
