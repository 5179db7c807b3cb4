"""Observations as rows of floats, as Stable-Baselines3's ``preprocess_obs`` and ``FlattenExtractor`` make them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
from gymnasium import spaces
from stable_baselines3.common.preprocessing import get_flattened_obs_dim, is_image_space
from stable_baselines3.common.torch_layers import CombinedExtractor, FlattenExtractor
from torch import nn

from spinup_plugins.engine.networks import Floats, Unsupported
from spinup_plugins.errors import EnvError

__all__ = ["Observations", "check_extractor", "refuse_nan"]


def check_extractor(extractor: nn.Module) -> None:
    """Raise :class:`Unsupported` for a features extractor that does more than lay observations flat, side by side."""
    if type(extractor) not in (FlattenExtractor, CombinedExtractor):
        raise Unsupported(f"a features extractor of class {type(extractor).__name__}")
    if isinstance(extractor, CombinedExtractor) and any(type(m) is not nn.Flatten for m in extractor.extractors.values()):
        raise Unsupported("images")


def refuse_nan(observations: npt.NDArray[Any]) -> None:
    """Raise :class:`EnvError` for observations with NaN, of which there would be no action but NaN, or any."""
    if np.isnan(observations).any():
        raise EnvError("the observation given to predict() holds NaN")


class Observations:
    """Turns observations of a space into network input.

    :param space: the policy's observation space; a dictionary's parts are laid side by side, in its order
    :param normalize_images: whether the policy divides images by 255
    :raises Unsupported: for images
    """

    def __init__(self, space: spaces.Space[Any], normalize_images: bool) -> None:
        self.space = space
        self.parts: dict[str, Observations] = {}
        self.size: int  #: width of a row
        if isinstance(space, spaces.Dict):
            self.parts = {key: Observations(part, normalize_images) for key, part in space.spaces.items()}
            self.size = sum(part.size for part in self.parts.values())
            self.rows: Callable[[Any], Floats] = self._side_by_side
            return
        # A dictionary's images go through a CNN whether they are normalised or not, a lone one only by its policy.
        if isinstance(space, spaces.Box) and is_image_space(space) and normalize_images:
            raise Unsupported("images")
        if not isinstance(space, (spaces.Box, spaces.Discrete, spaces.MultiDiscrete, spaces.MultiBinary)):
            raise Unsupported(f"observations of a {type(space).__name__} space")
        if isinstance(space, spaces.MultiDiscrete) and len(space.nvec.shape) > 1:
            raise Unsupported("observations of a MultiDiscrete space of several axes")
        self.size = get_flattened_obs_dim(space)
        self.rows = self._one_hot if isinstance(space, (spaces.Discrete, spaces.MultiDiscrete)) else self._flat
        self._nvec = space.nvec if isinstance(space, spaces.MultiDiscrete) else None

    def _flat(self, observations: Any) -> Floats:
        return np.ascontiguousarray(observations, dtype=np.float32).reshape(-1, self.size)

    def _one_hot(self, observations: Any) -> Floats:
        options: Any = self.size if self._nvec is None else self._nvec
        if self._nvec is None:
            choices = np.asarray(observations, dtype=np.int64).reshape(-1, 1)
            starts = np.zeros(1, dtype=np.int64)
        else:
            choices = np.asarray(observations, dtype=np.int64).reshape(-1, len(self._nvec))
            starts = np.concatenate([[0], np.cumsum(self._nvec[:-1])])
        outside = (choices < 0) | (choices >= options)
        if outside.any():
            row = int(outside.any(axis=1).argmax())
            raise EnvError(f"observation {choices[row].tolist()} is outside its space {self.space}")
        rows = np.zeros((len(choices), self.size), dtype=np.float32)
        np.put_along_axis(rows, choices + starts, np.float32(1.0), axis=1)
        return rows

    def _side_by_side(self, observations: Any) -> Floats:
        return np.concatenate([part.rows(observations[key]) for key, part in self.parts.items()], axis=1)

    def batch(self, observation: Any) -> tuple[Floats, bool] | None:
        """Return rows for one observation or several, and whether it was several; ``None`` for what is neither.

        :param observation: an array of the space's shape, or with one more axis in front; a dictionary of such
        """
        if self.parts:
            if not isinstance(observation, dict) or observation.keys() != self.parts.keys():
                return None
            found = [part.batch(observation[key]) for key, part in self.parts.items()]
            prepared = [each for each in found if each is not None]
            if len(prepared) < len(found) or len({(len(rows), several) for rows, several in prepared}) > 1:
                return None
            return np.concatenate([rows for rows, _ in prepared], axis=1), prepared[0][1]
        if isinstance(observation, (np.generic, int, float, list)):
            observation = np.array(observation)
        if not isinstance(observation, np.ndarray) or observation.dtype == object:
            return None
        shape = self.space.shape
        if observation.shape == shape:
            return self.rows(observation), False
        if observation.shape[1:] == shape and len(observation) and observation.ndim == len(shape or ()) + 1:
            return self.rows(observation), True
        return None
