"""Prompt ensembles as data, and text prototypes against anomalib and APRIL-GAN."""

import pickle
import random

import numpy as np
import open_clip
import pytest
import torch
import torch.nn.functional as F
from fixtures.tiny import arrays, close, model
from hypothesis import given, settings
from hypothesis import strategies as st

from vlmad_utils import models, paths
from vlmad_utils.models import OpenClip, prompts
from vlmad_utils.store import shards

R = arrays("text")


class Counting:
    """A text model whose embedding depends on the characters only; it counts what it was asked."""

    def __init__(self, fingerprint=None):
        self.seen = []
        if fingerprint:
            self.fingerprint = fingerprint

    def encode_text(self, texts):
        self.seen += texts
        rows = [
            np.random.default_rng(list(t.encode())).normal(size=6) * (1 + len(t)) for t in texts
        ]
        return torch.tensor(np.array(rows))


@pytest.mark.parametrize(
    "ensemble, normal, anomalous",
    [
        ("winclip", 154, 88),
        ("winclip-21", 147, 84),
        ("april-gan", 245, 175),
        ("clip-ac", 1, 1),
        ("clip-ac-ensemble", 80, 80),
        ("one-class", 1, 0),
        ("winclip-states", 7, 4),
    ],
)
def test_sizes(ensemble, normal, anomalous):
    sides = prompts.compose("metal nut", ensemble)
    assert [len(side) for side in sides] == [normal, anomalous]
    if ensemble != "winclip-21":
        assert len(set(sides[0] + sides[1])) == normal + anomalous  # all distinct
    assert all("metal nut" in text and "{" not in text for side in sides for text in side)


def test_the_two_template_lists_differ_as_recorded():
    full, short = (
        prompts.library()["templates"]["winclip"],
        prompts.library()["templates"]["winclip-21"],
    )
    assert len(full) == len(set(full)) == 22 and len(short) == 21 and len(set(short)) == 20
    assert set(full) - set(short) == {"a cropped photo of a {}.", "a jpeg corrupted photo of a {}."}
    assert short.count("a jpeg corrupted photo of the {}.") == 2
    assert len(set(prompts.library()["templates"]["april-gan"])) == 35


def test_prompts_equal_the_reference_list():
    for side, name in zip(
        prompts.compose("metal_nut", "winclip-21"), ("normal", "anomalous"), strict=True
    ):
        assert side == R[f"prompts_{name}_metal_nut"].tolist()
        tokens = R[f"tokens_{name}_metal_nut"]
        assert torch.equal(model().tokenizer(side)[:, : tokens.shape[1]], tokens)
        close(model().encode_text(side), R[f"prompt_embeddings_{name}_metal_nut"])


@pytest.mark.parametrize("name", ["object", "metal_nut", "carpet"])
def test_prototypes_equal_the_references(name):
    found = prompts.prototypes(model(), name, "winclip-21", normalise_first=False)
    close(found, F.normalize(R[f"anomalib_mean_{name}"], dim=-1))
    close(prompts.prototypes(model(), name, "april-gan"), R[f"aprilgan_mean_{name}"])


def test_normalising_first_changes_the_direction():
    found = prompts.prototypes(model(), "metal_nut", "winclip-21")
    close(found, R["own_normalised_mean_metal_nut"])
    raw = prompts.prototypes(model(), "metal_nut", "winclip-21", normalise_first=False)
    assert (found - raw).abs().max() == pytest.approx(
        0.015, rel=0.05
    )  # recorded in the fixture's README


def test_class_names():
    assert prompts.class_name("metal_nut") == "metal_nut"
    assert prompts.class_name("metal_nut", "spaces") == "metal nut"
    assert prompts.class_name("pcb3", "promptad") == "printed circuit board"
    assert prompts.class_name("bracket_white", "promptad") == "bracket white"
    assert prompts.compose("pcb1", "clip-ac", class_names="promptad")[0] == [
        "normal printed circuit board"
    ]
    with pytest.raises(ValueError, match="raw, spaces or promptad"):
        prompts.class_name("pcb1", "words")


