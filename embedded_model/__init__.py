"""What makes and measures the embedded model: captions, training, evaluation, card."""

from pathlib import Path

RECORDS = Path(__file__).resolve().parents[1] / "data" / "embedded"  # its card and evaluation
