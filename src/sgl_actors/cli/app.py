"""The verbs and their options. A verb parses and prints; what it does stands in the modules it imports."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from sgl_actors.cli.cache_app import Config, Json, NodeName, cache_app, scheduler
from sgl_actors.cli.keys import keys_app
from sgl_actors.cli.model_app import model_app
from sgl_actors.cli.swap_app import reload, swap
from sgl_actors.errors import ConfigError, InvalidRequest

DEFAULT_FILE = Path("node.toml")

app = typer.Typer(
    name="sgl-actors",
    no_args_is_help=True,
    invoke_without_command=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)

Model = Annotated[str | None, typer.Option("--model", help="A name (see `models`), .gguf file or folder.")]
Values = Annotated[
    list[str] | None,
    typer.Option("--set", help="Any value of node.toml; may be repeated.", metavar="SECTION.KEY=VALUE"),
]


@app.callback()
def command(
    show_version: Annotated[bool, typer.Option("--version", help="Print versions and end.")] = False,
) -> None:
    """Run programs that call a language model many times, and the node that serves them."""
    if show_version:
        version()
        raise typer.Exit


@app.command()
def start(
    config: Config = None,
    host: Annotated[str | None, typer.Option(help="Address to bind.")] = None,
    port: Annotated[str | None, typer.Option(help="Port of the HTTP server; 0 for any.")] = None,
    model: Model = None,
    values: Values = None,
) -> None:
    """Run a node in the foreground. Without --config, ./node.toml is used if it is there."""
    from sgl_actors.actors.node.config import load

    own = {
        "gateway.host": ("--host", host),
        "gateway.port": ("--port", port),
        "model.path": ("--model", model),
    }
    given = parse_values(values)
    typed = {key: flag for key, (flag, value) in own.items() if value is not None}
    typed |= {key: f"--set {key}" for key in given}
    loaded = load(
        config or (DEFAULT_FILE if DEFAULT_FILE.exists() else None),
        flags={key: value for key, (_, value) in own.items() if value is not None} | given,
        typed=typed,
    )
    loaded.check_model(typed)  # a checkpoint that is not there is said before anything starts

    from sgl_actors.actors.node.main import main as run_node

    raise typer.Exit(run_node(loaded))


@app.command(
    context_settings={
        "allow_extra_args": True,
        "ignore_unknown_options": True,
        "allow_interspersed_args": False,
    }
)
def run(
    context: typer.Context,
    file: Annotated[Path, typer.Argument(help="A Python file.", metavar="FILE.py")],
    url: Annotated[
        str | None, typer.Option("--url", help="Run it on the node at this address.", metavar="URL")
    ] = None,
    node: Annotated[
        str | None, typer.Option("--node", help="Run it on the running node of this name.", metavar="NAME")
    ] = None,
    api: Annotated[
        str | None,
        typer.Option(
            "--api",
            help="Run it on an API model: openai:gpt-4o-mini, openai-completions:MODEL, anthropic:MODEL or gemini:MODEL; --url is then the API's address.",
            metavar="PROVIDER:MODEL",
        ),
    ] = None,
    key: Annotated[
        str | None,
        typer.Option(
            "--key",
            help="With --api: where the key stands, env:NAME, file:PATH or none. Without it it is the vendor's own variable, for the vendor's own address only.",
            metavar="WHERE",
        ),
    ] = None,
) -> None:
    """Run a program. What follows the file's name are its arguments.

    Without --url, --node or --api, and unless the program says `sgl.connect(…)`, it brings a node of its own.
    """
    from sgl_actors.cli.programs import run_file, use_api, use_node

    if api is not None and node is None:
        use_api(api, url, key)
    elif api is not None:
        raise ConfigError("--api and --node: one of them says where to run")
    elif key is not None:
        raise ConfigError("--key: it is of an API, which --api names")
    elif url is not None or node is not None:
        use_node(url, node)
    raise typer.Exit(run_file(file, context.args))


@app.command()
def resume(
    program: Annotated[
        str | None, typer.Argument(help="Its id; without it all that have not finished.", metavar="ID")
    ] = None,
    listing: Annotated[bool, typer.Option("--list", help="Only list the programs of the journal.")] = False,
    prune: Annotated[
        float | None,
        typer.Option(min=0.0, help="Only forget programs that finished that many days ago.", metavar="DAYS"),
    ] = None,
    journal: Annotated[
        Path | None,
        typer.Option(help="Without it, $SGL_ACTORS_JOURNAL or the user's own.", metavar="FILE"),
    ] = None,
    url: Annotated[
        str | None, typer.Option("--url", help="Run them on the node at this address.", metavar="URL")
    ] = None,
    node: Annotated[
        str | None, typer.Option("--node", help="Run them on the running node of this name.", metavar="NAME")
    ] = None,
    as_json: Json = False,
) -> None:
    """Have durable programs go on that were interrupted or have failed, where they were.

    They run on the node that they ran on, unless another one is named.
    """
    from sgl_actors.actors.programs.journal import journal_file
    from sgl_actors.cli.resume import forget, resume_programs, show_programs

    file = journal_file("" if journal is None else str(journal))
    if prune is not None:
        typer.echo(f"forgot {forget(file, prune)} programs")
    elif listing:
        show_programs(file, program, as_json=as_json, stream=sys.stdout)
    else:
        failed = resume_programs(file, program, url=url, node=node, as_json=as_json, stream=sys.stdout)
        raise typer.Exit(1 if failed else 0)


@app.command()
def chat(
    node: NodeName = None,
    config: Config = None,
    model: Model = None,
    system: Annotated[str, typer.Option(help="System prompt.")] = "",
    max_tokens: Annotated[int, typer.Option(min=1, help="Most tokens per answer.")] = 512,
    temperature: Annotated[float, typer.Option(min=0.0, help="0 is greedy.")] = 0.7,
    seed: Annotated[int | None, typer.Option(min=0, help="Repeat a conversation.")] = None,
) -> None:
    """Talk to a model in the terminal.

    It asks the running node. If none runs, or --model is given, it starts one for itself.
    """
    import asyncio

    from sgl_actors.cli.chat import Settings, chat_in_terminal

    settings = Settings(system=system, max_tokens=max_tokens, temperature=temperature, seed=seed)
    raise typer.Exit(asyncio.run(chat_in_terminal(settings, node=node, config=config, model=model)))


@app.command()
def ps(node: NodeName = None, config: Config = None, as_json: Json = False) -> None:
    """List the node's actors."""
    import asyncio

    from sgl_actors.cli.node import find, list_actors
    from sgl_actors.cli.show import show_actors

    show_actors(asyncio.run(list_actors(find(node, config))), as_json=as_json, stream=sys.stdout)


