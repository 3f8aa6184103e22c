"""NaN in features never becomes a score."""

import pytest
import torch
from fixtures import tiny

from vlmad_utils.features import Arrays
from vlmad_utils.methods import april_gan
from vlmad_utils.study import registry

METHODS = {
    "CLIP-AC": lambda m: registry.clip_ac_method(m),
    "dense patches": lambda m: registry.dense(m),
    "WinCLIP": lambda m: registry.winclip_method(m),
    "memory bank": lambda m: registry.memory_bank_method((2, 4)),
    "APRIL-GAN": lambda m: registry.april_gan_method(
        m, april_gan.LinearLayers((2, 4), m.width, m.dim)
    ),
    "AnomalyCLIP": lambda m: registry.anomalyclip_method(m, torch.eye(2, m.dim)),
}


@pytest.mark.parametrize("where", ["test", "reference"])
@pytest.mark.parametrize("name", METHODS)
def test_nan_in_features_never_becomes_a_score(name, where):
    method = METHODS[name](tiny.model())
    if where == "reference" and not method.takes(1):
        where = "test"
    sick = tiny.encoded(where)
    sick = Arrays(
        *(x.clone() if torch.is_tensor(x) else x for x in (sick.image, sick.grid, sick.patches)),
        {b: x.clone() for b, x in sick.tokens.items()},
        {k: x.clone() for k, x in sick.windows.items()},
    )
    for values in (sick.image, sick.patches, *sick.tokens.values(), *sick.windows.values()):
        values[0, ..., 0] = torch.nan
    test, reference = (
        sick if where == kind else tiny.encoded(kind) for kind in ("test", "reference")
    )
    text = torch.eye(2, tiny.model().dim)
    for k in (0, 1):
        if method.takes(k) and (k or where == "test"):
            with pytest.raises(ValueError, match="not finite"):
                method.score(test, reference if k else None, text)
