"""The evaluation room works on arrays alone: it needs no table, no plot and no model."""

import ast
import sys
from pathlib import Path

import pytest

from vlmad_utils import evaluation

MODULES = sorted(Path(evaluation.__file__).parent.glob("*.py"))


def imports(path):
    """Names of imported packages, with a leading dot for modules of the room."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name.split(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield "." * node.level + (node.module or "").split(".")[0]


@pytest.mark.parametrize("path", MODULES, ids=lambda path: path.stem)
def test_only_array_packages_are_imported(path):
    allowed = {"numpy", "scipy", "sklearn"} | {f".{module.stem}" for module in MODULES}
    assert set(imports(path)) <= allowed | sys.stdlib_module_names


def test_modules_of_the_room_import_in_one_direction():
    order = ["ranking", "metrics", "draws", "intervals", "thresholds", "__init__"]
    assert sorted(order) == [path.stem for path in MODULES]
    for path in MODULES:
        below = {f".{name}" for name in order[: order.index(path.stem)]}
        assert {name for name in imports(path) if name.startswith(".")} <= below
