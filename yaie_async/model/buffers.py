"""Buffers of a model's own code that no checkpoint holds, as a rotary embedding's `inv_freq`.

`from_pretrained` makes a model without data, and gives such a buffer uninitialised memory. For its own
classes transformers computes them afterwards; for code from a repository they stay what the memory held before.
"""

from __future__ import annotations

import copy
import os
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from yaie_async.model.header import read_header

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

    from yaie_async.model.request import BuildRequest


class UnknownBuffers(Exception):
    """Raised with the names of buffers whose values could not be computed."""


def compute_buffers(model: PreTrainedModel, request: BuildRequest) -> None:
    """Give the buffers that no checkpoint holds the values that a new model of this class has.

    A second model is made for that, of which only the buffers have data. Models of transformers' own are left alone.
    So are buffers that may be in the checkpoint: all of its state dict, unless its class says that one may be missing
    there and it is.

    Raises:
        UnknownBuffers: the second model can't be made, or its buffers have other shapes.
    """
    import torch

    if type(model).__module__.startswith("transformers."):
        return
    stored = model.state_dict().keys() - _left_out(model, request)
    empty = {name: buffer for name, buffer in model.named_buffers() if name not in stored and not buffer.is_meta}
    if not empty:
        return
    try:
        with _parameters_without_data():
            second = type(model)(_new_config(model, request))
        made = dict(second.named_buffers())
    except Exception as error:
        raise UnknownBuffers(*empty) from error
    if unknown := [name for name, buffer in empty.items() if name not in made or made[name].shape != buffer.shape]:
        raise UnknownBuffers(*unknown)
    with torch.no_grad():
        for name, buffer in empty.items():
            buffer.copy_(made[name])


def _left_out(model: PreTrainedModel, request: BuildRequest) -> set[str]:
    """What of the state dict is not in the checkpoint, by the leave of the model's class."""
    patterns = getattr(model, "_keys_to_ignore_on_load_missing", None) or ()
    names = {name for name in model.state_dict() if any(re.search(pattern, name) for pattern in patterns)}
    if not names or request.manifest.pickled:
        return set()
    keys: set[str] = set()
    for weights in request.manifest.weights:
        with open(request.folder / weights.path, "rb") as file:
            keys |= read_header(file, os.fstat(file.fileno()).st_size).keys()
    return {name for name in names if not any(key.endswith(name) or name.endswith(key) for key in keys)}


def _new_config(model: PreTrainedModel, request: BuildRequest) -> Any:
    """The config as it was before the model's constructor, which may have changed it."""
    if request.config.get("model_type") != model.config.model_type:
        return copy.deepcopy(model.config)  # a part of that of config.json
    passed = {name: value for name, value in request.model_kwargs.items() if name in request.config}
    return type(model.config).from_dict({**request.config, **passed})


@contextmanager
def _parameters_without_data() -> Iterator[None]:
    """Move the parameters that this thread gives to modules to the meta device at once; buffers keep their data."""
    from torch import nn
    from torch.nn.modules.module import register_module_parameter_registration_hook

    thread = threading.get_ident()

    def without_data(_module: nn.Module, _name: str, parameter: torch.Tensor | None) -> Any:
        if parameter is None or threading.get_ident() != thread:
            return None
        return nn.Parameter(parameter.to("meta"), requires_grad=parameter.requires_grad)

    handle = register_module_parameter_registration_hook(without_data)
    try:
        yield
    finally:
        handle.remove()
