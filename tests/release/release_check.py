"""What must hold before a release: run by hand, from a clone, in an environment with `build`.

    python tests/release/release_check.py  # as users install it now
    python tests/release/release_check.py --tag v0.1.0  # and the changelog is dated
    python tests/release/release_check.py --torch 2.7.1 --python python3.10  # the oldest promised
    python tests/release/release_check.py --coverage  # and the share of lines and branches tested

Builds wheel and sdist and looks into them; installs each into an empty environment; there, outside
of the clone, runs the README's Python block, `python -m pixcontrast` with and without Triton, and
the short tests. docs/releasing.md says what comes before and after.
"""

import argparse
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from distributions import ROOT, changelog_faults, sdist_faults, wheel_faults

SHORT_TESTS = [
    "info_nce/test_backends.py",
    "bank/test_bank.py",
    "losses/test_compile.py",
    "info_nce/test_equation.py",
    "api/test_errors.py",
    "losses/test_losses.py",
    "api/test_main.py",
    "info_nce/test_mining.py",
    "losses/test_no_wait.py",
    "api/test_public_api.py",
    "pixels/test_regions.py",
    "pixels/test_resize.py",
    "samplers/test_samplers.py",
    "info_nce/test_selection.py",
    "losses/test_stats.py",
]
"""Of the installed package alone: no benchmarks, no clone, no cards to compile for."""
TESTED_WITH = ["hypothesis", "numpy", "pytest", "pytest-timeout", "pytest-xdist",
               "pytorch-metric-learning"]  # fmt: skip
LEAST_COVERAGE = 95


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--tag", help="the tag of the release, v and the version")
    parser.add_argument("--python", default=sys.executable, help="what makes the environments")
    parser.add_argument("--torch", help="the version of PyTorch to install, else the newest")
    parser.add_argument("--wheel-only", action="store_true", help="leave out the sdist")
    parser.add_argument("--coverage", action="store_true", help="measure the tests' coverage too")
    options = parser.parse_args(arguments)

    version = re.findall(
        r'^__version__ = "(.+)"$', (ROOT / "pixcontrast" / "__init__.py").read_text(), re.M
    )[0]
    changelog = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    stop_at(changelog_faults(version, changelog, options.tag))
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        section("build")
        run(sys.executable, "-m", "build", "--outdir", folder, ROOT)
        (wheel,), (sdist,) = folder.glob("*.whl"), folder.glob("*.tar.gz")
        stop_at(wheel_faults(wheel) + sdist_faults(sdist))
        print(f"{wheel.name}: {wheel.stat().st_size} bytes")
        for built in [wheel] if options.wheel_only else [wheel, sdist]:
            check_installed(built, folder, options.python, options.torch)
    if options.coverage:
        measure_coverage()
    print("\nThe release check passed.")


def check_installed(built: Path, folder: Path, python: str, torch: str | None) -> None:
    """Installs a distribution into an empty environment and uses it there."""
    section(f"{built.name} in an empty environment")
    environment = folder / "environment"
    run(python, "-m", "venv", "--clear", environment)
    own = environment / "bin" / "python"
    wanted = [] if torch is None else [f"torch=={torch}"]
    run(own, "-m", "pip", "install", "--quiet", built, *wanted)
    run(own, "-c", "import sys, torch; print(sys.version, torch.__version__)", cwd=folder)
    use_as_the_readme_says(own, folder)
    run(own, "-m", "pixcontrast", cwd=folder)
    if built.suffix != ".whl":
        return
    section("the short tests of the wheel")
    run(own, "-m", "pip", "install", "--quiet", *TESTED_WITH, *wanted)
    run_short_tests(own, folder)
    section("the wheel without Triton")
    run(own, "-m", "pip", "uninstall", "--quiet", "--yes", "triton")
    use_as_the_readme_says(own, folder)
    said = run(own, "-m", "pixcontrast", cwd=folder, read=True)
    if "Triton cannot be imported" not in said:
        sys.exit(f"python -m pixcontrast: expected it to say that Triton is missing; said\n{said}")
    run_short_tests(own, folder)


def use_as_the_readme_says(python: Path, folder: Path) -> None:
    """Runs the README's Python block as it stands, and looks at its loss."""
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    block = re.findall(r"^```python\n(.*?)^```", readme, re.DOTALL | re.MULTILINE)[0]
    script = folder / "readme.py"
    seen = "import pixcontrast\nprint(pixcontrast.__file__, float(loss))\nassert float(loss) > 0\n"
    script.write_text(block + seen, encoding="utf-8")
    said = run(python, "-W", "error::DeprecationWarning", script, cwd=folder, read=True)
    if "site-packages" not in said:
        sys.exit(f"the README's block: expected the installed package; got {said}")
    print(said, end="")


def run_short_tests(python: Path, folder: Path) -> None:
    """The short tests, copied away from the clone, on the installed package."""
    copy = folder / "clone"
    shutil.rmtree(copy, ignore_errors=True)
    shutil.copytree(ROOT / "tests", copy / "tests")
    shutil.copy(ROOT / "pyproject.toml", copy)
    tests = [f"tests/{name}" for name in SHORT_TESTS]
    run(python, "-m", "pytest", "-q", "-p", "no:cacheprovider", *tests, cwd=copy)


def measure_coverage() -> None:
    """All tests, in all their processes, under coverage.py; options are in pyproject.toml."""
    section("coverage")
    with tempfile.TemporaryDirectory() as name:
        environment = {**os.environ, "COVERAGE_FILE": str(Path(name) / "coverage")}
        coverage = (sys.executable, "-m", "coverage")
        run(*coverage, "run", "-m", "pytest", "-q", "-n0", cwd=ROOT, environment=environment)
        run(*coverage, "combine", cwd=ROOT, environment=environment)
        least = f"--fail-under={LEAST_COVERAGE}"
        run(*coverage, "report", least, cwd=ROOT, environment=environment)


def run(
    *command: object,
    cwd: Path = ROOT,
    environment: dict[str, str] | None = None,
    read: bool = False,
) -> str:
    """Runs a command, and ends all where it fails; its output, where it is to be read."""
    words = [str(word) for word in command]
    done = subprocess.run(
        words, cwd=cwd, env=environment, text=True, stdout=subprocess.PIPE if read else None
    )
    if done.returncode:
        sys.exit(f"failed: {' '.join(words)}\n{done.stdout or ''}")
    return done.stdout or ""


def section(title: str) -> None:
    print(f"\n== {title}", flush=True)


def stop_at(faults: list[str]) -> None:
    if faults:
        sys.exit("\n".join(faults))


if __name__ == "__main__":
    main()
