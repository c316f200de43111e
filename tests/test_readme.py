"""The README's commands, pictures and figures; its Python and links are test_docs.py's."""

import re
from pathlib import Path

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def blocks(language, text=README):
    return re.findall(rf"^```{language}\n(.*?)^```", text, flags=re.DOTALL | re.MULTILINE)


def test_two_commands_do_all_the_set_up():
    commands = blocks("bash")[0].strip().splitlines()
    assert len(commands) == 2
    for command in commands:
        assert command.startswith("python -m pip install -e '.[")
    assert commands[0].endswith("&& python -m benchmarks.segmentation")
    assert commands[1].endswith("&& python -m pytest")


def test_continuous_integration_runs_the_readmes_test_command():
    script = (ROOT / ".ci" / "run").read_text(encoding="utf-8")
    assert "readme_commands | sed -n 2p" in script
