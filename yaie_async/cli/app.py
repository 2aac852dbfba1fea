"""The commands and their options. Each command imports its implementation when it runs, so `--help` is fast."""

import sys
from pathlib import Path
from typing import Annotated

import typer

from yaie_async.cli import options
from yaie_async.cli.options import LoadOptions
from yaie_async.cli.result import EXIT_CODES, run_and_exit
from yaie_async.loader.streams import is_terminal

_DOWNLOADS_KEPT = "Downloaded bytes are kept; run the same command again to continue."

app: typer.Typer = typer.Typer(
    name="yaie-async",
    help="Load Hugging Face causal language models without stalling the event loop.",
    epilog=EXIT_CODES,
    no_args_is_help=True,
    add_completion=False,
    # Only bugs reach typer, and a bug report needs the plain traceback.
    pretty_exceptions_enable=False,
)


@app.command(epilog=EXIT_CODES)
def demo(*, as_json: options.AsJson = False) -> None:
    """Load a model from a local Hub on this machine, without any network, and measure the event loop's stalls."""
    from yaie_async.cli.demo import demo as run

    run_and_exit(run, as_json=as_json, when_interrupted="The demo's temporary files are removed.")


@app.command(epilog=EXIT_CODES)
def load(
    model: options.Model,
    *,
    prompt: Annotated[
        str | None, typer.Option(help="Generate one line of text from this prompt after loading.")
    ] = None,
    dtype: options.Dtype = "float16",
    device_map: options.DeviceMap = "auto",
    revision: options.Revision = None,
    cache_dir: options.CacheDir = None,
    token: options.Token = None,
    endpoint: options.Endpoint = None,
    offline: options.Offline = False,
    max_connections: options.MaxConnections = 8,
    trust_remote_code: options.TrustRemoteCode = False,
    no_pickle: options.NoPickle = False,
    trace: options.TraceFile = None,
    as_json: options.AsJson = False,
) -> None:
    """Load a model and its tokenizer, and print its class, the time taken and the longest stall of the event loop."""
    from yaie_async.cli.load import load as run

    chosen = LoadOptions(cache_dir, token, endpoint, offline, revision, trust_remote_code, no_pickle, max_connections)
    run_and_exit(
        lambda: run(model, chosen, dtype=dtype, device_map=device_map, prompt=prompt, trace=trace),
        as_json=as_json,
        when_interrupted=_DOWNLOADS_KEPT,
    )


@app.command(epilog=EXIT_CODES)
def prefetch(
    models: options.ModelsOrNone = None,
    *,
    from_file: options.FromFile = None,
    revision: options.Revision = None,
    include: options.Include = None,
    exclude: options.Exclude = None,
    cache_dir: options.CacheDir = None,
    token: options.Token = None,
    endpoint: options.Endpoint = None,
    offline: options.Offline = False,
    max_connections: options.MaxConnections = 8,
    limit_rate: options.LimitRate = None,
    trust_remote_code: options.TrustRemoteCode = False,
    no_pickle: options.NoPickle = False,
    as_json: options.AsJson = False,
) -> None:
    """Download models into the cache, in parallel. Torch is not needed.

    A failed model does not stop the others, and makes the exit code 1. Nothing is downloaded unless the disk has room
    for all models. The models then load offline, unless --include or --exclude left out files that a load needs.
    """
    if not models and from_file is None:
        raise typer.BadParameter(
            "Name a model, or a file that lists models: --from-file models.txt.", param_hint="MODEL"
        )
    from yaie_async.cli.prefetch import prefetch as run

    chosen = LoadOptions(
        cache_dir, token, endpoint, offline, revision, trust_remote_code, no_pickle, max_connections, limit_rate
    )
    run_and_exit(
        lambda: run(models or [], from_file, chosen, include=include or [], exclude=exclude or []),
        as_json=as_json,
        when_interrupted=_DOWNLOADS_KEPT,
    )


