"""What a wheel and an sdist must hold, and must not; a changelog that agrees with the version."""

import re
import tarfile
import zipfile
from email.parser import HeaderParser
from pathlib import Path

ROOT = Path(__file__).parents[2]
MOST_BYTES = 200_000
NEEDED = {"torch", "triton"}
"""All that the package itself may depend on."""

SEMANTIC_VERSION = r"(?:0|[1-9]\d*)\.(?:0|[1-9]\d*)\.(?:0|[1-9]\d*)(?:rc[1-9]\d*)?"


def wheel_faults(wheel: Path, root: Path = ROOT) -> list[str]:
    """Why a wheel is not as promised: the package's own files and nothing else, small."""
    faults = []
    size = wheel.stat().st_size
    if size >= MOST_BYTES:
        faults.append(f"{wheel.name}: expected under {MOST_BYTES} bytes, has {size}")
    with zipfile.ZipFile(wheel) as archive:
        held = set(archive.namelist())
        (folder,) = {name.partition("/")[0] for name in held if ".dist-info/" in name}
        metadata = HeaderParser().parsestr(archive.read(f"{folder}/METADATA").decode())
    sources = {path.relative_to(root).as_posix() for path in (root / "pixcontrast").rglob("*.py")}
    expected = sources | {"pixcontrast/py.typed"}
    expected |= {f"{folder}/{name}" for name in ("METADATA", "WHEEL", "RECORD", "licenses/LICENSE")}
    faults += [f"{wheel.name}: lacks {name}" for name in sorted(expected - held)]
    faults += [f"{wheel.name}: should not hold {name}" for name in sorted(held - expected)]
    required = [r for r in metadata.get_all("Requires-Dist", []) if "extra ==" not in r]
    needed = {re.split(r"[^\w-]", requirement)[0] for requirement in required}
    if needed != NEEDED:
        faults.append(f"{wheel.name}: expected to need {NEEDED}, needs {needed}")
    return faults


def sdist_faults(sdist: Path, root: Path = ROOT) -> list[str]:
    """Why an sdist is not as promised: what builds, tests and explains the package, no runs."""
    with tarfile.open(sdist) as archive:
        held = {name.partition("/")[2] for name in archive.getnames()}
    expected = {"pyproject.toml", "README.md", "CHANGELOG.md", "CONTRIBUTING.md", "LICENSE"}
    for folder in ("pixcontrast", "tests", "benchmarks", "docs"):
        expected |= {p.relative_to(root).as_posix() for p in (root / folder).rglob("*.py")}
    top = {"pixcontrast", "tests", "benchmarks", "docs", "PKG-INFO", ".gitignore"}
    top |= {name for name in expected if "/" not in name}
    faults = [f"{sdist.name}: lacks {name}" for name in sorted(expected - held)]
    strange = {name.partition("/")[0] for name in held if name} - top
    return faults + [f"{sdist.name}: should not hold {name}" for name in sorted(strange)]


def changelog_faults(version: str, changelog: str, tag: str | None = None) -> list[str]:
    """Why version, changelog and tag do not agree.

    The first section is the version's, dated or unreleased; those below are older and dated. With
    a tag the version is released: tagged v and the version, its section dated.
    """
    if re.fullmatch(SEMANTIC_VERSION, version) is None:
        return [f"version {version}: expected MAJOR.MINOR.PATCH"]
    headings = re.findall(r"^## (.+)$", changelog, flags=re.MULTILINE)
    sections = [re.fullmatch(rf"({SEMANTIC_VERSION}) \((.+)\)", heading) for heading in headings]
    if not sections or None in sections:
        return ["CHANGELOG.md: expected headings such as '## 0.1.0 (2026-11-24)'"]
    versions, dates = zip(*(section.groups() for section in sections), strict=True)
    faults = []
    if versions[0] != version:
        faults.append(f"CHANGELOG.md: begins with {versions[0]}, the version is {version}")
    if list(versions) != sorted(set(versions), key=_order, reverse=True):
        faults.append("CHANGELOG.md: expected the versions from the newest to the oldest")
    undated = [v for v, d in zip(versions, dates, strict=True) if not _is_date(d)]
    allowed = [] if tag is not None else [version]
    if not set(undated) <= set(allowed):
        faults.append(f"CHANGELOG.md: expected a date for {', '.join(undated)}")
    if dates[0] != "unreleased" and not _is_date(dates[0]):
        faults.append(f"CHANGELOG.md: expected a date or 'unreleased'; got {dates[0]!r}")
    if tag is not None and tag != f"v{version}":
        faults.append(f"tag {tag}: expected v{version}")
    return faults


def _is_date(text: str) -> bool:
    return re.fullmatch(r"20\d\d-[01]\d-[0-3]\d", text) is not None


def _order(version: str) -> tuple[int, ...]:
    release, _, candidate = version.partition("rc")
    return (*map(int, release.split(".")), int(candidate) if candidate else 10**6)
