"""Where the data that the code ships lives: inside an installed wheel, or at the top of a checkout."""

from importlib import resources
from pathlib import Path
from typing import Literal

from spinup_plugins.errors import ConfigError

__all__ = ["data_dir", "packaged"]


def data_dir(name: Literal["zoo", "tuning"]) -> Path:
    """Return the folder of one kind of data.

    :param name: ``"zoo"`` (hyperparameters, agents, results) or ``"tuning"`` (search spaces, studies)
    :return: the wheel's copy, ``spinup_plugins/_data/<name>``, where there is one; else the checkout's ``<name>``
    :raises ConfigError: this installation came without it
    """
    package = Path(__file__).parent
    places = (package / "_data" / name, package.parent / name)
    for place in places:
        if place.is_dir():
            return place
    raise ConfigError(f"this installation has no {name}: there is neither '{places[0]}' nor '{places[1]}'; install it anew")


def packaged(path: str) -> Path:
    """Return a file inside an installed package.

    :param path: ``"package:path/within/it"``
    """
    package, _, inner = path.partition(":")
    return Path(str(resources.files(package).joinpath(inner)))
