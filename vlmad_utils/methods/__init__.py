"""One module per paradigm, each a set of functions from encoded features to :class:`Scores`.

Letters: B images, N patches, C tower width, D joint embedding, W windows, K references, h x w
patch grid. Prototypes are (2, D): row 0 normal, row 1 anomalous. Everything is a float32 torch
tensor on the CPU; NumPy arrays are accepted. Higher is more anomalous.
"""

from .scores import Scores, anomaly_probability, batches, smooth, tensor, unit, upsample

__all__ = ["Scores", "anomaly_probability", "batches", "smooth", "tensor", "unit", "upsample"]
