"""All procedural objects with defects of assembly, read-only: ``OBJECTS[name]`` draws one."""

from collections.abc import Mapping
from types import MappingProxyType

from .objects_electric import ELECTRIC
from .objects_eval import EVAL
from .objects_goods import GOODS
from .objects_kit import FAULTS, ObjectFamily
from .objects_machined import MACHINED

__all__ = ["EVAL_OBJECTS", "FAULTS", "OBJECTS"]

# in this order, which the plan of the embedded model's training follows
OBJECTS: Mapping[str, ObjectFamily] = MappingProxyType(
    {family.name: family for family in (*ELECTRIC, *EVAL, *GOODS, *MACHINED)}
)
EVAL_OBJECTS = tuple(family.name for family in EVAL)  # never trained on
