"""The parameters of diffusers' schedulers, and their defaults."""

import inspect
import math

from diffusers import schedulers

from common import save_rows


def parameters(cls):
    """Those of a configuration; defaults that JSON does not have are None."""
    signature = inspect.signature(cls.__init__)
    return {
        name: parameter.default if is_json(parameter.default) else None
        for name, parameter in signature.parameters.items()
        if name not in ("self", "args", "kwargs")
    }


def is_json(value):
    if isinstance(value, float):
        return math.isfinite(value)
    return value is None or isinstance(value, bool | int | str | list)


def make(folder, emoji):
    classes = {name: getattr(schedulers, name) for name in sorted(dir(schedulers))}
    rows = [
        {"class": name, "parameters": parameters(cls)}
        for name, cls in classes.items()
        if name.endswith("Scheduler") and inspect.isclass(cls)
    ]
    save_rows(folder / "parameters.json", {"classes": rows})