@app.command(epilog=EXIT_CODES)
def plan(
    models: options.Models,
    *,
    dtype: options.Dtype = "float16",
    revision: options.Revision = None,
    cache_dir: options.CacheDir = None,
    token: options.Token = None,
    endpoint: options.Endpoint = None,
    offline: options.Offline = False,
    trust_remote_code: options.TrustRemoteCode = False,
    no_pickle: options.NoPickle = False,
    as_json: options.AsJson = False,
) -> None:
    """Show what a load would download and need, without downloading it. Exit code 0, whether it fits or not."""
    from yaie_async.cli.plan import plan as run

    chosen = LoadOptions(cache_dir, token, endpoint, offline, revision, trust_remote_code, no_pickle)
    run_and_exit(lambda: run(models, chosen, dtype=dtype), as_json=as_json, when_interrupted="Nothing was downloaded.")


@app.command(epilog=EXIT_CODES)
def verify(
    models: Annotated[
        list[str] | None, typer.Argument(help="Hub ids; all cached models if omitted.", metavar="[MODEL...]")
    ] = None,
    *,
    repair: Annotated[
        bool, typer.Option("--repair", help="Remove damaged files, and fetch them and missing ones again.")
    ] = False,
    yes: Annotated[
        bool, typer.Option("--yes", help="With --repair: remove a file that several repositories share without asking.")
    ] = False,
    cache_dir: options.CacheDir = None,
    token: options.Token = None,
    endpoint: options.Endpoint = None,
    as_json: options.AsJson = False,
) -> None:
    """Compare cached files with the digests in their names, offline. Without --repair nothing is changed.

    Exit code 1 if a file is corrupt or unreadable, or if a snapshot links to a missing file, and is not repaired.
    """
    if yes and not repair:
        raise typer.BadParameter("It answers what --repair asks: give both.", param_hint="--yes")
    from yaie_async.cli.verify import verify as run

    def agrees(question: str) -> bool:
        # Without a terminal there is no answer.
        return yes or (not as_json and is_terminal(sys.stdin) and typer.confirm(question, err=True))

    chosen = LoadOptions(
        cache_dir, token, endpoint, offline=False, revision=None, trust_remote_code=False, no_pickle=False
    )
    run_and_exit(
        lambda: run(models or [], chosen, agrees if repair else None),
        as_json=as_json,
        when_interrupted="Damaged files that were removed are fetched again by the next load."
        if repair
        else "Nothing was changed.",
    )


@app.command(epilog=EXIT_CODES)
def serve(
    root: Annotated[
        Path | None,
        typer.Argument(
            help="A folder of models (name/ or org/name/) or the root of an HF cache; this machine's HF cache if "
            "omitted or `cache`.",
            metavar="[DIR|cache]",
        ),
    ] = None,
    *,
    host: Annotated[str, typer.Option(help="Address to listen on; 0.0.0.0 listens on all addresses.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="Port to listen on; 0 chooses a free port.", min=0, max=65535)] = 8080,
    token: Annotated[
        str | None,
        typer.Option(
            help="Require this token in each request. Other users can read it in the process list; "
            "YAIE_ASYNC_SERVE_TOKEN is safer.",
            envvar="YAIE_ASYNC_SERVE_TOKEN",
            show_envvar=False,
        ),
    ] = None,
    as_json: options.AsJson = False,
) -> None:
    """Serve models to other machines by the Hub's protocol, read-only, until Ctrl-C.

    The other machines set HF_ENDPOINT to the printed address. Of a cache, only complete snapshots are served; no file
    outside the folder is served.
    """
    from yaie_async.cli.serve import serve as run

    run_and_exit(
        lambda: run(root, host=host, port=port, token=token, as_json=as_json),
        as_json=as_json,
        when_interrupted="Nothing was served.",
    )


def main() -> None:
    """Run the command line."""
    app()
