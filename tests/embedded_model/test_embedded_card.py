"""The model card is what the evaluation gives."""

from types import SimpleNamespace

import pandas as pd

from embedded_model import RECORDS
from embedded_model.card import card
from vlmad_utils.models.embedded import load_heads


def test_the_card_says_what_the_evaluation_and_the_recipe_say():
    heads, facts = load_heads()
    frame = pd.read_csv(RECORDS / "evaluation.csv")
    models = [SimpleNamespace(heads=heads)] * frame.seed.nunique()
    assert card(frame, models, facts) == (RECORDS / "README.md").read_text(encoding="utf-8")
