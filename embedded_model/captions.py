"""The words of the embedded model's training: states, materials, templates, and captions of them.

The three words in HELD_OUT_SYNONYMS never occur in training: they test whether the text side
generalises.
"""

import itertools
from collections.abc import Iterable, Mapping
from types import MappingProxyType

from vlmad_procedural import DEFECT_TYPES, FAMILIES


def _phrases(text: str) -> tuple[str, ...]:
    """Split phrases at the bars between them."""
    return tuple(phrase.strip() for phrase in text.split("|"))


HELD_OUT_SYNONYMS: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {"normal": ("pristine {}",), "anomalous": ("ruined {}", "marred {}")}
)
NORMAL_STATES = _phrases(
    """
    {} | normal {} | flawless {} | perfect {} | unblemished {} | {} without flaw |
    {} without defect | {} without damage | good {} | intact {} | undamaged {} | clean {} |
    spotless {} | defect-free {} | faultless {} | {} in perfect condition |
    {} with no visible defects | {} that passed inspection | new {} | healthy {} | regular {} |
    {} with a uniform surface | {} as it should be | unbroken {} | immaculate {} |
    {} free of defects | {} of good quality | acceptable {} | {} with nothing wrong | fine {} |
    ordinary {} | unharmed {} | unspoiled {} | {} in mint condition | {} in order
    """
)
ANOMALOUS_STATES = _phrases(
    """
    damaged {} | broken {} | defective {} | {} with flaw | {} with defect | {} with damage |
    anomalous {} | abnormal {} | faulty {} | flawed {} | {} with a visible fault | imperfect {} |
    blemished {} | bad {} | {} with an anomaly | {} that failed inspection | spoiled {} |
    impaired {} | {} in bad condition | {} with something wrong | rejected {} |
    {} of poor quality | {} with an irregularity | injured {} | {} with a local defect |
    deteriorated {} | {} with surface damage | disfigured {} | {} with a blemish | wrecked {} |
    unacceptable {} | harmed {} | {} that is not normal | corrupted {} | {} out of order
    """
)
TEMPLATES = _phrases(
    """
    {} | a photo of a {}. | a photo of the {}. | a close-up photo of a {}. |
    a cropped photo of the {}. | a bright photo of a {}. | a dark photo of the {}. |
    a blurry photo of a {}. | a photo of the small {}. | a photo of a large {}. |
    a photo of a {} for visual inspection. | a photo of the {} for anomaly detection. |
    an image of a {}. | a picture of one {}. | this is a {}. | an industrial photo of a {}. |
    a grey-scale photo of the {}. | a macro photo of the {}.
    """
)
OBJECT_WORDS = _phrases(
    """
    object | surface | part | product | item | material | workpiece | component | sample |
    texture
    """
)
# nouns of no training image: the state must be read from the text whatever the noun
OTHER_NOUNS = _phrases(
    """
    solar cell | textile | cookie | ball screw | printed circuit board | hazelnut | pill |
    transistor | candle | cashew | macaroni | toothbrush | steel sheet | rail | casting | fabric |
    engine | wafer | lens | tyre | wheel | door | pipe | chip | pump | magnet | glass | plate |
    tube | bracket
    """
)


def nouns(family: str) -> list[str]:
    """Return the English nouns of a procedural family, the first being its object name."""
    return list(FAMILIES[family].nouns)


def _with_place(words: str) -> str:
    if "{}" in words:
        return words
    after = words.startswith(("with", "without", "that", "in ", "of "))
    return "{} " + words if after else words + " {}"


def defect_phrases(defect: str) -> list[str]:
    """Return the phrases of a defect with a place for the noun: "cracked {}", "{} with a crack"."""
    return [_with_place(words) for words in DEFECT_TYPES[defect].words]


def fill(template: str, state: str, noun: str) -> str:
    """Put a noun into a state and the state into a template."""
    return template.format(state.format(noun))


def all_states(defects: Iterable[str] = ()) -> tuple[list[str], list[str]]:
    """Return (normal, anomalous) state phrases; those of the named defects are anomalous ones."""
    named = itertools.chain.from_iterable(map(defect_phrases, defects))
    return list(NORMAL_STATES), [*ANOMALOUS_STATES, *named]
