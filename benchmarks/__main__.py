"""`python -m benchmarks download [--rounds 5] [--megabytes 1000] [--json]`."""

import argparse

from benchmarks import download

parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
commands = parser.add_subparsers(required=True)
one = commands.add_parser("download", help="bytes from a TLS server into the cache, beside peers")
one.add_argument("--rounds", type=int, default=5)
one.add_argument("--megabytes", type=int, default=1000)
one.add_argument("--json", action="store_true")
one.set_defaults(run=download.main)
arguments = parser.parse_args()
arguments.run(arguments)
