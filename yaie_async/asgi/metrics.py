"""The states of a server's workers in Prometheus' text format, by prometheus_client (the extra `metrics`)."""

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, get_args

from yaie_async.asgi.status import State
from yaie_async.asgi.worker_state import WorkerState

if TYPE_CHECKING:
    from prometheus_client import Metric


def exposition(workers: Sequence[WorkerState]) -> tuple[bytes, str]:
    """Return the text and its content type. Imports prometheus_client, so it runs off the event loop.

    The registry is new each time: the one of the app has its own metrics, and its own way to collect those of workers.

    Raises:
        ImportError: prometheus_client is not installed.
    """
    from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, generate_latest

    registry = CollectorRegistry()
    registry.register(_Collector(workers))
    return generate_latest(registry), CONTENT_TYPE_LATEST


class _Collector:
    """A collector of prometheus_client."""

    def __init__(self, workers: Sequence[WorkerState]) -> None:
        self._workers = workers

    def collect(self) -> Iterator["Metric"]:
        from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily

        labels = ["worker", "model"]
        state = GaugeMetricFamily("yaie_async_model_state", "1 for the state of a model.", labels=[*labels, "state"])
        done = GaugeMetricFamily("yaie_async_model_disk_bytes", "Bytes of the files that are on disk.", labels=labels)
        size = GaugeMetricFamily("yaie_async_model_size_bytes", "Bytes of all files.", labels=labels)
        memory = GaugeMetricFamily("yaie_async_model_memory_bytes", "Bytes of parameters and buffers.", labels=labels)
        seconds = GaugeMetricFamily(
            "yaie_async_model_stage_seconds", "Seconds that a stage of the load took.", labels=[*labels, "stage"]
        )
        retries = CounterMetricFamily("yaie_async_model_retries", "Loads repeated after an outage.", labels=labels)
        pids = [worker.pid for worker in self._workers]
        for worker in self._workers:
            # Two workers with the same labels would be refused.
            label = str(worker.pid) if pids.count(worker.pid) == 1 else f"{worker.pid}-{worker.process}"
            for name, model in worker.models.items():
                key = [label, name]
                for one in get_args(State):
                    state.add_metric([*key, one], model.state == one)
                sizes = (done, model.bytes_done), (size, model.bytes_total), (memory, model.memory_bytes)
                for family, value in sizes:
                    if value is not None:
                        family.add_metric(key, value)
                for stage, took in model.steps.items():
                    seconds.add_metric([*key, stage], took)
                retries.add_metric(key, model.retries)
        yield from (state, done, size, memory, seconds, retries)
