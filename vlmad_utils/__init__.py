"""Thin package behind the VLM Anomaly Detection Notebooks. See README.md and the module docstrings."""

__version__ = "0.1.0"
