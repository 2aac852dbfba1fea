"""The options that several commands share, each defined once with its help."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from yaie_async.loader.hub import Hub
    from yaie_async.loader.model_loader import ModelLoader

_HUB = "Hub and cache"
_SAFETY = "Safety"

_UNITS = {"": 1, "k": 1e3, "m": 1e6, "g": 1e9}


def parse_rate(text: str) -> float:
    """Return the bytes per second of "500k", "10M" or "1.5G".

    Raises:
        typer.BadParameter: `text` is not a rate, or the rate is zero.
    """
    match = re.fullmatch(r"(\d{1,15}(?:\.\d{1,9})?)([kmg]?)b?", text.strip().lower())
    rate = float(match[1]) * _UNITS[match[2]] if match else 0.0
    if rate <= 0:
        raise typer.BadParameter(f"{text!r} is not a rate. Give bytes per second, for example 500k, 10M or 1.5G.")
    return rate


Model = Annotated[str, typer.Argument(help="A Hub id (org/name) or a directory (./x, ~/x, /x).", metavar="MODEL")]
Models = Annotated[list[str], typer.Argument(help="Hub ids or directories.", metavar="MODEL...")]
ModelsOrNone = Annotated[
    list[str] | None,
    typer.Argument(help="Hub ids, each optionally with @revision, or directories.", metavar="[MODEL...]"),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object on stdout, also for an error.")]
Revision = Annotated[
    str | None, typer.Option(help="Branch, tag or commit of all named models; the default branch if omitted.")
]
Dtype = Annotated[str, typer.Option(help="float16, bfloat16, float32, ..., or auto for the checkpoint's own dtype.")]
DeviceMap = Annotated[str, typer.Option(help="auto, cpu, cuda:0, balanced, ..., as in from_pretrained.")]
CacheDir = Annotated[
    Path | None,
    typer.Option(help="Root of the Hugging Face cache; by default from HF_HUB_CACHE or HF_HOME.", rich_help_panel=_HUB),
]
Token = Annotated[
    str | None,
    typer.Option(
        help="Access token. Other users can read it in the process list; HF_TOKEN or `hf auth login` is safer.",
        rich_help_panel=_HUB,
    ),
]
Endpoint = Annotated[
    str | None, typer.Option(help="Base URL of the Hub; by default from HF_ENDPOINT.", rich_help_panel=_HUB)
]
Offline = Annotated[
    bool, typer.Option("--offline", help="Make no requests; use cached files only.", rich_help_panel=_HUB)
]
LimitRate = Annotated[
    float | None,
    typer.Option(
        help="Limit for all downloads together, in bytes per second: 500k, 10M or 1.5G (decimal).",
        parser=parse_rate,
        metavar="RATE",
        rich_help_panel=_HUB,
    ),
]
FromFile = Annotated[
    Path | None,
    typer.Option(help="File that lists models, one per line, each optionally with @revision; # starts a comment."),
]
Include = Annotated[
    list[str] | None,
    typer.Option(
        help="Download the matching files, as `hf download` does, instead of what a load needs. May be repeated.",
        metavar="PATTERN",
    ),
]
Exclude = Annotated[
    list[str] | None,
    typer.Option(
        help="Skip matching files, of all files in the repository or of the included ones. May be repeated.",
        metavar="PATTERN",
    ),
]
MaxConnections = Annotated[int, typer.Option(help="Number of parallel downloads.", min=1, rich_help_panel=_HUB)]
TraceFile = Annotated[
    Path | None,
    typer.Option(
        help="Write a timeline of connections, verification, imports and build, for https://ui.perfetto.dev.",
        metavar="FILE",
    ),
]
TrustRemoteCode = Annotated[
    bool,
    typer.Option("--trust-remote-code", help="Run the repository's own Python code.", rich_help_panel=_SAFETY),
]
NoPickle = Annotated[
    bool,
    typer.Option("--no-pickle", help="Refuse pytorch_model.bin; load safetensors only.", rich_help_panel=_SAFETY),
]


@dataclass(frozen=True, slots=True)
class LoadOptions:
    """The options of a command that loads or downloads models."""

    cache_dir: Path | None
    token: str | None = field(repr=False)
    endpoint: str | None
    offline: bool
    revision: str | None
    trust_remote_code: bool
    no_pickle: bool
    max_connections: int = 8
    limit_rate: float | None = None

    def hub(self) -> Hub:
        """Return the Hub of the command."""
        from yaie_async.loader.hub import Hub

        return Hub(
            cache_dir=self.cache_dir,
            token=self.token,
            endpoint=self.endpoint,
            local_files_only=True if self.offline else None,
            max_connections=self.max_connections,
            max_bytes_per_second=self.limit_rate,
        )

    def loader(self, model: str, hub: Hub, **arguments: Any) -> ModelLoader:
        """Return a loader of one model; `arguments` are passed to `ModelLoader`."""
        from yaie_async.loader.model_loader import ModelLoader

        return ModelLoader(
            model,
            hub=hub,
            revision=self.revision,
            trust_remote_code=self.trust_remote_code,
            allow_pickle=not self.no_pickle,
            **arguments,
        )
