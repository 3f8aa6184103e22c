"""The model card is what the evaluation gives."""

from types import SimpleNamespace

import pandas as pd
import pytest

from embedded_model import RECORDS, evaluation
from embedded_model.card import card
from vlmad_utils.models.embedded import load_heads


def test_the_card_says_what_the_evaluation_and_the_recipe_say():
    heads, facts = load_heads()
    frame = pd.read_csv(RECORDS / "evaluation.csv")
    models = [SimpleNamespace(heads=heads)] * frame.seed.nunique()
    assert card(frame, models, facts) == (RECORDS / "README.md").read_text(encoding="utf-8")


def test_another_table_gets_a_card_of_its_own(tmp_path, monkeypatch, capsys):
    assert evaluation.card_path(RECORDS / "evaluation.csv") == RECORDS / "README.md"
    with pytest.raises(ValueError, match="name of a card"):
        evaluation.card_path(tmp_path / "own.md")
    monkeypatch.setattr(evaluation, "FAMILIES", {})
    monkeypatch.setattr(evaluation.dinov2, "load_tower", lambda: None)
    monkeypatch.setattr(evaluation.fetch, "fetch", lambda names: {"minilm": None})
    for name in ("MiniLM", "Embedded"):
        monkeypatch.setattr(evaluation, name, lambda *_: None)
    monkeypatch.setattr(evaluation, "_sets", lambda folders: [None])
    rows = pd.read_csv(RECORDS / "evaluation.csv").to_dict("records")
    monkeypatch.setattr(evaluation, "evaluate", lambda *_: rows)
    monkeypatch.setattr(evaluation, "noun_retrieval", lambda *_: ([0.5], 0.1))
    monkeypatch.setattr(evaluation, "card", lambda *_: "the card")
    (tmp_path / "README.md").write_text("mine")
    evaluation.main(["--out", str(tmp_path / "own.csv")])
    assert (tmp_path / "README.md").read_text() == "mine"
    assert (tmp_path / "own.md").read_text() == "the card"
    assert len(pd.read_csv(tmp_path / "own.csv")) == 2 * len(rows) + 1
