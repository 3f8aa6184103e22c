"""Encode once, score many: features of images, kept where every notebook and method reads them."""

from .arrays import Arrays, Features
from .encoding import disk_need, encode, keys

__all__ = ["Arrays", "Features", "disk_need", "encode", "keys"]
