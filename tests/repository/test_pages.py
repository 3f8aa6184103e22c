"""The pages: links lead somewhere, commands and names exist, the README stays a door."""

import ast
import importlib
import importlib.util
import re
import shlex
import types

import nbformat
import publish
import pytest
import yaml
from fixtures import pages

README = (pages.ROOT / "README.md").read_text(encoding="utf-8")
TEXTS = {page.relative_to(pages.ROOT).as_posix(): page.read_text("utf-8") for page in pages.PAGES}
TO_BE_WRITTEN = {"vlmad_utils.methods.mean_distance"}  # by who follows CONTRIBUTING.md
WORKFLOWS = pages.ROOT / ".github" / "workflows"


def steps(name):
    """The commands of a workflow, in order."""
    jobs = yaml.safe_load((WORKFLOWS / f"{name}.yml").read_text(encoding="utf-8"))["jobs"]
    return [step["run"] for job in jobs.values() for step in job["steps"] if "run" in step]


def anchors(text):
    """Anchors of the headings, as the forge makes them."""
    headings = re.findall(r"(?m)^#+ (.+)$", text)
    return {re.sub(r"[^\w\- ]", "", h.lower()).replace(" ", "-") for h in headings}


@pytest.mark.parametrize("name", TEXTS)
def test_links_lead_to_files_and_headings(name):
    text = re.sub(r"``.*?``", "", TEXTS[name])  # code of docstrings
    for link in re.findall(r"\]\((?!https?://)([^)]+)\)", text):
        path, _, anchor = link.partition("#")
        target = (pages.ROOT / name).parent / path if path else pages.ROOT / name
        assert target.exists(), f"{name} links to {link}"
        assert not anchor or anchor in anchors(target.read_text("utf-8")), f"{name}: {link}"


@pytest.mark.parametrize("name", TEXTS)
def test_make_targets_and_modules_that_pages_name_exist(name):
    targets = re.findall(r"(?m)(?:^|`)make ([a-z]+)", TEXTS[name])
    assert set(targets) <= set(pages.recipes())
    if name == "CHANGELOG.md":  # it also names what was
        return
    modules = re.findall(
        r"(?<!/)python -m ((?:vlmad_utils|benchmarks|embedded_model)[\w.]*)", TEXTS[name]
    )
    modules += re.findall(r"`(vlmad_utils(?:\.[a-z_]+)+)`", TEXTS[name])
    for module in modules:
        parent, _, attribute = module.rpartition(".")
        assert importlib.util.find_spec(module) or hasattr(
            importlib.import_module(parent), attribute
        ), f"{name} names {module}"


@pytest.mark.parametrize("name", TEXTS)
def test_files_that_pages_name_exist(name):
    if name == "CHANGELOG.md":  # it also names what was
        return
    for path in re.findall(
        r"`((?:tests|docs|notebooks|vlmad_\w+|embedded_model)/[^`]+)`", TEXTS[name]
    ):
        if "NN_" not in path:
            assert (pages.ROOT / path).exists(), f"{name} names {path}"


def unknown_names(code):
    """Imports and attributes of our modules in a code block that do not exist."""
    held, unknown = {}, []
    tree = ast.parse(code)
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module.startswith("vlmad_utils"):
            module = importlib.import_module(node.module)
            for alias in node.names:
                if (
                    importlib.util.find_spec(f"{node.module}.{alias.name}")
                    if hasattr(module, "__path__")
                    else None
                ):
                    held[alias.name] = importlib.import_module(f"{node.module}.{alias.name}")
                elif hasattr(module, alias.name):
                    held[alias.name] = getattr(module, alias.name)
                else:
                    unknown.append(f"{node.module}.{alias.name}")
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            owner = held.get(node.value.id)
            if isinstance(owner, types.ModuleType) and not hasattr(owner, node.attr):
                unknown.append(f"{node.value.id}.{node.attr}")
    return unknown


@pytest.mark.parametrize("name", [name for name in TEXTS if "```python" in TEXTS[name]])
def test_code_on_pages_uses_names_that_exist(name):
    for block in pages.blocks(TEXTS[name], "python"):
        unknown = set(unknown_names(block)) - TO_BE_WRITTEN
        assert not unknown, f"{name}: {unknown}"


def test_the_check_of_code_sees_old_names():
    code = "from vlmad_utils import backbones, models\nmodels.open()"
    assert unknown_names(code) == ["vlmad_utils.backbones", "models.open"]


@pytest.mark.parametrize(
    "name, sets", [("README.md", ["mvtec", "visa"]), ("docs/performance.md", ["elpv"])]
)
def test_the_study_command_of_a_page_is_understood(name, sets, monkeypatch):
    from vlmad_utils.study import __main__ as command

    line = re.search(r"(?m)^python -m vlmad_utils\.study (.*)$", TEXTS[name])[1]
    asked = []
    monkeypatch.setattr(command, "collect", lambda *a: asked.append(a) or 1 / 0)
    with pytest.raises(ZeroDivisionError):  # options are read, then data
        command.main(shlex.split(line))
    assert asked[0][0] == sets


