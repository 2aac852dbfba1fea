"""`python -m benchmarks download|stall|live|ready|tokenizer|window [--rounds N] [--size MB] [--json]`."""

import argparse
import contextlib
import json
import signal
import sys
from pathlib import Path

from benchmarks import download, live, ready, stall, tokenizer, window

_ABOUT = {
    "download": (download, 1000, "bytes from a TLS server into the cache, beside what others use"),
    "stall": (stall, 200, "how long the event loop is away during a cold load"),
    "live": (live, 200, "an endpoint that is pinged while its process loads a model"),
    "ready": (ready, 400, "cold time to a ready model, beside its lower bounds"),
    "tokenizer": (tokenizer, 0, "how long a tokenizer of 128k tokens keeps the GIL"),
    "window": (window, 200, "how long torch's default dtype is another one in a load"),
}
_DRAWN = {"download": "throughput over connections", "ready": "times, and what overlapped"}


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    commands = parser.add_subparsers(required=True)
    for name, (module, size, about) in _ABOUT.items():
        one = commands.add_parser(name, help=about)
        one.add_argument("--rounds", type=int, default=5, help="interleaved rounds")
        one.add_argument("--size", "--megabytes", type=int, default=size, metavar="MB", help=f"of the model ({size})")
        one.add_argument("--only", nargs="+", choices=module.CASES, default=module.CASES, help="leave out others")
        one.add_argument("--json", action="store_true", help="the rounds as JSON, the tables on stderr")
        one.add_argument("--plot", type=Path, help=f"where to draw {_DRAWN.get(name, 'the longest')} (.png, .svg)")
        if name == "ready":
            one.add_argument("--dtype", default="float16", choices=("float16", "bfloat16", "float32"), help="stored")
        if name not in ("download", "tokenizer"):
            one.add_argument("--link", default="1gbit", help="rate of the link, as tc writes it (1gbit)")
        if name == "tokenizer":
            one.add_argument("--tokenizer-class", default=tokenizer.KINDS[0], choices=tokenizer.KINDS, help="declared")
        if name == "stall":
            one.add_argument("--big-tokenizer", action="store_true", help="a tokenizer of 128k tokens as well")
        one.set_defaults(run=module.main)
    arguments = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that servers and folders go with us
    with contextlib.redirect_stdout(sys.stderr) if arguments.json else contextlib.nullcontext():
        results = arguments.run(arguments)
    if arguments.json:
        print(json.dumps(results))


if __name__ == "__main__":
    main()
