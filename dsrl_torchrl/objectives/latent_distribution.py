"""How losses evaluate the latent policy with functional parameters."""

from __future__ import annotations

from tensordict import TensorDictBase, TensorDictParams
from tensordict.nn import ProbabilisticTensorDictModule, ProbabilisticTensorDictSequential, TensorDictModule
from torchrl.modules import TanhNormal


def latent_distribution(
    actor_network: ProbabilisticTensorDictSequential, params: TensorDictParams, tensordict: TensorDictBase
) -> TanhNormal:
    """``π^W(· | s)`` with ``params``, with gradients: what ``actor_network.get_dist`` gives.

    An actor of one network and one distribution (every :class:`~torchrl.modules.ProbabilisticActor` around a single
    module) is called on tensors: ``get_dist`` writes each intermediate result to a tensordict, which costs as much as a
    small network itself.

    Args:
        actor_network: functional, as :class:`~torchrl.objectives.LossModule` holds it.
        params: its parameters.
        tensordict: ``[*B]``, with the actor's in keys.
    """
    parts = list(actor_network.module)
    if len(parts) == 2 and type(parts[0]) is TensorDictModule and isinstance(parts[1], ProbabilisticTensorDictModule):
        network, head = parts
        with params.get(("module", "0", "module")).to_module(network.module, preserve_module_state=False):
            outputs = network.module(*[tensordict.get(key) for key in network.in_keys])
        named = dict(zip(network.out_keys, outputs if isinstance(outputs, tuple) else (outputs,), strict=True))
        arguments = {name: named[key] for name, key in zip(head.dist_keys, head.in_keys, strict=True)}
        return head.distribution_class(**arguments, **head.distribution_kwargs)
    with params.to_module(actor_network, preserve_module_state=False):
        return actor_network.get_dist(tensordict)
