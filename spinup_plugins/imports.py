"""Objects named by import path, as configuration files, the command line and the registry name them."""

from importlib import import_module
from typing import Any

from spinup_plugins.errors import ConfigError, nearest

__all__ = ["import_object"]


def import_object(path: str) -> Any:
    """Import and return the object at ``"package.module:name"``.

    :param path: a module's dotted path, a colon, and a name (dotted for a nested one) in that module
    :raises ConfigError: the path has another form, the module cannot be imported, or it has no such name
    """
    module_name, colon, names = path.partition(":")
    if not (module_name and colon and names):
        raise ConfigError(f"{path!r} is not an import path of the form 'package.module:name'")
    try:
        found: Any = import_module(module_name)
    except Exception as error:  # whatever the module's own code raises
        raise ConfigError(f"cannot import {path!r}: {type(error).__name__}: {error}") from error
    for name in names.split("."):
        if not hasattr(found, name):
            raise ConfigError(f"cannot import {path!r}: no {name!r} there{nearest(name, dir(found))}")
        found = getattr(found, name)
    return found
