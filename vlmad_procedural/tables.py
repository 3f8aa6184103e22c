"""The products and defects of the generator: their roles, words for prompts, and what suits what.

Roles "train" and "eval" share neither a product nor a defect.
"""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Literal, NamedTuple

from .aliases import Range
from .objects import EVAL_OBJECTS, OBJECTS
from .textures import TEXTURES
from .textures_eval import EVAL_TEXTURES

Role = Literal["train", "eval"]


class Family(NamedTuple):
    """A product: ``domain``, ``role`` and ``nouns`` for prompts, the first being its name."""

    domain: Literal["textures", "objects"]
    role: Role
    nouns: tuple[str, ...]


class Defect(NamedTuple):
    """A defect: ``role``, ``words`` for prompts ("a {noun} {words}"), usual ``area`` as a share."""

    role: Role
    words: tuple[str, ...]
    area: Range


_TEXTURE_NOUNS = {
    "carpet": ("carpet", "rug", "carpet pile"),
    "grid": ("grid", "lattice", "metal grid"),
    "corduroy": ("corduroy", "ribbed fabric"),
    "knit": ("knitwear", "knitted fabric", "jersey"),
    "perforated_sheet": ("perforated sheet", "perforated metal", "punched plate"),
    "printed_pattern": ("printed pattern", "printed fabric", "wrapping paper"),
    "circuit_pattern": ("printed circuit board", "circuit board", "circuit pattern"),
    "tread_plate": ("tread plate", "checker plate", "embossed sheet"),
    "granules": ("granules", "pellets", "beads"),
    "die_grid": ("wafer", "chip array", "module grid"),
    "stone": ("stone", "granite", "marble"),
    "paper": ("paper", "cardboard"),
    "concrete": ("concrete", "cement surface"),
    "terrazzo": ("terrazzo", "terrazzo floor"),
    "polycrystal": ("solar cell", "polycrystalline plate", "crystalline wafer"),
    "barred_plate": ("solar cell", "plate with bars", "silicon wafer"),
    "felt": ("felt", "nonwoven fabric"),
    "cork": ("cork", "cork board", "chipboard"),
    "foam": ("foam", "sponge"),
    "plaster": ("plaster", "plastered wall"),
    "cast_metal": ("cast metal", "steel surface", "iron casting"),
    "hammered_metal": ("hammered metal", "hammered sheet"),
    "ceramic_glaze": ("ceramic glaze", "glazed ceramic", "enamel"),
    "asphalt": ("asphalt", "road surface", "sandpaper"),
    "bread_crust": ("bread crust", "biscuit", "baked crust"),
    "fur": ("fur", "bristles", "fibres"),
    "plastic": ("plastic", "plastic surface", "plastic sheet"),
    "gradient": ("surface", "sheet", "film"),
    "photo": ("surface", "object", "image"),
    "weave": ("woven fabric", "cloth"),
    "leather": ("leather", "hide"),
    "wood": ("wood", "wooden board"),
    "tile": ("tile", "tiled wall"),
    "mesh": ("wire mesh", "netting"),
    "brushed_metal": ("brushed metal", "brushed steel"),
}


def _families() -> dict[str, Family]:
    found = {}
    for name in TEXTURES:
        role: Role = "eval" if name in EVAL_TEXTURES else "train"
        found[name] = Family("textures", role, _TEXTURE_NOUNS[name])
    for name, drawer in OBJECTS.items():
        role = "eval" if name in EVAL_OBJECTS else "train"
        found[name] = Family("objects", role, drawer.nouns)
    return found


def _defects(role: Role, table: str) -> dict[str, Defect]:
    found = {}
    for line in table.strip().splitlines():
        name, low, high, words = line.split(maxsplit=3)
        phrases = tuple(phrase.strip() for phrase in words.split(","))
        found[name] = Defect(role, phrases, (float(low), float(high)))
    return found


FAMILIES: Mapping[str, Family] = MappingProxyType(_families())

# name, lowest and highest usual area, phrases
_TRAIN = """
crack             0.001  0.015 cracked, with a crack, with a fracture, with fine cracks
cut               0.0015 0.02  cut, with a cut, with a slit, slashed
contamination     0.001  0.04  contaminated, with contamination, with dirt particles, with dust
foreign_patch     0.003  0.08  with a foreign object, with a foreign piece on it, \
                               with a patch of another material
discolouration    0.003  0.1   discoloured, with a discoloured area, with wrong colour, \
                               with a colour fault
burn              0.002  0.08  burnt, with a burn mark, scorched, charred
pit               0.001  0.03  pitted, with pits, with pores, with corrosion pits
chip              0.002  0.06  chipped, with a chip, with a piece broken off, with a broken edge
smear             0.004  0.1   smeared, with a smear, with smudges, with oil on it
fold              0.004  0.05  folded, with a wrinkle, with a crease, with a fold
displaced_texture 0.006  0.1   with a distorted pattern, with a structural defect, \
                               with a displaced area, misaligned
dark_region       0.01   0.25  with a dark region, with a dark area, with uneven brightness, \
                               with an inactive area
blur_patch        0.006  0.1   worn, with a worn area, with a blurred area, with missing texture
erosion           0.002  0.06  eroded, with missing structure, with broken lines, \
                               with an open or a short
ink_mark          0.002  0.03  with an ink mark, with a pen mark, scribbled on, with a marker line
missing_part      0.0    1.0   with a missing part, incomplete, with a component missing
"""
_EVAL = """
scratch           0.001  0.012 scratched, with a scratch, with scratches
hole              0.002  0.03  with a hole, perforated, punctured
stain             0.004  0.06  stained, with a stain, with a spot
thread            0.002  0.015 with a loose thread, with a hair on it, with a fibre on it
dent              0.004  0.05  dented, with a dent, with a bump
misplaced_part    0.0    1.0   with a misplaced part, misassembled, with a part in the wrong place
"""
DEFECT_TYPES: Mapping[str, Defect] = MappingProxyType(
    _defects("train", _TRAIN) | _defects("eval", _EVAL)
)
PART_FAULTS = ("missing_part", "misplaced_part")  # drawn by the object itself

# these say nothing on a surface without texture
_NO_STRUCTURE = {"displaced_texture", "blur_patch", "erosion"}
# shifts do not show on these
_RANDOM = "stone concrete terrazzo cork felt plaster foam cast_metal".split()
_WITHOUT = MappingProxyType(
    {
        **dict.fromkeys(("gradient", "plastic", "ceramic_glaze"), _NO_STRUCTURE),
        **dict.fromkeys(_RANDOM, {"displaced_texture"}),
        "granules": {"displaced_texture", "cut", "fold", "chip"},
        "asphalt": {"displaced_texture", "fold"},
        "fur": {"crack", "pit", "chip"},
        "weave": {"scratch", "dent"},
        "mesh": {"scratch", "dent"},
        "tile": {"dent"},
    }
)


def defects_of(family: str, role: Role | None = None) -> tuple[str, ...]:
    """Return the defects that make sense on ``family`` and have ``role`` (default: its own)."""
    role = role or FAMILIES[family].role
    barred = _WITHOUT.get(family, set()) | (set() if family in OBJECTS else set(PART_FAULTS))
    return tuple(
        name for name, defect in DEFECT_TYPES.items() if defect.role == role and name not in barred
    )
