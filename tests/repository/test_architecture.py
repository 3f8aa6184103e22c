"""The rooms: docs/architecture.md says what the imports say, and the imports keep the rules."""

import ast
import importlib
import re
from graphlib import CycleError, TopologicalSorter

import architecture
import pytest
from fixtures import pages, tiny

from vlmad_utils import models

ORDER = list(architecture.ROOMS)
MODULES = architecture.modules()
LIBRARY = sorted(
    name for name in MODULES if name.split(".")[0] in ("vlmad_utils", "vlmad_procedural")
)
MUTATORS = set(
    "add append appendleft clear discard extend insert move_to_end pop popitem popleft remove "
    "setdefault update".split()
)
FILLED_ON_IMPORT = {"vlmad_procedural.objects_kit": {"FAMILIES", "NOUNS"}}  # by a decorator


def test_the_page_says_what_the_imports_say():
    text = architecture.PAGE.read_text(encoding="utf-8")
    assert architecture.page() == text, "run python docs/architecture.py"


def test_the_functions_that_the_page_draws_exist():
    drawn = architecture.PAGE.read_text(encoding="utf-8").split("```")[1]
    names = re.findall(r"--([a-z_]+)\.([a-z_]+)-->", drawn)
    assert len(names) == 6
    for module, function in names:
        room = "methods." + module if module == "clip_ac" else module
        assert callable(getattr(importlib.import_module(f"vlmad_utils.{room}"), function))


def test_the_code_of_the_page_runs_and_has_the_shapes_that_it_says(monkeypatch, tmp_path):
    """On the tiny tower, so that it takes no weights; drawn images go to a folder of their own."""
    monkeypatch.setenv("VLMAD_RAW", str(tmp_path))
    monkeypatch.setattr(models, "load", lambda name: tiny.model())
    (code,), found = pages.blocks(architecture.PAGE.read_text("utf-8"), "python"), {}
    exec(code, found)
    n, side = tiny.model().grid[0] ** 2, tiny.model().grid[0]
    dim = tiny.model().dim
    assert (len(found["index"]), len(found["test"])) == (24, 8)
    encoded, scores = found["encoded"], found["scores"]
    assert encoded.image.shape == (8, dim) and encoded.patches.shape == (8, n, dim)
    assert found["prototypes"].shape == (2, dim)
    assert scores.image.shape == (8,) and scores.maps.shape == (8, side, side)
    assert found["maps"].shape == found["masks"].shape == (8, 224, 224)
    assert 0 <= found["values"]["pixel_auroc"] <= 1


def test_every_room_is_known_and_there():
    rooms = {architecture.room(name) for name in MODULES if "." in name} - {*architecture.PACKAGES}
    assert rooms == set(ORDER)


def test_arrows_between_rooms_run_down_only():
    for one, other in sorted(architecture.arrows()):
        if one in ORDER and other in ORDER:
            assert ORDER.index(other) < ORDER.index(one), f"{one} imports {other}"
        elif one in ORDER:
            assert other in ("vlmad_procedural", "vlmad_utils"), f"{one} imports {other}"


@pytest.mark.parametrize(
    "room, forbidden",
    [
        ("vlmad_procedural", {"vlmad_utils", *ORDER}),
        ("evaluation", {"data", "models", "features", "methods", "study", "report"}),
        ("report", {"study", "methods", "models", "features"}),
        ("models", {"features", "methods"}),
        ("methods", {"data", "study", "report"}),
    ],
)
def test_a_room_knows_nothing_of(room, forbidden):
    assert not forbidden & {other for one, other in architecture.arrows() if one == room}


@pytest.mark.parametrize("room", ["methods", "evaluation", "models", "features"])
def test_plots_and_pandas_stay_out_of(room):
    unwanted = {"matplotlib", "seaborn"} | (
        {"pandas"} if room in ("methods", "evaluation") else set()
    )
    assert not unwanted & architecture.libraries()[room]


def test_no_circle_between_modules():
    try:
        list(TopologicalSorter(architecture.imports()).static_order())
    except CycleError as error:
        pytest.fail("modules import each other: " + " -> ".join(error.args[1]))


def functions(tree):
    return [n for n in ast.walk(tree) if isinstance(n, (ast.FunctionDef, ast.AsyncFunctionDef))]


def global_names(tree):
    """Names that the statements of a module assign."""
    return {
        node.id
        for statement in tree.body
        if isinstance(statement, (ast.Assign, ast.AnnAssign, ast.AugAssign))
        for node in ast.walk(statement)
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)
    }


def local_names(function):
    stored = {
        n.id for n in ast.walk(function) if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Store)
    }
    return stored | {n.arg for n in ast.walk(function) if isinstance(n, ast.arg)}


def changes(tree):
    """What functions change in module-level names: (name, line) each."""
    found, known = set(), global_names(tree)
    for function in functions(tree):
        held = known - local_names(function)
        for node in ast.walk(function):
            target = None
            if isinstance(node, ast.Global):
                found |= {(name, node.lineno) for name in node.names}
            elif isinstance(node, (ast.Subscript, ast.Attribute)):
                target = None if isinstance(node.ctx, ast.Load) else node.value
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
                target = node.func.value if node.func.attr in MUTATORS else None
            if isinstance(target, ast.Name) and target.id in held:
                found.add((target.id, node.lineno))
    return found


def effects(tree):
    """What runs on import and is neither definition nor constant: calls, patches."""
    found = set()
    for statement in tree.body:
        if isinstance(statement, ast.If) and "__main__" not in ast.unparse(statement.test):
            found |= effects(statement)
        elif isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Call):
            found.add(ast.unparse(statement.value.func))
        elif isinstance(statement, (ast.Assign, ast.AugAssign)):
            targets = getattr(statement, "targets", None) or [statement.target]
            found |= {ast.unparse(t) for t in targets if isinstance(t, ast.Attribute)}
    return found


@pytest.mark.parametrize("name", LIBRARY)
def test_no_module_keeps_state_that_changes(name):
    found = changes(ast.parse(MODULES[name].read_text(encoding="utf-8")))
    found = {(key, line) for key, line in found if key not in FILLED_ON_IMPORT.get(name, ())}
    assert not found, f"{name} changes module-level names (name, line): {sorted(found)}"


@pytest.mark.parametrize("name", LIBRARY)
def test_importing_a_module_changes_nothing_elsewhere(name):
    found = effects(ast.parse(MODULES[name].read_text(encoding="utf-8")))
    assert not found, f"importing {name} runs {sorted(found)}"


@pytest.mark.parametrize(
    "text",
    [
        "K = {}\ndef f(x):\n    K[x] = 1",
        "K = set()\ndef f(x):\n    K.add(x)",
        "n = 0\ndef f():\n    global n\n    n += 1",
        "class C:\n    pass\nK = C()\nclass D:\n    def f(self):\n        K.x = 1",
        "K: dict = dict()\ndef f(x):\n    del K[x]",
    ],
)
def test_the_check_of_state_sees_what_changes(text):
    assert changes(ast.parse(text))


@pytest.mark.parametrize(
    "text",
    ["K = {1: 2}\ndef f(x):\n    return K[x]", "K = {}\ndef f(x):\n    K = {}\n    K[x] = 1"],
)
def test_the_check_of_state_passes_constants_and_local_names(text):
    assert not changes(ast.parse(text))


def test_the_check_of_imports_sees_calls_and_patches():
    text = "import a\na.b = 1\na.register(2)\nx = a.c()\nif x:\n    a.d()"
    assert effects(ast.parse(text)) == {"a.b", "a.register", "a.d"}