@app.command()
def logs(
    actor: Annotated[str | None, typer.Argument(help="Only this actor's lines, such as worker/0.")] = None,
    request: Annotated[str | None, typer.Option(help="Only this request's lines.", metavar="ID")] = None,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on as lines come.")] = False,
    every_run: Annotated[
        bool, typer.Option("--all", help="Earlier runs of the node, too; --request looks at all of them.")
    ] = False,
    node: NodeName = None,
    config: Config = None,
    as_json: Json = False,
) -> None:
    """Print the log lines of all actors as one time line.

    It shows the present run of the node, or the last one. A request is named by the id of its answer or by the answer's
    x-request-id.
    """
    from sgl_actors.cli.show import show_lines, time_line

    folder = _log_dir(node, config)
    shown = show_lines(
        time_line(
            folder, actor=actor, request=request, follow=follow, last=not every_run and request is None
        ),
        as_json=as_json,
        relative=request is not None,
        stream=sys.stdout,
    )
    if not shown and not as_json:
        typer.echo("no lines" if every_run else "no lines of this run; --all looks at earlier ones", err=True)


app.add_typer(cache_app, name="cache")
app.add_typer(keys_app, name="keys")
app.add_typer(model_app, name="model")
app.command()(scheduler)


@app.command()
def bench(
    url: Annotated[
        str | None, typer.Option("--url", help="Any OpenAI-compatible server.", metavar="URL")
    ] = None,
    workload: Annotated[
        str, typer.Option(help="random shares nothing, shared has 512 tokens in front of all; or both.")
    ] = "random",
    concurrency: Annotated[str, typer.Option(help="Cases, by most requests at once.")] = "1,16",
    requests: Annotated[int, typer.Option(min=0, help="Per case; 0 for twice the concurrency.")] = 0,
    prompt_tokens: Annotated[int, typer.Option(min=1, help="Tokens of each prompt.")] = 128,
    output_tokens: Annotated[int, typer.Option(min=1, help="Tokens of each answer.")] = 64,
    seed: Annotated[int | None, typer.Option(help="Repeat prompts, which may then be cached.")] = None,
    node: NodeName = None,
    config: Config = None,
    model: Model = None,
    as_json: Json = False,
) -> None:
    """Measure how fast a server answers.

    Without --url it measures the running node; if none runs, or --model is given, one that it starts for this. TTFT is the time to the first
    token, ITL from chunk to chunk, PER TOKEN a request's mean time per token, in milliseconds as a client sees them.
    """
    import secrets

    from sgl_actors.cli.bench import Settings, measure, parse, show

    workloads, counts = parse(workload, concurrency)
    drawn = secrets.randbelow(2**31) if seed is None else seed
    settings = Settings(workloads, counts, requests, prompt_tokens, output_tokens, drawn)
    rows = measure(url, settings, node=node, config=config, model=model)
    show(rows, as_json=as_json, stream=sys.stdout)


