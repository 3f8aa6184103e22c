"""Training of the embedded model: its plan, its words, its steps."""

import re
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from embedded_model import captions, evaluation, training
from embedded_model.bank import CaptionBank, draw_text
from vlmad_procedural import generate


def test_training_never_sees_what_evaluates():
    rows = training.plan(204, seed=5)
    assert {generate.FAMILIES[f].role for f in rows.family} == {"train"}
    assert {generate.DEFECT_TYPES[d].role for d in rows.defect if d != "good"} == {"train"}
    assert (rows.defect[1::2] == "good").all()
    assert (rows.family[::2].to_numpy() == rows.family[1::2].to_numpy()).all()
    assert rows.equals(training.plan(204, seed=5))


def test_held_out_words_are_not_trained_with():
    trained = [d for d, kind in generate.DEFECT_TYPES.items() if kind.role == "train"]
    words = " ".join(sum(captions.all_states(trained), []))
    held_out = " ".join(sum(captions.HELD_OUT_SYNONYMS.values(), ()))
    assert not any(word in words for word in re.findall("[a-z]+", held_out))


def test_each_phrase_has_one_place():
    states = sum(captions.all_states(generate.DEFECT_TYPES), [])
    phrases = [*states, *captions.TEMPLATES]
    assert all(phrase.count("{}") == 1 and phrase == phrase.strip() for phrase in phrases)
    words = (*captions.OBJECT_WORDS, *captions.OTHER_NOUNS)
    assert len(set(words)) == len(words) and "" not in words
    assert captions.defect_phrases("crack")[:2] == ["cracked {}", "{} with a crack"]
    assert captions.fill("a photo of a {}.", "cracked {}", "tile") == "a photo of a cracked tile."


def test_captions_are_encoded_once_and_drawn_by_noun_and_state(tmp_path):
    asked = []

    def sentences(texts):
        asked.extend(texts)
        return torch.arange(len(asked) - len(texts), len(asked)).float()[:, None]

    bank = CaptionBank(sentences, tmp_path, 1)
    count = len(asked)
    assert count == sum(map(len, bank.nouns.values())) * sum(map(len, bank.states.values()))
    again = CaptionBank(sentences, tmp_path, 1)
    assert len(asked) == count and torch.equal(bank.embeddings, again.embeddings)
    rows, rng = training.plan(8, seed=1), np.random.default_rng(0)
    two, single = draw_text(rows, bank, rng, 3)
    assert two.shape == (8, 2, 3, 1) and single.shape == (8, 1)


@pytest.mark.parametrize("script", [training, evaluation])
def test_help(script, capsys):
    with pytest.raises(SystemExit, match="0"):
        script.main(["--help"])
    assert f"python -m {script.__name__}" in capsys.readouterr().out


def test_style_shift_moves_all_patches_of_an_image_alike():
    torch.manual_seed(0)
    x = torch.randn(8, 5, 6)
    moved = training.shift_style(x, 1.0) - x
    assert moved.abs().max() > 0.1
    assert torch.allclose(
        moved[:, 1:], moved[:, 1:2].expand(-1, 4, -1), atol=1e-6
    )  # every patch alike
    assert torch.equal(training.shift_style(x, 0.0), x)


def test_batches_mix_sizes_and_keep_pairs_together():
    found = training.batches_of([20, 10], 4, np.random.default_rng(0))
    assert [sum(n == number for n, _ in found) for number in (0, 1)] == [5, 2]
    assert all((ix[::2] + 1 == ix[1::2]).all() and (ix[::2] % 2 == 0).all() for _, ix in found)
    assert sorted(np.concatenate([ix for n, ix in found if n == 0])) == list(range(20))
    assert [n for n, _ in found] != sorted(n for n, _ in found)


def test_a_checkpoint_belongs_to_its_recipe_images_and_captions(monkeypatch, tmp_path):
    """After a change of the generator or of the words, no old heads come back."""
    rows, bank, used = training.plan(8, seed=1), SimpleNamespace(name="captions-1"), []
    monkeypatch.setattr(training, "prepare", lambda: ([(rows, None, None)], bank, tmp_path))
    monkeypatch.setattr(training, "fit", lambda *_, checkpoint, **__: used.append(checkpoint))
    monkeypatch.setattr(training, "save_heads", lambda *_: None)

    training.main(["--seeds", "2"])
    training.main([])
    assert used[0] == used[2] != used[1]
    for change in (
        lambda: monkeypatch.setattr(training, "VERSION", training.VERSION + 1),
        lambda: setattr(bank, "name", "captions-2"),
        lambda: rows.__setitem__("defect", "crack"),
        lambda: monkeypatch.setitem(training.RECIPE, "epochs", 9),
    ):
        change()
        training.main([])
        assert used[-1] not in used[:-1]


class FakeBank:
    """Random sentence embeddings instead of MiniLM's."""

    def __init__(self):
        self.defects = ["crack", "cut"]
        self.nouns = {f: np.array([0]) for f in (*generate.FAMILIES, "object", "other")}
        self.states = {
            k: np.arange(4) + 10 * i for i, k in enumerate(["good", "bad", *generate.DEFECT_TYPES])
        }
        self.table = F.normalize(
            torch.randn(1000, 384, generator=torch.Generator().manual_seed(0)), dim=-1
        )

    def __call__(self, noun, state, rng):
        return self.table[torch.as_tensor(np.asarray(noun) + np.asarray(state))]


def test_fit_learns_and_repeats_after_an_interruption(tmp_path):
    generator = torch.Generator().manual_seed(0)
    rows = training.plan(32, seed=1)
    rows.loc[rows.defect != "good", "defect"] = "crack"
    coverage = torch.zeros(32, 16)
    coverage[::2, :3] = 1.0
    x = torch.randn(32, 17, 1152, generator=generator)
    x[::2, 1:4] += 1.5  # defective patches look different
    larger = torch.cat([x, x[:, 1:]], 1)[:16]  # a second image size, with more patches
    groups = [(rows, x, coverage), (rows[:16], larger, torch.cat([coverage, coverage], 1)[:16])]
    recipe = {**training.RECIPE, "epochs": 4, "batch_size": 16}
    said = []

    def run(stop="never", checkpoint=None):
        def report(line, **options):
            said.append(line)
            if stop in line:
                raise KeyboardInterrupt

        return training.fit(groups, FakeBank(), recipe, 3, checkpoint, report).state_dict()

    whole = run()
    first, *_, last = (float(line.split("patch_focal ")[1].split()[0]) for line in said)
    assert last < first
    with pytest.raises(KeyboardInterrupt):
        run(stop="epoch 3/4", checkpoint=tmp_path / "c.pt")
    resumed = run(checkpoint=tmp_path / "c.pt")
    order = 1, 2, 3, 3, 4  # the third is not yet saved when it stops
    assert [line.split("/")[0] for line in said[4:]] == [f"seed 3 epoch {n}" for n in order]
    assert all(torch.equal(whole[k], v) for k, v in resumed.items())
