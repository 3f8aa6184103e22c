"""Thin package behind the VLM Anomaly Detection Notebooks. See README.md and the module docstrings."""

import warnings

__version__ = "0.1.0"

# Model libraries import tqdm.auto, which complains in notebooks without ipywidgets and prints a machine's path. Plain text
# bars are what we want: widget bars do not render on the forge.
warnings.filterwarnings("ignore", message="IProgress not found")
