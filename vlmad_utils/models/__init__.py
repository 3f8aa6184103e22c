"""Towers, their windows, and the text prototypes that they make of prompts."""

from .backbone import Backbone
from .dense import DPAM
from .loading import load
from .openclip import OpenClip
from .prompts import prototypes
from .windows import window_indices

__all__ = ["DPAM", "Backbone", "OpenClip", "load", "prototypes", "window_indices"]
