"""`python -m benchmarks download|stall|live|ready|tokenizer|window [--rounds N] [--size MB] [--json]`."""

import argparse
import contextlib
import json
import signal
import sys
from pathlib import Path

from benchmarks import download, live, ready, stall, tokenizer, window

_ABOUT = {
    "download": (download, 1000, "download speed and cost from a TLS server into the cache, against other clients"),
    "stall": (stall, 200, "stalls of the event loop during a cold load"),
    "live": (live, 200, "latency of a web server while it loads a model"),
    "ready": (ready, 400, "cold time to a ready model, against its lower bounds"),
    "tokenizer": (tokenizer, 0, "how long building a tokenizer of 128k tokens holds the GIL"),
    "window": (window, 200, "how long torch's default dtype is changed during a load"),
}
_PLOTS = {"download": "throughput by connections", "ready": "times, and a timeline"}


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    commands = parser.add_subparsers(required=True)
    for name, (module, size, about) in _ABOUT.items():
        one = commands.add_parser(name, help=about)
        one.add_argument("--rounds", type=int, default=5, help="number of interleaved rounds")
        one.add_argument(
            "--size", "--megabytes", type=int, default=size, metavar="MB", help=f"size of the model ({size})"
        )
        one.add_argument("--only", nargs="+", choices=module.CASES, default=module.CASES, help="run these cases only")
        one.add_argument("--json", action="store_true", help="print the rounds as JSON, and the tables on stderr")
        one.add_argument(
            "--plot", type=Path, help=f"file for a plot of {_PLOTS.get(name, 'the longest times')} (.png, .svg)"
        )
        if name == "ready":
            one.add_argument(
                "--dtype", default="float16", choices=("float16", "bfloat16", "float32"), help="dtype of the checkpoint"
            )
        if name not in ("download", "tokenizer"):
            one.add_argument("--link", default="1gbit", help="rate of the link, in the notation of tc (1gbit)")
        if name == "tokenizer":
            one.add_argument("--tokens", type=int, default=128_000, help="size of the vocabulary (128000)")
            one.add_argument(
                "--tokenizer-class",
                default=tokenizer.KINDS[0],
                choices=tokenizer.KINDS,
                help="tokenizer_class in tokenizer_config.json",
            )
        if name == "stall":
            one.add_argument("--big-tokenizer", action="store_true", help="also load a tokenizer of 128k tokens")
        one.set_defaults(run=module.main)
    arguments = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that servers and temporary folders are removed
    with contextlib.redirect_stdout(sys.stderr) if arguments.json else contextlib.nullcontext():
        results = arguments.run(arguments)
    if arguments.json:
        print(json.dumps(results))


if __name__ == "__main__":
    main()
