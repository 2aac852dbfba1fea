"""The options that several commands have, each with its help in one place."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from yaie_async.loader.hub import Hub
    from yaie_async.loader.model_loader import ModelLoader

_HUB = "Where from"
_SAFETY = "What is allowed"

_UNITS = {"": 1, "k": 1e3, "m": 1e6, "g": 1e9}


def parse_rate(text: str) -> float:
    """Bytes per second out of "500k", "10M" or "1.5G".

    Raises:
        typer.BadParameter: for anything else, and for nothing a second.
    """
    match = re.fullmatch(r"(\d{1,15}(?:\.\d{1,9})?)([kmg]?)b?", text.strip().lower())
    rate = float(match[1]) * _UNITS[match[2]] if match else 0.0
    if rate <= 0:
        raise typer.BadParameter(f"{text!r} is no rate: give bytes a second, as 500k, 10M or 1.5G.")
    return rate


Model = Annotated[str, typer.Argument(help="A Hub id (org/name) or a directory (./x, ~/x, /x).", metavar="MODEL")]
Models = Annotated[list[str], typer.Argument(help="Hub ids or directories.", metavar="MODEL...")]
ModelsOrNone = Annotated[
    list[str] | None,
    typer.Argument(help="Hub ids, each with @revision where one is meant, or directories.", metavar="[MODEL...]"),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object on stdout, errors too.")]
Revision = Annotated[
    str | None, typer.Option(help="Branch, tag or commit, of all models named; the default branch if left out.")
]
Dtype = Annotated[str, typer.Option(help="float16, bfloat16, float32, ..., or auto: what the checkpoint has.")]
DeviceMap = Annotated[str, typer.Option(help="auto, cpu, cuda:0, balanced, ... as for from_pretrained.")]
CacheDir = Annotated[
    Path | None,
    typer.Option(
        help="Root of the Hugging Face cache; HF_HUB_CACHE or HF_HOME says it otherwise.", rich_help_panel=_HUB
    ),
]
Token = Annotated[
    str | None,
    typer.Option(
        help="Access token. Other users can see it in the list of processes: better set HF_TOKEN, or log in once "
        "with `hf auth login`.",
        rich_help_panel=_HUB,
    ),
]
Endpoint = Annotated[
    str | None, typer.Option(help="Base URL of the Hub; HF_ENDPOINT says it otherwise.", rich_help_panel=_HUB)
]
Offline = Annotated[bool, typer.Option("--offline", help="Make no request: only what is cached.", rich_help_panel=_HUB)]
LimitRate = Annotated[
    float | None,
    typer.Option(
        help="Bytes a second, over all bodies together: 500k, 10M, 1.5G (decimal).",
        parser=parse_rate,
        metavar="RATE",
        rich_help_panel=_HUB,
    ),
]
FromFile = Annotated[
    Path | None,
    typer.Option(help="A file of models, one a line, with @revision where one is meant; # begins a comment."),
]
Include = Annotated[
    list[str] | None,
    typer.Option(
        help="Fetch the files that match, as `hf download` does, instead of what a load needs. May be repeated.",
        metavar="PATTERN",
    ),
]
Exclude = Annotated[
    list[str] | None,
    typer.Option(
        help="Leave these out, of all files of the repository or of those included. May be repeated.",
        metavar="PATTERN",
    ),
]
MaxConnections = Annotated[int, typer.Option(help="File bodies under way at once.", min=1, rich_help_panel=_HUB)]
TraceFile = Annotated[
    Path | None,
    typer.Option(
        help="Write a timeline of connections, verification, imports and build, for https://ui.perfetto.dev.",
        metavar="FILE",
    ),
]
TrustRemoteCode = Annotated[
    bool,
    typer.Option(
        "--trust-remote-code", help="Run the Python code that the repository brings.", rich_help_panel=_SAFETY
    ),
]
NoPickle = Annotated[
    bool,
    typer.Option("--no-pickle", help="Refuse pytorch_model.bin; safetensors only.", rich_help_panel=_SAFETY),
]


@dataclass(frozen=True, slots=True)
class LoadOptions:
    """What was asked for on the command line, beside the models."""

    cache_dir: Path | None
    token: str | None
    endpoint: str | None
    offline: bool
    revision: str | None
    trust_remote_code: bool
    no_pickle: bool
    max_connections: int = 8
    limit_rate: float | None = None

    def hub(self) -> Hub:
        """The one Hub of the command."""
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
        """A loader of one of the models."""
        from yaie_async.loader.model_loader import ModelLoader

        return ModelLoader(
            model,
            hub=hub,
            revision=self.revision,
            trust_remote_code=self.trust_remote_code,
            allow_pickle=not self.no_pickle,
            **arguments,
        )
