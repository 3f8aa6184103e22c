"""A study of too few images, or of one class only."""

import numpy as np
import pytest
from fixtures.cases import cases, parts, run

from vlmad_utils.data import DataError


@cases(
    (
        "no normal image at all",
        0,
        4,
        (1,),
        DataError,
        "1 references wanted, but folder/parts has 0 normal train images",
    ),
    (
        "k_shot larger than there is",
        4,
        2,
        (0, 8),
        DataError,
        "8 references wanted, but folder/parts has 2 normal train images",
    ),
    (
        "k_shot below 0",
        4,
        2,
        (-1,),
        ValueError,
        "shots are numbers of references, 0 or more, found -1",
    ),
)
def test_references_that_are_not_there_stop_a_study_before_it_encodes(tmp_path, case):
    good, bad, shots, kind, words = case
    with pytest.raises(kind, match=words):
        run(parts(tmp_path, good, bad), tmp_path / "store", shots)
    assert not (tmp_path / "store").exists()


def test_one_class_only_is_nan_with_a_warning_and_is_never_a_number(tmp_path):
    index = parts(tmp_path, 0, 4)
    with pytest.warns(UserWarning, match="AUROC is undefined.*nothing is normal"):
        rows = run(index, None, (0,)).rows.set_index("metric")
    assert np.isnan(rows.loc["image_auroc", "value"]) and rows.loc["image_ap", "chance"] == 1
    normal = parts(tmp_path / "n", 4, 0)
    with pytest.warns(UserWarning, match="nothing is anomalous"):
        assert (
            run(normal, None, (0,))
            .rows.set_index("metric")
            .loc[["image_auroc", "image_ap"], "value"]
            .isna()
            .all()
        )
