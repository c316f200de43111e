"""Configuration of the documentation site: `python -m sphinx -W docs docs/_build`."""

import re
import sys
from pathlib import Path

from docutils import nodes
from latex2mathml.converter import convert
from sphinx.application import Sphinx
from sphinx.writers.html5 import HTML5Translator

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
    "sphinx.ext.napoleon",
]
myst_enable_extensions = ["dollarmath"]
myst_heading_anchors = 3
html_math_renderer = "mathml"  # registered in setup(); browsers render MathML without a script
default_role = "code"  # docstrings write names between single backticks
exclude_patterns = ["_build"]

autodoc_member_order = "bysource"
autodoc_typehints = "none"  # the docstrings state each argument's type
napoleon_google_docstring = True
napoleon_numpy_docstring = False
napoleon_custom_sections = [("Call", "Call"), ("Shape", "Shape")]

html_theme = "furo"
pygments_dark_style = "github-dark"
html_title = f"pixcontrast {release}"
html_static_path = ["_static"]
html_css_files = ["site.css"]

RECIPES_MARK = "<!-- recipes -->"


def setup(app: Sphinx) -> None:
    """Register the math renderer and the hooks that edit pages and docstrings."""
    app.add_html_math_renderer("mathml", (_inline_math, None), (_display_math, None))
    app.connect("source-read", _list_recipes)
    app.connect("autodoc-process-docstring", _escape, priority=100)


def _inline_math(translator: HTML5Translator, node: nodes.math) -> None:
    translator.body.append(convert(node.astext()))
    raise nodes.SkipNode


def _display_math(translator: HTML5Translator, node: nodes.math_block) -> None:
    formula = convert(node.astext(), display="block")
    translator.body.append(f'<div class="formula">{formula}</div>\n')
    raise nodes.SkipNode


def _list_recipes(app: Sphinx, page: str, source: list[str]) -> None:
    """Replace the mark of a page by every script in `docs/recipes/`."""
    if RECIPES_MARK in source[0]:
        source[0] = source[0].replace(RECIPES_MARK, recipes_listed(DOCS / "recipes"))


def recipes_listed(folder: Path) -> str:
    """Return a heading from the docstring and the full text of each script in `folder`."""
    parts = []
    for path in sorted(folder.glob("*.py")):
        if path.stem.startswith("_"):
            continue
        title = path.read_text(encoding="utf-8").removeprefix('"""').partition(":")[0]
        script = f"```{{literalinclude}} recipes/{path.name}\n:language: python\n```"
        parts.append(f"## {title}\n\n`docs/recipes/{path.name}`\n\n{script}\n")
    return "\n".join(parts)


def _escape(
    app: Sphinx, what: str, name: str, obj: object, options: object, lines: list[str]
) -> None:
    """Escape `*` and `|`, so that `*S` is not emphasis and `|P_i|` not a substitution."""
    in_code = False
    for number, line in enumerate(lines):
        if line.rstrip().endswith("::") or (in_code and not line.strip()):
            in_code = True  # a literal block or a formula
        elif not line.startswith(" "):
            in_code = False
        if not in_code:
            parts = re.split(r"(`[^`]*`)", line)
            escaped = (re.sub(r"(?<!\\)([*|])", r"\\\1", part) for part in parts[::2])
            parts[::2] = list(escaped)
            lines[number] = "".join(parts)
