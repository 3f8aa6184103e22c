"""Figures, tables and the inspection sheet; nothing here knows how scores were made."""

from .figures import contact_sheet, metric_bars, overlay, score_strip
from .saving import save_figure
from .sheet import contact_sheet_html, heat_over_image
from .style import ANOMALOUS, COLUMN, HEAT, METHODS, NORMAL, PAGE, STYLE
from .tables import load_table, published, quote, save_table

__all__ = [
    "ANOMALOUS",
    "COLUMN",
    "HEAT",
    "METHODS",
    "NORMAL",
    "PAGE",
    "STYLE",
    "contact_sheet",
    "contact_sheet_html",
    "heat_over_image",
    "load_table",
    "metric_bars",
    "overlay",
    "published",
    "quote",
    "save_figure",
    "save_table",
    "score_strip",
]
