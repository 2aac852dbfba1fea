"""`yaie-async demo`: a cold load from a local Hub on this machine."""

from yaie_async.cli.extras import requires_extra
from yaie_async.cli.result import CommandResult, print_status
from yaie_async.cli.tables import field_lines
from yaie_async.demo.run import Report, run_demo
from yaie_async.loader.text import size


def demo() -> CommandResult:
    """Run the demo and return its figures.

    Raises:
        LoaderError: the extra `demo` is not installed, or the load failed.
    """
    with requires_extra("demo"):
        report = run_demo(print_status)
    return CommandResult(_document(report), [*field_lines(_rows(report))])


def _rows(report: Report) -> list[tuple[str, str]]:
    imports = "including the imports of torch and transformers" if report.cold else "torch had been imported before"
    noise = " (random weights: noise)" if report.checkpoint.random else ""
    return [
        ("model", f"{report.checkpoint.repo_id}: {report.checkpoint.what}"),
        ("class", f"{report.model_class}, {report.dtype}, on {report.device}, {report.parameters:,} parameters"),
        ("fetched", f"{size(report.bytes)} in {report.files} files, verified"),
        ("ready after", f"{report.seconds:.2f} s, {imports}"),
        ("longest loop stall", f"{report.longest_stall * 1000:.0f} ms (measured by {report.beats:,} heartbeats)"),
        ("prompt", report.prompt),
        ("answer", f"{report.text}{noise}"),
    ]


def _document(report: Report) -> dict[str, object]:
    return {
        "model": report.checkpoint.repo_id,
        "what": report.checkpoint.what,
        "random_weights": report.checkpoint.random,
        "model_class": report.model_class,
        "dtype": report.dtype,
        "device": report.device,
        "parameters": report.parameters,
        "files": report.files,
        "bytes": report.bytes,
        "cold": report.cold,
        "seconds": round(report.seconds, 3),
        "longest_stall_ms": round(report.longest_stall * 1000, 1),
        "beats": report.beats,
        "prompt": report.prompt,
        "text": report.text,
    }
