"""Going on with a saved run: a state is loaded whole, or not at all."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from l3rs.optimizer.observed import WatchesLoss
from l3rs.optimizer.surroundings import undisturbed


class Resumable(WatchesLoss):
    """An optimizer that checks a state before it loads it, and stays as it was where the state cannot be loaded."""

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Goes on where a saved run was; the dict stays as it is. Warns if that run has another `total_steps`, with which it goes on.

        Raises:
            ValueError: the state is of other parameters, or of another optimizer; the optimizer stays as it was.
        """
        self._load(state_dict)

    def _load(self, state_dict: dict[str, Any]) -> None:
        """Loads. `load_state_dict` and its overrides call it themselves, so that the warning is of their caller's line."""
        before, steps = dict(self.__dict__), self.param_groups[0].get("total_steps")
        hooks = (  # of users, the first ones may change the dict before it is checked, and the last ones see the finished state
            self.register_load_state_dict_pre_hook(lambda _, saved: self._check(saved)),
            self.register_load_state_dict_post_hook(lambda _: self._finish_loading(), prepend=True),
        )
        try:
            with undisturbed():
                super().load_state_dict(state_dict)
        except Exception:
            self.__dict__.clear()
            self.__dict__.update(before)
            raise
        finally:
            for hook in hooks:
                hook.remove()
        after = self.param_groups[0].get("total_steps")
        if after != steps:
            warnings.warn(f"the loaded state is of a run of total_steps={after}; that takes the place of {steps}", stacklevel=3)

    def _check(self, state_dict: dict[str, Any]) -> dict[str, Any]:
        """Gives what torch is to load of a state dict. Raises ValueError if it is of something else than what is here."""
        raise NotImplementedError

    def _finish_loading(self) -> None:
        """Takes over what torch has loaded, before the hooks of users."""
        raise NotImplementedError

    def _copy(self, p: Tensor, saved: Mapping[str, Any], fresh: Mapping[str, Tensor]) -> None:
        """Copies the saved state of a parameter, in the dtypes of a fresh one.

        torch shares tensors with the dict, which a step would change, and casts floating ones to the dtype of their parameter, which would
        round the float32 averages of a bfloat16 one.
        """
        for key, t in saved.items():
            if isinstance(t, Tensor):
                self.state[p][key] = t.detach().to(p.device, fresh[key].dtype if key in fresh else t.dtype, copy=True)


__all__ = ["Resumable"]
