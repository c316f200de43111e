"""The README and the docs keep their word: their Python runs, their links lead somewhere."""

import importlib.util
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from stand_ins import stand_in

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
PAGES = {path.name: path for path in (ROOT / "README.md", *sorted(DOCS.glob("*.md")))}
TEXTS = {name: path.read_text(encoding="utf-8") for name, path in PAGES.items()}
OTHERS = ("CONTRIBUTING.md", "CHANGELOG.md")
LOADED = re.compile(r'<(?:script|img|link)\b[^>]*\b(?:src|href)="((?:https?:)?//[^"]+)"')
"""What a page loads over the network when it is viewed."""
LINK = re.compile(r"\]\(\s*(?![a-z]+:)([^)\s]+)\s*\)")


def blocks(language, text):
    return re.findall(rf"^```{language}\n(.*?)^```", text, flags=re.DOTALL | re.MULTILINE)


def run(page):
    """Run a page's blocks in order, in one namespace; with that, what could not be imported."""
    names = {"__name__": page}
    found = [run_block(block, page, names) for block in blocks("python", TEXTS[page])]
    return names, [name for name in found if name is not None]


def run_block(block, page, names):
    """Run one; returns the name of a library that it imports and that is not there."""
    try:
        exec(compile(block, page, "exec"), names)
    except ModuleNotFoundError as error:
        if error.name.partition(".")[0] in ("torch", "pixcontrast", "benchmarks"):
            raise
        return error.name
    return None


def slug(heading):
    """The anchor that GitHub and MyST make of a heading."""
    kept = re.sub(r"[^\w\- ]", "", heading.strip().lower())
    return kept.replace(" ", "-")


def anchors(text):
    without_code = re.sub(r"^```.*?^```", "", text, flags=re.DOTALL | re.MULTILINE)
    return {slug(found) for found in re.findall(r"^#+ (.+)$", without_code, flags=re.MULTILINE)}


@pytest.mark.parametrize("page", [name for name in TEXTS if blocks("python", TEXTS[name])])
def test_python_blocks_run(page, monkeypatch):
    stand_in(monkeypatch)
    _, missing = run(page)
    if missing:
        pytest.skip(f"not installed: {', '.join(missing)}")


def test_the_readmes_example_makes_a_loss():
    (block,) = blocks("python", TEXTS["README.md"])
    assert len(block.strip().splitlines()) <= 20
    names, _ = run("README.md")
    assert float(names["loss"].detach()) > 0


def test_no_python_is_hidden_from_the_tests():
    for name, text in TEXTS.items():
        openings = re.findall(r"^\s*```+ *(\w+)", text, flags=re.MULTILINE)
        assert not {"py", "python3", "Python", "pycon"} & set(openings), name
        assert openings.count("python") == len(blocks("python", text)), name


def test_a_head_of_mmsegmentation_adds_its_loss(monkeypatch):
    if "mmseg" not in stand_in(monkeypatch):
        pytest.skip("samples of the library itself are made otherwise")
    names, _ = run("integrations.md")
    head = names["MODELS"].build(names["decode_head"])
    assert type(head).__name__ == "ContrastFCNHead"
    features = [torch.randn(2, 64, 12, 12)]
    labels = [torch.randint(0, 19, (1, 48, 48)) for _ in range(2)]
    losses = head.loss(features, labels, None)
    assert set(losses) == {"loss_ce", "loss_contrast"}
    (gradient,) = torch.autograd.grad(losses["loss_contrast"], head.convs.weight)
    assert gradient.abs().sum() > 0


def test_pages_project_samples_and_not_maps():
    """`loss(head(features))` is documented in one place."""
    projecting = [name for name in TEXTS if "head(features)" in TEXTS[name]]
    assert projecting == ["options.md"]
    for page in ("README.md", "index.md", "quickstart.md", "reading.md", "migration.md"):
        assert any("projection=" in block for block in blocks("python", TEXTS[page])), page