@app.command()
def profile(
    seconds: Annotated[float, typer.Option(help="How long to watch, at most 60.")] = 5.0,
    trace: Annotated[
        Path | None,
        typer.Option("--trace", help="Write a trace for chrome://tracing or Perfetto.", metavar="FILE"),
    ] = None,
    node: NodeName = None,
    config: Config = None,
    as_json: Json = False,
) -> None:
    """Watch the running node and print where its time goes.

    Rows divide the worker's wall time: kinds of operation, what Python does in a step, and what is waited for between two.
    """
    import asyncio

    from sgl_actors.actors.node.profile_client import check_seconds
    from sgl_actors.cli.node import find
    from sgl_actors.cli.profile import show_profile, take, write_trace

    try:
        check_seconds(seconds)
    except InvalidRequest as error:
        raise ConfigError(f"--{error.message}") from None
    if trace is not None and not trace.parent.is_dir():
        raise ConfigError(f"--trace {trace}: there is no folder {trace.parent}")
    if trace is not None and trace.is_dir():
        raise ConfigError(f"--trace {trace}: is a folder, expected a file")
    found = asyncio.run(take(find(node, config), seconds, slices=trace is not None))
    show_profile(found, as_json=as_json, stream=sys.stdout)
    if trace is not None:
        write_trace(found, trace)


@app.command()
def restart(
    actor: Annotated[str, typer.Argument(help="Such as worker/0.")],
    node: NodeName = None,
    config: Config = None,
) -> None:
    """Restart one actor of the running node.

    Requests that it had go on in its new incarnation.
    """
    import asyncio

    from sgl_actors.cli.node import find, restart_actor

    asyncio.run(restart_actor(find(node, config), actor))
    typer.echo(f"{actor} is up again")


app.command()(swap)
app.command()(reload)


@app.command()
def stop(
    node: NodeName = None,
    config: Config = None,
    drain: Annotated[
        float | None,
        typer.Option(
            min=0.0, help="Seconds that running requests get; without it, what the node's node.toml says."
        ),
    ] = None,
) -> None:
    """Stop the running node and wait for its end."""
    import asyncio

    from sgl_actors.cli.node import find, stop_node

    record = find(node, config)
    asyncio.run(stop_node(record, drain))
    typer.echo(f"stopped node {record.name!r}")


@app.command("check-config")
def check_config(
    file: Annotated[Path | None, typer.Argument(help="Without it, ./node.toml, or the defaults.")] = None,
    values: Values = None,
    show_origin: Annotated[
        bool, typer.Option("--show-origin", help="Print where each value comes from.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Check a node.toml and the model it names, and print its values.

    The exit code is 2 if anything is wrong.
    """
    from sgl_actors.actors.node.config import load
    from sgl_actors.cli.show import show_config

    path = file or (DEFAULT_FILE if DEFAULT_FILE.exists() else None)
    given = parse_values(values)
    typed = {key: f"--set {key}" for key in given}
    loaded = load(path, flags=given, typed=typed)
    loaded.check_model(typed)
    show_config(loaded, show_origin=show_origin, as_json=as_json, stream=sys.stdout)


@app.command()
def models(as_json: Json = False) -> None:
    """List the models that can be named.

    One that is not on this machine is shown with the command that gets it.
    """
    from sgl_actors.actors.node.models import catalogue
    from sgl_actors.cli.show import show_models

    show_models(catalogue(), as_json=as_json, stream=sys.stdout)


@app.command()
def version(as_json: Json = False) -> None:
    """Print versions."""
    from sgl_actors.cli.show import show_versions

    show_versions(as_json=as_json, stream=sys.stdout)


def parse_values(values: list[str] | None) -> dict[str, str]:
    """``["scheduler.max_batch=4"]`` as a mapping; `ConfigError` for one without an equals sign."""
    parsed = {}
    for value in values or ():
        key, equals, text = value.partition("=")
        if not equals:
            raise ConfigError(f"--set {value}: expected SECTION.KEY=VALUE")
        parsed[key.strip()] = text.strip()
    return parsed


def _log_dir(node: str | None, config: Path | None) -> Path:
    """Where logs lie: as the running node's record says, else as the configuration says (the node may have ended)."""
    from sgl_actors.actors.node.config import load
    from sgl_actors.cli.node import find
    from sgl_actors.errors import NotReady

    if config is not None:
        return load(config).log_dir
    try:
        return Path(find(node, None).log_dir)
    except NotReady:
        file = DEFAULT_FILE if node is None and DEFAULT_FILE.exists() else None
        folder = load(file, flags={} if node is None else {"node.name": node}).log_dir
        if not folder.is_dir():
            raise
        return folder