def test_own_lists_and_extra_states():
    own = {
        "normal": ["good {}"],
        "anomalous": ["bent {}", "cut {}"],
        "templates": ["an x-ray of a {}.", "{}"],
    }
    assert prompts.compose("pin", own) == (
        ["an x-ray of a good pin.", "good pin"],
        ["an x-ray of a bent pin.", "bent pin", "an x-ray of a cut pin.", "cut pin"],
    )
    more = prompts.compose("pcb", "clip-ac", extra_states={"anomalous": ["{} with bad soldering"]})
    assert more == (["normal pcb"], ["anomalous pcb", "pcb with bad soldering"])
    assert (
        len(prompts.library()["states"]["clip-ac"]["anomalous"]) == 1
    )  # the library itself is unchanged


@pytest.mark.parametrize(
    "ensemble, extra, words",
    [
        ("winclip+", None, "No prompt ensemble"),
        ({"good": ["{}"]}, None, "good"),
        ({"normal": ["flat"]}, None, "one '{}'"),
        ({"normal": []}, None, "no normal prompts"),
        ("winclip", {"templates": ["{}"]}, "templates"),
        ({"normal": ["{} {}"]}, None, "one '{}'"),
    ],
)
def test_mistakes_are_named(ensemble, extra, words):
    with pytest.raises(ValueError, match=words):
        prompts.compose("nut", ensemble, extra_states=extra)


def test_each_distinct_prompt_is_encoded_once(tmp_path):
    clip = Counting("a")
    requests = {
        (c, e): (c, e)
        for c in ("nut", "tile")
        for e in ("winclip", "winclip-21", "april-gan", "clip-ac")
    }
    table = prompts.prototype_table(clip, requests, store=tmp_path)
    assert len(clip.seen) == len(set(clip.seen))
    assert all(table[key].shape == (2, 6) for key in requests)
    seen = len(clip.seen)
    again = prompts.prototypes(clip, "nut", "winclip", store=tmp_path)
    assert len(clip.seen) == seen and torch.equal(again, table["nut", "winclip"])
    assert not torch.equal(again, prompts.prototypes(Counting(), "tile", "winclip"))


def test_text_is_kept_on_disk_and_mended(tmp_path):
    def ask(**options):
        clip = Counting("c")  # as in another process
        return prompts.prototypes(clip, "nut", "clip-ac", store=tmp_path, **options), len(clip.seen)

    found, seen = ask()
    again, none = ask()
    assert seen == 2 and none == 0 and torch.equal(found, again)
    file = next(tmp_path.rglob("text/*.safetensors"))
    content = file.read_bytes()
    file.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    with pytest.warns(UserWarning, match="1 of its 2 arrays are computed when they are asked for"):
        mended, one = ask()
    assert one == 1 and torch.equal(found, mended)
    assert ask(extra_states={"anomalous": ["bent {}"]})[1] == 1  # one row a prompt


def test_rows_are_remembered_by_the_object_without_a_disk():
    clip = Counting("d")
    clip.text_rows = {}
    for _ in range(2):
        prompts.prototypes(clip, "nut", "clip-ac", store=None)
    prompts.prototypes(clip, "tile", "clip-ac", store=None)
    assert len(clip.seen) == 4
    again = pickle.loads(pickle.dumps(model()))
    prompts.prototypes(again, "metal_nut", "clip-ac", store=None)
    assert len(again.text_rows) == 2 and not pickle.loads(pickle.dumps(again)).text_rows


def test_a_model_without_fingerprint_is_not_cached():
    clip = Counting()
    prompts.prototypes(clip, "nut", "clip-ac")
    prompts.prototypes(clip, "nut", "clip-ac")
    assert len(clip.seen) == 4


