"""The program that puts small faults into the package, and tells which of them no test sees."""

import pytest
from benchmarks.reliability.faults import faults_of
from benchmarks.reliability.mutants import run_tests
from benchmarks.reliability.reach import IMPORTED, Reach

SOURCE = """
LIMIT = 3
def bounded(value: int | str, check) -> int | float:
    check(value)
    if value < LIMIT and not value.odd:
        return -value.clamp(min=1)
    return value + 0.5
"""


def test_every_change_is_one_change_of_its_line():
    found = {(fault.line, fault.what.split(" -> ")[1]) for fault in faults_of(SOURCE)}
    assert found == {
        (2, "4"),
        (4, "None"),
        (5, "value < LIMIT or not value.odd"),
        (5, "value <= LIMIT"),
        (5, "not not value.odd"),
        (5, "if not (value < LIMIT and (not value.odd)):\n    return -value.clamp(min=1)"),
        (6, "+value.clamp(min=1)"),
        (6, "value.abs"),
        (6, "2"),
        (7, "value - 0.5"),
        (7, "1.5"),
    }
    for fault in faults_of(SOURCE):
        compile(fault.source, "fault", "exec")


def test_a_fault_is_shown_to_the_tests_that_execute_it():
    lines = {"a.py": {"1": [IMPORTED], "5": ["slow", "quick"], "6": ["slow"]}}
    names = "tests/test_public_api.py::test_names"
    reach = Reach(lines, {"slow": 2.0, "quick": 0.1, "other": 1.0, names: 0.5})
    assert reach.of("a.py", [5]) == ["quick", "slow"]
    assert reach.of("a.py", [5], seconds=1.0) == ["quick"]
    assert reach.of("a.py", [6]) == ["slow"]
    assert reach.of("a.py", [7]) == reach.of("b.py", [5]) == []
    assert reach.of("a.py", [1, 6]) == ["quick", names, "slow"]


@pytest.mark.parametrize(
    ("returned", "status"), [("3", "survived"), ("4", "killed"), ("bounded()", "killed")]
)
def test_a_fault_is_seen_or_is_not(tmp_path, monkeypatch, returned, status):
    for folder in ("pixcontrast", "tests"):
        (tmp_path / folder).mkdir()
    source = tmp_path / "pixcontrast" / "bounds.py"
    source.write_text("def bounded():\n    return 3\n")
    (tmp_path / "tests" / "test_it.py").write_text(
        "from pathlib import Path\n"
        "def test_it():\n"
        "    names = {}\n"
        "    exec(Path('pixcontrast/bounds.py').read_text(), names)\n"
        "    assert names['bounded']() == 3\n"
        "def test_not_chosen():\n"
        "    assert False\n"
    )
    monkeypatch.chdir(tmp_path)
    changed = source.read_text().replace("3", returned)
    assert run_tests("bounds.py", changed, ["tests/test_it.py::test_it"], 1.0) == status
    assert "return 3" in source.read_text()
