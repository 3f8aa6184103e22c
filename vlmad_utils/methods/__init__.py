"""One module per paradigm, each a set of functions from encoded features to :class:`Scores`.

Letters: B images, N patches, C tower width, D joint embedding, W windows, K references, h x w
patch grid. Prototypes are (2, D): row 0 normal, row 1 anomalous. Higher is more anomalous.

Methods compute on the device of the features, in their float32 or float64, and their scores stay
there until :meth:`Scores.cpu`. Prototypes, references, layers and masks may lie elsewhere; they
are brought there. NumPy arrays are accepted. Half precision is widened to float32 first.
"""

from .scores import Scores, anomaly_probability, batches, smooth, tensor, unit, upsample

__all__ = ["Scores", "anomaly_probability", "batches", "smooth", "tensor", "unit", "upsample"]