def test_the_angle_of_a_region_of_few_pixels():
    found = re.search(r"(\S+) rad at n = (\d+) and ρ = (\S+)\. ", TEXTS["method.md"])
    angle, number, cosine = float(found[1]), int(found[2]), float(found[3])
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randn(200, number, 64, generator=generator)
    pixels[..., 0] = 0
    pixels = (1 - cosine) ** 0.5 * torch.nn.functional.normalize(pixels, dim=2)
    pixels[..., 0] = cosine**0.5
    means = torch.nn.functional.normalize(pixels.mean(1), dim=1)
    assert means[:, 0].acos().mean() == pytest.approx(angle, abs=0.005)


@pytest.mark.parametrize("page", [*TEXTS, *OTHERS])
def test_links_lead_somewhere(page):
    path = PAGES.get(page, ROOT / page)
    text = path.read_text(encoding="utf-8")
    for target in LINK.findall(text):
        file, _, anchor = target.partition("#")
        found = (path.parent / file).resolve() if file else path
        assert found.exists(), f"{page}: {target}"
        assert found.is_relative_to(ROOT), f"{page}: {target}"
        if anchor:
            assert anchor in anchors(found.read_text(encoding="utf-8")), f"{page}: {target}"


@pytest.mark.parametrize("page", [*TEXTS, *OTHERS])
def test_files_and_commands_named_exist(page):
    text = PAGES.get(page, ROOT / page).read_text(encoding="utf-8")
    for file in re.findall(r"\b(?:tests|benchmarks|docs)/[\w/-]+\.\w+", text):
        assert (ROOT / file).is_file(), f"{page}: {file}"
    for name in re.findall(r"\btest_\w+\.py", text):
        assert [*(ROOT / "tests").rglob(name)], f"{page}: {name}"
    for name in re.findall(r"\b(?:python -m |`)(benchmarks\.[\w.]+)", text):
        assert importlib.util.find_spec(name), f"{page}: {name}"


def test_the_code_map_names_files_of_the_package():
    package = ROOT / "pixcontrast"
    code_map = TEXTS["design.md"].split("## Code map")[1].split("\n## ")[0]
    named = re.findall(r"`((?:\w+/)*\w+(?:\.py|/))`", code_map)
    assert len(named) > 20
    assert [name for name in named if not (package / name).exists()] == ["pixcontrast/"]


def test_every_page_is_in_the_index():
    listed = set(re.findall(r"^([a-z-]+)$", TEXTS["index.md"], flags=re.MULTILINE))
    assert {path.stem for path in DOCS.glob("*.md")} - {"index"} <= listed


def test_every_public_name_has_its_place_in_the_reference():
    import pixcontrast

    for name in {*pixcontrast.__all__} - {"functional"}:
        assert re.search(rf"^\.\. autoclass:: pixcontrast\.{name}$", TEXTS["api.md"], re.MULTILINE)
    assert ".. autofunction:: pixcontrast.functional.info_nce" in TEXTS["api.md"]


def test_the_site_builds_without_a_warning(tmp_path):
    for needed in ("sphinx", "furo", "myst_parser", "latex2mathml"):
        if importlib.util.find_spec(needed) is None:
            pytest.skip(f"{needed} is not installed: pip install -e '.[docs]'")
    command = [sys.executable, "-m", "sphinx", "-q", "-W", "--keep-going", "-E"]
    done = subprocess.run(
        [*command, str(DOCS), str(tmp_path)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    scripts = sorted(path.name for path in (DOCS / "recipes").glob("[!_]*.py"))
    page = (tmp_path / "recipes.html").read_text(encoding="utf-8")
    assert all(f"docs/recipes/{name}" in page for name in scripts)
    reference = (tmp_path / "api.html").read_text(encoding="utf-8")
    assert "(B, D, *S)" in reference
    method = (tmp_path / "method.html").read_text(encoding="utf-8")
    assert "<math" in method
    assert "<math" in reference
    pages = [path.read_text(encoding="utf-8") for path in tmp_path.glob("*.html")]
    assert not [url for page in pages for url in LOADED.findall(page)]
