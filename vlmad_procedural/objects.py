"""Registry of the procedural objects with assembly faults.

`OBJECTS[name](style, rng, size, fault=None) -> (image, support, fault_mask)`; see `objects_kit.family`.
The modules imported here register their families; those in `objects_eval` are never trained on.
"""

from . import objects_electric, objects_eval, objects_goods, objects_machined  # noqa: F401
from .objects_kit import FAMILIES, FAULTS, NOUNS

__all__ = ["EVAL_OBJECTS", "FAULTS", "OBJECTS", "OBJECT_NOUNS"]

OBJECTS = FAMILIES
OBJECT_NOUNS = NOUNS
EVAL_OBJECTS = ("capsule", "nut", "bottle", "screw")
