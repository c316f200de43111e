"""The picture of the README: made from a real run, of what it says it shows."""

import json

from benchmarks import figures


def test_the_sphere_shows_classes_that_part(tmp_path, monkeypatch):
    monkeypatch.setattr(figures, "SHOWN", (0, 30))
    figures.main(["--out", str(tmp_path)])
    assert (tmp_path / "sphere.png").stat().st_size > 5_000
    record = json.loads((tmp_path / "sphere.json").read_text())
    before, after = (a - b for a, b in zip(record["within"], record["between"], strict=True))
    assert after > before + 0.3