def parameters(path):
    """Names that the cell tagged parameters of a notebook sets."""
    cells = nbformat.read(path, as_version=4).cells
    (code,) = [c.source for c in cells if "parameters" in c.metadata.get("tags", [])]
    return {
        node.id
        for node in ast.walk(ast.parse(code))
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)
    }


def test_the_table_of_parameters_is_true():
    table = re.findall(r"(?m)^\| (\d\d)(?: to (\d\d))? \| (.*) \|$", TEXTS["data/README.md"])
    every, seen = {"MODEL", "PRETRAINED", "DATASET", "DATASETS", "SETS", "LIMITS", "FOLDER"}, 0
    for path in publish.notebooks():
        ((*_, cells),) = [row for row in table if row[0] <= path.name[:2] <= (row[1] or row[0])]
        named, held = set(re.findall(r"`([A-Z]+)`", cells)), parameters(path)
        assert named <= held and held & every <= named, path.name
        seen += 1
    assert seen >= len(table)
    assert "notebooks 00 and 10 to 60" in README  # which have MODEL


def test_the_table_of_folders_names_the_variables_that_are_read():
    code = "\n".join(p.read_text("utf-8") for p in (pages.ROOT / "vlmad_utils").rglob("*.py"))
    read = set(re.findall(r"""(?:_folder\(|environ(?:\.get\(|\[))"(VLMAD_\w+)\"""", code))
    table = pages.section("data/README.md", "Folders and variables")
    assert set(re.findall(r"(?m)^\| `(VLMAD_\w+)`", table)) == read


def test_the_readme_is_a_door():
    assert len(README.split()) < 1400
    headings = re.findall(r"(?m)^## (.*)$", README)
    assert headings == ["Two commands", "Notebooks", "Data and models", "More", "Citing"]


def test_the_readmes_commands_are_targets_and_ci_runs_the_one_that_tests():
    first = pages.blocks(pages.section("README.md", "Two commands"), "bash")[0]
    commands = [line.split("#")[0].strip() for line in first.splitlines()]
    assert [command.split()[0] for command in commands] == ["make", "make"]
    ci = (pages.ROOT / ".ci" / "run").read_text(encoding="utf-8").splitlines()
    assert [line for line in ci if line.startswith("make")] == [commands[-1]] == ["make test"]


def test_commands_without_make_are_those_of_the_makefile():
    makefile = (pages.ROOT / "Makefile").read_text(encoding="utf-8")
    options = re.search(r"--nbmake --nbmake-timeout=\d+", makefile)[0]
    plain = pages.blocks(pages.section("README.md", "Two commands"), "bash")[1]
    assert "\n" + pages.recipes()["data"][0] + "\n" in plain
    assert "--ignore=notebooks/solutions" in pages.recipes()["figures"][0]
    assert f"\npytest {options} --ignore=notebooks/solutions notebooks\n" in plain
    assert "pytest tests" in plain
    assert pages.recipes()["test"][0].startswith("python -m pytest") and pages.recipes()["test"][
        0
    ].endswith("tests")


def test_each_push_runs_what_make_check_runs():
    commands = pages.recipes()
    assert steps("check")[1:] == [*commands["data"], *commands["check"]]
    job = yaml.safe_load((WORKFLOWS / "check.yml").read_text(encoding="utf-8"))["jobs"]["check"]
    systems = [name.split("-")[0] for name in job["strategy"]["matrix"]["os"]]
    assert systems == ["ubuntu", "macos", "windows"]
    assert job["strategy"]["matrix"]["python"] == ["3.11", "3.x"]


def test_once_a_week_all_tests_run():
    text = yaml.safe_load((WORKFLOWS / "test.yml").read_text(encoding="utf-8"))
    assert steps("test") == ["make test"]
    (when,) = text[True]["schedule"]  # YAML 1.1 reads the key "on" as true
    assert re.fullmatch(r"\d+ \d+ \* \* [0-6]", when["cron"])


def test_hooks_are_quick_and_those_of_make_check():
    config = yaml.safe_load((pages.ROOT / ".pre-commit-config.yaml").read_text(encoding="utf-8"))
    hooks = [hook for repo in config["repos"] for hook in repo["hooks"]]
    entries = [hook["entry"].removeprefix(".venv/bin/") for hook in hooks]
    for command in pages.recipes()["check"][:-1]:  # all but the tests
        assert any(entry.startswith(command) for entry in entries), command
    assert "python docs/architecture.py" in entries and not any("pytest" in e for e in entries)
