"""Thin package behind the VLM Anomaly Detection Notebooks. See README.md and the docstrings."""

import warnings

# Model libraries import tqdm.auto. In a notebook without ipywidgets its first import prints a
# warning with a machine's path. Plain text bars are what we want: sites do not show widget bars.
# So import it here, with that one warning off; no filter is left behind.
with warnings.catch_warnings():
    warnings.filterwarnings("ignore", "IProgress not found")
    import tqdm.auto  # noqa: F401

__version__ = "0.2.0"  # read by pyproject.toml, too
