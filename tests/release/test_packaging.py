"""The distributions hold what they should; version and changelog agree; Triton is not needed."""

import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from distributions import ROOT, changelog_faults, sdist_faults, wheel_faults

import pixcontrast


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    builders = pytest.importorskip("hatchling.builders.wheel", reason="needs hatchling")
    (built,) = builders.WheelBuilder(str(ROOT)).build(directory=str(tmp_path_factory.mktemp("w")))
    return Path(built)


def test_the_wheel_holds_the_package_and_nothing_else(wheel):
    assert wheel.name == f"pixcontrast-{pixcontrast.__version__}-py3-none-any.whl"
    assert wheel_faults(wheel) == []


def test_a_wheel_that_holds_more_is_told(wheel, tmp_path):
    larger = tmp_path / wheel.name
    larger.write_bytes(wheel.read_bytes())
    with zipfile.ZipFile(larger, "a") as archive:
        archive.writestr("tests/test_packaging.py", "")
        archive.writestr("pixcontrast/weights.pt", bytes(250_000))
    said = " ".join(wheel_faults(larger))
    assert "expected under 200000 bytes" in said
    assert "should not hold pixcontrast/weights.pt" in said
    assert "should not hold tests/test_packaging.py" in said


def test_the_sdist_holds_what_builds_and_tests_it(tmp_path):
    builders = pytest.importorskip("hatchling.builders.sdist", reason="needs hatchling")
    (built,) = builders.SdistBuilder(str(ROOT)).build(directory=str(tmp_path))
    assert sdist_faults(Path(built)) == []


def test_version_and_changelog_agree():
    changelog = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    assert changelog_faults(pixcontrast.__version__, changelog) == []


@pytest.mark.parametrize(
    ("version", "changelog", "tag", "words"),
    [
        ("1.0", "## 1.0 (unreleased)", None, "expected MAJOR.MINOR.PATCH"),
        ("1.0.0", "", None, "expected headings"),
        ("1.0.0", "## 1.0.0", None, "expected headings"),
        ("1.1.0", "## 1.0.0 (unreleased)", None, "begins with 1.0.0, the version is 1.1.0"),
        ("1.0.0", "## 1.0.0 (soon)", None, "expected a date or 'unreleased'"),
        ("1.0.0", "## 1.0.0 (unreleased)", "v1.0.0", "expected a date for 1.0.0"),
        ("1.0.0", "## 1.0.0 (2026-11-24)", "1.0.0", "expected v1.0.0"),
        ("1.9.0", "## 1.9.0 (2026-11-24)\n## 1.10.0 (2026-11-20)", None, "newest to the oldest"),
        ("1.1.0", "## 1.1.0 (unreleased)\n## 1.0.0 (unreleased)", None, "a date for 1.1.0, 1.0.0"),
    ],
)
def test_what_does_not_agree_is_told(version, changelog, tag, words):
    assert words in " ".join(changelog_faults(version, changelog, tag))


def test_what_agrees_passes():
    changelog = "## 1.10.0 (2026-11-24)\n- x\n## 1.10.0rc1 (2026-11-20)\n## 1.9.0 (2026-01-02)\n"
    assert changelog_faults("1.10.0", changelog, "v1.10.0") == []
    assert changelog_faults("1.11.0", "## 1.11.0 (unreleased)\n" + changelog) == []


HIDE_TRITON = """
import runpy, sys

class Hidden:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == "triton":
            raise ModuleNotFoundError("No module named 'triton'", name="triton")

sys.meta_path.insert(0, Hidden())
"""


def run_without_triton(program):
    return subprocess.run(
        [sys.executable, "-W", "error", "-c", HIDE_TRITON + program],
        capture_output=True,
        text=True,
        cwd=ROOT,
    )


def test_without_triton_the_report_says_so():
    done = run_without_triton("runpy.run_module('pixcontrast', run_name='__main__')")
    assert done.returncode == 0, done.stdout + done.stderr
    (line,) = [line for line in done.stdout.splitlines() if line.startswith("  triton ")]
    assert "Triton cannot be imported" in line
    assert "No module named 'triton'" in line
    assert done.stdout.count("  ok\n") == 6  # dense and tiled, in three dtypes
    assert done.stdout.endswith("Every check passed.\n")


def test_without_triton_all_but_its_backend_works():
    done = run_without_triton("""
import torch
from pixcontrast import HardNegativeSampler, MemoryBank, PixelContrastLoss, RegionContrastLoss
from pixcontrast.functional import info_nce

emb = torch.randn(2, 8, 6, 6, requires_grad=True)
labels = torch.randint(0, 3, (2, 6, 6))
for loss in (
    PixelContrastLoss(bank=MemoryBank(3, 8, pixel_slots=9, region_slots=9)),
    PixelContrastLoss(negative_sampler=HardNegativeSampler(num_negatives=5), backend="tiled"),
    RegionContrastLoss(backend="dense"),
):
    for _ in range(2):
        loss(emb, labels).backward()
    assert float(emb.grad.norm()) > 0
points = emb.detach().flatten(2)[0].T
try:
    info_nce(points, labels[0].flatten(), backend="triton")
except RuntimeError as reason:
    print(reason)
print(sorted(name for name in sys.modules if name.partition(".")[0] == "triton"))
""")
    assert done.returncode == 0, done.stderr
    said = done.stdout.splitlines()
    assert "triton" in said[0]
    assert "cannot be imported" in said[0]
    assert said[1] == "[]"
