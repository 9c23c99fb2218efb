"""`sgl-actors keys`: what is written and what is printed."""

from __future__ import annotations

from pathlib import Path

import pytest
from typer.testing import CliRunner

from sgl_actors.cli.app import app
from sgl_actors.errors import ConfigError

RUN = CliRunner()


def test_a_pair_is_drawn_and_shown(tmp_path: Path) -> None:
    """The public key is printed, from either file, and the secret one never."""
    made = RUN.invoke(app, ["keys", "new", "laptop", "--dir", str(tmp_path)])
    assert made.exit_code == 0
    public = (tmp_path / "laptop.pub").read_text().strip()
    secret = (tmp_path / "laptop.key").read_text().strip()
    shown = RUN.invoke(app, ["keys", "show", str(tmp_path / "laptop.key"), str(tmp_path / "laptop.pub")])
    assert [line.split()[0] for line in shown.output.splitlines()] == [public, public]
    assert public in made.output
    assert secret not in made.output + shown.output


def test_what_cannot_be_done_is_said(tmp_path: Path) -> None:
    """A folder that is not there, a name that is taken, a file that is no key."""
    with pytest.raises(ConfigError, match="no such folder"):
        RUN.invoke(app, ["keys", "new", "x", "--dir", str(tmp_path / "no")], catch_exceptions=False)
    RUN.invoke(app, ["keys", "new", "x", "--dir", str(tmp_path)])
    with pytest.raises(ConfigError, match="is there already"):
        RUN.invoke(app, ["keys", "new", "x", "--dir", str(tmp_path)], catch_exceptions=False)
    (tmp_path / "text").write_text("hello")
    with pytest.raises(ConfigError, match="holds no key"):
        RUN.invoke(app, ["keys", "show", str(tmp_path / "text")], catch_exceptions=False)