def test_one_class_gives_one_row():
    assert prompts.prototypes(Counting(), "nut", "one-class").shape == (1, 6)


@settings(max_examples=40, deadline=None)
@given(st.text(min_size=1, max_size=20), st.sampled_from(["winclip", "april-gan", "clip-ac"]))
def test_any_object_name(name, ensemble):
    """Braces, percent signs and other scripts in a name are put in as they are."""
    normal, anomalous = prompts.compose(name, ensemble)
    assert all(name in text for text in normal + anomalous)


@settings(max_examples=20, deadline=None)
@given(st.permutations(range(4)), st.booleans())
def test_order_of_states_does_not_matter(order, normalise_first):
    states = prompts.library()["states"]["winclip"]["anomalous"]
    base = {"normal": ["{}"], "anomalous": states}
    shuffled = {"normal": ["{}"], "anomalous": [states[i] for i in order]}
    one, two = (prompts.prototypes(Counting(), "nut", e, normalise_first) for e in (base, shuffled))
    assert torch.allclose(one, two, atol=1e-6)
    assert torch.allclose(one.norm(dim=-1), torch.ones(2), atol=1e-6)


def custom_text():
    """A tower whose text part is an object of its own, which open_clip runs at full length."""
    clip = open_clip.model.CustomTextCLIP(
        embed_dim=16,
        vision_cfg={"layers": 1, "width": 64, "patch_size": 16, "image_size": 32},
        text_cfg={"width": 32, "heads": 2, "layers": 2, "context_length": 77},
    )
    return OpenClip(clip, model().tokenizer, name="custom")


def embedded():
    if not (paths.raw_dir() / "minilm").exists():
        pytest.skip("the towers are not fetched; run make data")
    return models.load("embedded", device="cpu")


@pytest.mark.parametrize(
    "make", [model, custom_text, pytest.param(embedded, marks=pytest.mark.slow)]
)
def test_a_row_depends_on_its_prompt_only(make, threads):
    """Bit for bit: not on the prompts asked with it, their order, or the number of cores."""
    backbone, rng = make(), random.Random(0)
    texts = [text for side in prompts.compose("metal_nut", "winclip-21") for text in side]
    texts = rng.sample(list(dict.fromkeys(texts)), 20)
    whole = backbone.encode_text(texts)
    for cores in (1, 2):
        torch.set_num_threads(cores)
        for n in (1, 1, 2, 3, 7, 8, 9, 17, 20):
            chosen = rng.sample(range(len(texts)), n)
            assert torch.equal(backbone.encode_text([texts[i] for i in chosen]), whole[chosen])


@pytest.fixture
def threads():
    n = torch.get_num_threads()
    yield
    torch.set_num_threads(n)


def test_stored_rows_do_not_depend_on_what_was_asked_before(tmp_path):
    """Else the keys of cells would change from one run of a study to the next."""
    normal, anomalous = prompts.compose("metal_nut", "winclip-21")

    def ask(name, *groups):
        clip = pickle.loads(pickle.dumps(model()))
        for group in groups:
            rows = prompts.embed(clip, group, store=tmp_path / name)
        return rows

    expected = ask("once", normal + anomalous)
    assert torch.equal(ask("once", normal + anomalous), expected)  # read back
    assert torch.equal(ask("sides", anomalous, normal[:5], normal + anomalous), expected)
    backwards = ask("back", (normal + anomalous)[::-1])
    assert torch.equal(backwards.flip(0), expected)
    stored = {
        name: [shards.look(path).keys for path in (tmp_path / name).rglob("text/*.safetensors")]
        for name in ("once", "sides", "back")
    }
    assert all(len(files) == 1 for files in stored.values())  # many prompts, one file
    once, sides, back = ([sorted(keys) for keys in files] for files in stored.values())
    assert once == sides == back and len(once[0]) == len(set(normal + anomalous))
