"""How the site is built: `python -m sphinx -W --keep-going docs docs/_build`."""

import re
import sys
from pathlib import Path

from sphinx.application import Sphinx

DOCS = Path(__file__).parent
sys.path.insert(0, str(DOCS.parent))

import pixcontrast  # noqa: E402

project = "pixcontrast"
author = "The pixcontrast developers"
copyright = author  # noqa: A001  (the name is Sphinx's)
version = release = pixcontrast.__version__

extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.doctest",
    "sphinx.ext.mathjax",
    "sphinx.ext.napoleon",
]
myst_enable_extensions = ["dollarmath"]
myst_heading_anchors = 3
default_role = "code"  # docstrings write names between single backticks
exclude_patterns = ["_build"]

autodoc_member_order = "bysource"
autodoc_typehints = "none"  # docstrings say what each argument is
napoleon_google_docstring = True
napoleon_numpy_docstring = False
napoleon_custom_sections = [("Call", "Call"), ("Shape", "Shape")]

html_theme = "furo"
html_title = f"pixcontrast {release}"

RECIPES_MARK = "<!-- recipes -->"
# Named in the index, and left out of it where the sources do not have them.
OPTIONAL_PAGES = ("numerics", "scale", "reliability", "releasing")


def setup(app: Sphinx) -> None:
    """Fill the pages that depend on what there is, and make docstrings bear reStructuredText."""
    app.connect("source-read", _list_recipes)
    app.connect("source-read", _leave_out_missing_pages)
    app.connect("autodoc-process-docstring", _escape, priority=100)


def _list_recipes(app: Sphinx, page: str, source: list[str]) -> None:
    """Put every script of `docs/recipes/` where the page has its mark."""
    if RECIPES_MARK in source[0]:
        source[0] = source[0].replace(RECIPES_MARK, recipes_listed(DOCS / "recipes"))


def _leave_out_missing_pages(app: Sphinx, page: str, source: list[str]) -> None:
    if page == "index":
        missing = {name for name in OPTIONAL_PAGES if not (DOCS / f"{name}.md").exists()}
        lines = source[0].splitlines(keepends=True)
        source[0] = "".join(line for line in lines if line.strip() not in missing)


def recipes_listed(folder: Path) -> str:
    """A heading and the whole text of each script; its docstring's first line introduces it."""
    parts = []
    for path in sorted(folder.glob("*.py")):
        if path.stem.startswith("_"):
            continue
        title = path.stem.replace("_", " ").capitalize()
        script = f"```{{literalinclude}} recipes/{path.name}\n:language: python\n```"
        parts.append(f"## {title}\n\n`docs/recipes/{path.name}`\n\n{script}\n")
    return "\n".join(parts) or "This version of the sources has none yet.\n"


def _escape(
    app: Sphinx, what: str, name: str, obj: object, options: object, lines: list[str]
) -> None:
    """`*S` is no emphasis here and `|P_i|` no substitution."""
    in_code = False
    for number, line in enumerate(lines):
        if line.startswith((".. math::", "The same value")) or (in_code and not line.strip()):
            in_code = True
        elif not line.startswith(" "):
            in_code = False
        if not in_code:
            parts = re.split(r"(`[^`]*`)", line)
            escaped = (re.sub(r"(?<!\\)([*|])", r"\\\1", part) for part in parts[::2])
            parts[::2] = list(escaped)
            lines[number] = "".join(parts)
