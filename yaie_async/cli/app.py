"""The commands and their options. What a command does is imported when it runs: `--help` is quick."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from yaie_async.cli import options
from yaie_async.cli.options import LoadOptions
from yaie_async.cli.result import EXIT_CODES, run_and_exit

_FETCHING = "what is downloaded is kept; run the same command again to go on."

app = typer.Typer(
    name="yaie-async",
    help="Load Hugging Face causal language models without stalling the event loop.",
    epilog=EXIT_CODES,
    no_args_is_help=True,
    add_completion=False,
    # A LoaderError is never shown as a traceback; whatever else comes is a mistake of ours, for a report.
    pretty_exceptions_enable=False,
)


@app.command(epilog=EXIT_CODES)
def demo(*, as_json: options.AsJson = False) -> None:
    """Load a model from a hub on this machine, without any network, and watch the event loop meanwhile."""
    from yaie_async.cli.demo import demo as run

    run_and_exit(run, as_json=as_json, when_interrupted="the demo's temporary files are removed.")


@app.command(epilog=EXIT_CODES)
def load(
    model: options.Model,
    *,
    prompt: Annotated[str | None, typer.Option(help="Generate a line from this, once it is loaded.")] = None,
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
    """Load a model and its tokenizer; say what it is, how long it took, and how long the loop was away at most."""
    from yaie_async.cli.load import load as run

    chosen = LoadOptions(cache_dir, token, endpoint, offline, revision, trust_remote_code, no_pickle, max_connections)
    run_and_exit(
        lambda: run(model, chosen, dtype=dtype, device_map=device_map, prompt=prompt, trace=trace),
        as_json=as_json,
        when_interrupted=_FETCHING,
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
    """Fetch models into the cache, all at once. All are tried; the exit code is 1 if one failed. Without torch.

    Nothing is fetched before there is room on the disk for all. What is fetched loads without the network, unless
    --include or --exclude chose the files: then it is exactly those.
    """
    if not models and from_file is None:
        raise typer.BadParameter("Name a model, or a file of them: --from-file models.txt.", param_hint="MODEL")
    from yaie_async.cli.prefetch import prefetch as run

    chosen = LoadOptions(
        cache_dir, token, endpoint, offline, revision, trust_remote_code, no_pickle, max_connections, limit_rate
    )
    run_and_exit(
        lambda: run(models or [], from_file, chosen, include=include or [], exclude=exclude or []),
        as_json=as_json,
        when_interrupted=_FETCHING,
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
    """Tell what a load would fetch and need, without fetching it. Exit code 0, whether it fits or not."""
    from yaie_async.cli.plan import plan as run

    chosen = LoadOptions(cache_dir, token, endpoint, offline, revision, trust_remote_code, no_pickle)
    run_and_exit(lambda: run(models, chosen, dtype=dtype), as_json=as_json, when_interrupted="nothing was fetched.")


@app.command(epilog=EXIT_CODES)
def verify(
    models: Annotated[
        list[str] | None, typer.Argument(help="Hub ids; all cached models if left out.", metavar="[MODEL...]")
    ] = None,
    *,
    cache_dir: options.CacheDir = None,
    as_json: options.AsJson = False,
) -> None:
    """Check cached files against the digests in their names, offline. Nothing is deleted.

    Exit code 1 if a file is corrupt, unreadable, or gone while a snapshot links to it.
    """
    from yaie_async.cli.verify import verify as run

    run_and_exit(lambda: run(models or [], cache_dir), as_json=as_json, when_interrupted="nothing was changed.")


@app.command(epilog=EXIT_CODES)
def serve(
    root: Annotated[
        Path | None,
        typer.Argument(
            help="A folder of models (name/ or org/name/) or the root of an HF cache; this machine's HF cache if left "
            "out or `cache`.",
            metavar="[DIR|cache]",
        ),
    ] = None,
    *,
    host: Annotated[str, typer.Option(help="Address to listen on; 0.0.0.0 for all of this machine's.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="0 takes a free one.", min=0, max=65535)] = 8080,
    token: Annotated[
        str | None,
        typer.Option(
            help="Let in only who sends this token. Other users can see it in the list of processes: better set "
            "YAIE_ASYNC_SERVE_TOKEN.",
            envvar="YAIE_ASYNC_SERVE_TOKEN",
            show_envvar=False,
        ),
    ] = None,
    as_json: options.AsJson = False,
) -> None:
    """Serve models by the Hub's protocol, read-only: other machines set HF_ENDPOINT to the address that is printed.

    Only snapshots of a cache that are whole are served, and nothing outside of the folder. Until Ctrl-C.
    """
    from yaie_async.cli.serve import serve as run

    run_and_exit(
        lambda: run(root, host=host, port=port, token=token, as_json=as_json),
        as_json=as_json,
        when_interrupted="nothing was served.",
    )


def main() -> None:
    """The entry point."""
    app()
