"""An env whose episodes are written down beforehand: every SMDP sum can be computed by hand."""

from __future__ import annotations

import torch
from tensordict import TensorDict
from torchrl.data import Bounded, Categorical, Composite, Unbounded
from torchrl.envs import EnvBase


class ScriptedEnv(EnvBase):
    """Sub-env ``i`` ends after ``lengths[i]`` steps, by ``terminated`` if ``terminates[i]``, else by ``truncated``.

    The reward of step ``t`` (from 1) is ``t``; the observation is ``[t, action sum so far]``. Stepping on after the
    end goes on counting, as a batched simulator would: whoever looks at that sees wrong numbers.
    """

    def __init__(self, lengths: list[int], terminates: list[bool]) -> None:
        super().__init__(batch_size=[len(lengths)])
        self.lengths = torch.tensor(lengths).unsqueeze(-1)
        self.terminates = torch.tensor(terminates).unsqueeze(-1)
        n = len(lengths)
        self.t = torch.zeros(n, 1, dtype=torch.int64)
        self.total = torch.zeros(n, 1)
        flag = Categorical(2, shape=(n, 1), dtype=torch.bool)
        self.observation_spec = Composite(observation=Unbounded((n, 2)), success=flag.clone(), shape=(n,))
        self.action_spec = Bounded(-1, 1, shape=(n, 1))
        self.reward_spec = Unbounded((n, 1))
        self.done_spec = Composite(done=flag.clone(), terminated=flag.clone(), truncated=flag.clone(), shape=(n,))

    def _observe(self) -> TensorDict:
        return TensorDict(
            {"observation": torch.cat([self.t.float(), self.total], -1), "success": self.t == 2}, self.batch_size
        )

    def _reset(self, tensordict, **kwargs):
        mask = torch.ones_like(self.t, dtype=torch.bool)
        if tensordict is not None and "_reset" in tensordict.keys():
            mask = tensordict["_reset"]
        self.t = torch.where(mask, 0, self.t)
        self.total = torch.where(mask, 0.0, self.total)
        return self._observe()

    def _step(self, tensordict):
        self.t = self.t + 1
        self.total = self.total + tensordict["action"]
        ended = self.t >= self.lengths
        out = self._observe()
        out["reward"] = self.t.float()
        out["terminated"] = ended & self.terminates
        out["truncated"] = ended & ~self.terminates
        out["done"] = ended
        return out

    def _set_seed(self, seed):
        return seed


class ScriptedCameraEnv(ScriptedEnv):
    """The same episodes, seen through a nested entry ``("agent", "state")`` and uint8 ``pixels``; no ``observation``.

    The state is ``[t, action sum so far]``, every pixel of the image ``[2, 4, 4]`` is ``t``.
    """

    def __init__(self, lengths: list[int], terminates: list[bool]) -> None:
        super().__init__(lengths, terminates)
        n = len(lengths)
        self.observation_spec = Composite(
            agent=Composite(state=Unbounded((n, 2)), shape=(n,)),
            pixels=Bounded(0, 255, shape=(n, 2, 4, 4), dtype=torch.uint8),
            success=Categorical(2, shape=(n, 1), dtype=torch.bool),
            shape=(n,),
        )

    def _observe(self) -> TensorDict:
        flat = super()._observe()
        pixels = self.t.to(torch.uint8)[..., None, None].expand(-1, 2, 4, 4).clone()
        entries = {"agent": {"state": flat["observation"]}, "pixels": pixels, "success": flat["success"]}
        return TensorDict(entries, self.batch_size)
