"""Tensors of weight files that still arrive, each read when `from_pretrained` asks for it.

A tensor that keeps its dtype on the CPU is a slice of its file, mapped privately for reading and writing: its pages
belong to the page cache and are shared by all processes, and a write to a weight copies the page and never reaches the
file. A tensor that is cast or goes to another device is read and cast piece by piece as its pieces arrive, through one
small buffer, so that no private copy in the stored dtype exists. (Mapping these tensors too would gain nothing:
unmapping a large mapping whose pages were touched stalls the process for 37-130 ms.)

The mapping is read only where bytes have arrived. Blocks arrive whole and begin on page boundaries, so a page that was
copied by a write never lacks later bytes.
"""

from __future__ import annotations

import mmap
import os
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from yaie_async.model.build_progress import BuildProgress
from yaie_async.model.header import HeaderError, Stored, header_length, parse_header
from yaie_async.store.arriving_file import ArrivalError, ArrivingFile

if TYPE_CHECKING:
    import torch

# Bytes read and cast at a time: they fit into a processor's cache, and are one block of a download.
_PIECE = 4 << 20


class ArrivingFiles:
    """The weight files of one build, read by several threads while they arrive."""

    def __init__(
        self,
        arriving: Mapping[str, ArrivingFile],
        cancelled: Callable[[], bool],
        unwanted: Callable[[], bool],
        progress: BuildProgress,
    ) -> None:
        self.progress: BuildProgress = progress
        self._cancelled = cancelled  # checked before every piece
        self._unwanted = unwanted  # checked while bytes are missing: whether to give up instead of waiting for them
        self._changed = threading.Condition()
        self._reading = 0
        self._closed = False
        self._buffers: list[bytearray] = []
        self._descriptors: list[int] = []
        self._arriving = arriving

    def tensors(self) -> dict[str, ArrivingTensor]:
        """All tensors by name, as soon as the headers have arrived.

        Where two files have a tensor of one name, the later file in sorted order wins, as in stock.
        """
        found: dict[str, ArrivingTensor] = {}
        for name in sorted(self._arriving):
            with self.reading():
                descriptor = self._arriving[name].open(self._gives_up)
                self._descriptors.append(descriptor)
            file = _File(self._arriving[name], descriptor)
            try:
                found |= {key: ArrivingTensor(self, file, stored) for key, stored in self._header(file).items()}
            except HeaderError as error:
                raise HeaderError(f"{name}: {error}") from error
        self.progress.expect(sum(tensor.size for tensor in found.values()))
        return found

    def _header(self, file: _File) -> Mapping[str, Stored]:
        size = file.arriving.size
        first = bytearray(min(8, size))
        with self.reading():
            self.read(file, 0, memoryview(first))
            text = bytearray(header_length(bytes(first), size))
            self.read(file, 8, memoryview(text))
        tensors = parse_header(bytes(text), size)
        if foreign := {stored.dtype.code for stored in tensors.values() if stored.dtype.name is None}:
            raise HeaderError(f"{', '.join(sorted(foreign))} is not read while it arrives")
        return tensors

    @contextmanager
    def reading(self) -> Iterator[None]:
        """Keep the descriptors open during the block: `close` waits for its end."""
        with self._changed:
            if self._closed:
                raise ArrivalError("closed")
            self._reading += 1
        try:
            yield
        finally:
            with self._changed:
                self._reading -= 1
                self._changed.notify_all()

    @contextmanager
    def buffer(self) -> Iterator[bytearray]:
        """A buffer of one piece. Buffers are reused: at most one exists for each thread that reads."""
        try:
            buffer = self._buffers.pop()
        except IndexError:
            buffer = bytearray(_PIECE)
        yield buffer
        self._buffers.append(buffer)

    def wait(self, file: _File, start: int, stop: int) -> None:
        if self._cancelled() or self._closed:
            raise ArrivalError(file.arriving.path)
        file.arriving.wait(start, stop, self._gives_up)

    def read(self, file: _File, start: int, into: memoryview) -> None:
        """Fill `into` with the bytes from `start`, once they have arrived."""
        self.wait(file, start, start + len(into))
        while into:
            count = os.preadv(file.descriptor, [into], start)
            if not count:
                raise ArrivalError(file.arriving.path)
            start, into = start + count, into[count:]

    def _gives_up(self) -> bool:
        return self._closed or self._cancelled() or self._unwanted()

    def close(self) -> None:
        """Make every read fail, wait for the readers to leave, and close the files. Mappings stay valid."""
        with self._changed:
            self._closed = True
            self._changed.wait_for(lambda: not self._reading)
        for descriptor in self._descriptors:
            os.close(descriptor)


class _File:
    """One weight file: the arriving file, an open descriptor, and a private mapping of all its bytes."""

    def __init__(self, arriving: ArrivingFile, descriptor: int) -> None:
        self.arriving = arriving
        self.descriptor = descriptor
        # ACCESS_COPY is MAP_PRIVATE with reading and writing. mmap keeps a descriptor of its own; an empty file
        # can't be mapped, and has no tensors.
        self.mapping: mmap.mmap | None = (
            mmap.mmap(descriptor, arriving.size, access=mmap.ACCESS_COPY) if arriving.size else None
        )


class ArrivingTensor:
    """The place of a tensor in a state dict before its bytes have arrived.

    transformers calls `value[...].to(device=..., dtype=...)` in a pool of threads. Device and dtype are unknown before,
    and nothing is read before.
    """

    def __init__(self, files: ArrivingFiles, file: _File, stored: Stored) -> None:
        self._files = files
        self._file = file
        self._stored = stored
        self.size: int = stored.stop - stored.start

    def __getitem__(self, index: object) -> ArrivingTensor:
        if index is not ...:
            raise TypeError(f"A tensor that is arriving is only read whole, not {index!r}.")
        return self

    def to(self, *, device: Any, dtype: torch.dtype) -> torch.Tensor:
        """The tensor on this device in this dtype. Blocks until its bytes have arrived, or raises ArrivalError."""
        import torch

        stored = self._stored
        has: torch.dtype = getattr(torch, str(stored.dtype.name))
        kept = has == dtype and torch.device(device).type == "cpu" and stored.start % stored.item == 0
        with self._files.reading():
            if kept and stored.stop > stored.start:
                return self._mapped(has)
            return self._copied(has, torch.empty(stored.shape, dtype=dtype, device=device))

    def _mapped(self, dtype: torch.dtype) -> torch.Tensor:
        import torch

        start, stop = self._stored.start, self._stored.stop
        self._files.wait(self._file, start, stop)
        self._files.progress.add(self.size)
        count = (stop - start) // self._stored.item
        assert self._file.mapping is not None
        return torch.frombuffer(self._file.mapping, dtype=dtype, count=count, offset=start).view(self._stored.shape)

    def _copied(self, dtype: torch.dtype, tensor: torch.Tensor) -> torch.Tensor:
        import torch

        flat, item = tensor.view(-1), self._stored.item
        with self._files.buffer() as buffer:
            for start in range(self._stored.start, self._stored.stop, _PIECE):
                stop = min(start + _PIECE, self._stored.stop)
                self._files.read(self._file, start, memoryview(buffer)[: stop - start])
                first = (start - self._stored.start) // item
                piece = torch.frombuffer(buffer, dtype=dtype, count=(stop - start) // item)
                flat[first : first + len(piece)].copy_(piece)
                self._files.progress.add(stop - start)
        return tensor
