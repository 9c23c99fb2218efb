"""`sgl-actors keys`: key pairs for nodes and clients that talk over tcp."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from sgl_actors.errors import ConfigError

keys_app = typer.Typer(
    help="Draw and show the keys with which nodes and clients talk over tcp.",
    no_args_is_help=True,
    rich_markup_mode=None,
)


@keys_app.command()
def new(
    name: Annotated[str, typer.Argument(help="Whose they are, such as laptop.", metavar="NAME")],
    folder: Annotated[Path, typer.Option("--dir", help="Folder to write them into.", metavar="DIR")] = Path(),
) -> None:
    """Draw a key pair: NAME.pub to give away, NAME.key to keep.

    Nothing is overwritten. The secret half can be read by its owner alone, and is refused where it cannot.
    """
    from sgl_actors.actors.microkernel.curve import PUBLIC, SECRET, write_keys

    if not folder.is_dir():
        raise ConfigError(f"--dir {folder}: there is no such folder")
    pair = write_keys(name, folder)
    typer.echo(f"wrote {folder / (name + SECRET)} (keep it) and {folder / (name + PUBLIC)} (give it away)")
    typer.echo(f"public key {pair.public}")


@keys_app.command()
def show(
    files: Annotated[list[Path], typer.Argument(help="NAME.pub or NAME.key.", metavar="FILE...")],
) -> None:
    """Print the public keys of files. A secret key is never printed."""
    from sgl_actors.actors.microkernel.curve import SECRET, read_public, read_secret

    for file in files:
        keys = [read_secret(file).public] if file.suffix == SECRET else read_public(file)
        for key in keys:
            typer.echo(f"{key}  {file}")
