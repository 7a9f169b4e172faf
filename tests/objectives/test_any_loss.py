"""TorchRL's own losses on macro transitions: every target, by hand, discounts by γ^k (Eq. 4)."""

from __future__ import annotations

import pytest
import torch
from tensordict import TensorDict
from torchrl.collectors import Collector
from torchrl.objectives import ValueEstimators
from torchrl.objectives.value import GAE, TD0Estimator, TDLambdaEstimator

from dsrl_torchrl import LatentActionEnv
from dsrl_torchrl.envs.toy import PointReachEnv
from dsrl_torchrl.errors import UserError
from dsrl_torchrl.objectives.macro_discount import use_macro_discount
from dsrl_torchrl.policies import FlowPolicy

from .any_loss import GAMMA, LMBDA, OFF_POLICY, ON_POLICY, B, Networks, T, evaluate, macro_transitions, target_of

CLOSE = {"rtol": 1e-6, "atol": 1e-9}


def parts(batch):
    """γ^k, and what is left of a bootstrap and of a trace, ``[*B]``."""
    following = batch["next"].apply(lambda x: x.squeeze(-1) if x.shape[-1] == 1 else x)
    alive, going = ~following["terminated"], ~following["done"]
    return GAMMA ** following["chunk_steps"].double(), alive.double(), going.double(), following["reward"]


def td0(batch, v, next_v):
    discount, alive, _, reward = parts(batch)
    return reward + discount * alive * next_v


def gae(batch, v, next_v):
    """``Σ_i Π_{j<i} (γ^k_j λ) δ_i``, summed from every t to the end of its episode."""
    discount, _, going, _ = parts(batch)
    delta = td0(batch, v, next_v) - v
    advantage = torch.zeros_like(delta)
    for t in range(T):
        weight = torch.ones(len(delta), dtype=torch.float64)
        for i in range(t, T):
            advantage[:, t] += weight * delta[:, i]
            weight *= discount[:, i] * LMBDA * going[:, i]
    return advantage + v


def td_lambda(batch, v, next_v):
    """``(1 - λ) Σ_n λ^{n-1} G^(n) + λ^{N-1} G^(N)``, N steps to the end of the episode or batch."""
    discount, alive, going, reward = parts(batch)
    value = torch.zeros_like(reward)
    for b in range(len(value)):
        for t in range(T):
            so_far, weight, share = 0.0, 1.0, 1.0  # rewards, their discount, λ^{n-1}
            for i in range(t, T):
                so_far = so_far + weight * reward[b, i]
                weight = weight * discount[b, i]
                last = i == T - 1 or not going[b, i]
                n_step = so_far + weight * alive[b, i] * next_v[b, i]
                value[b, t] += share * (1.0 if last else 1 - LMBDA) * n_step
                if last:
                    break
                share *= LMBDA
    return value


ESTIMATORS = {
    "td0": (ValueEstimators.TD0, TD0Estimator, td0, None),
    "td_lambda": (ValueEstimators.TDLambda, TDLambdaEstimator, td_lambda, LMBDA),
    "gae": (ValueEstimators.GAE, GAE, gae, LMBDA),
}


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


@pytest.mark.parametrize("name", OFF_POLICY)
def test_off_policy_target_equals_the_equation(name):
    make, value = OFF_POLICY[name]
    loss, batch = use_macro_discount(make(Networks()), GAMMA), macro_transitions(B)
    expected = td0(batch, None, value(loss, batch["next"]))
    torch.testing.assert_close(target_of(loss, batch), expected, **CLOSE)


@pytest.mark.parametrize("estimator", ESTIMATORS)
@pytest.mark.parametrize("name", ON_POLICY)
def test_on_policy_losses_equal_the_equation(name, estimator):
    """The losses of actor and critic, from the targets by hand, at the policy that has acted."""
    value_type, _, by_hand, lmbda = ESTIMATORS[estimator]
    loss, batch = ON_POLICY[name](Networks()), macro_transitions(B, T)
    loss.make_value_estimator(value_type)
    use_macro_discount(loss, GAMMA, lmbda)
    with loss.actor_network_params.to_module(loss.actor_network), torch.no_grad():
        dist = loss.actor_network.get_dist(batch.clone())
    log_prob = dist.log_prob(batch["action"])
    batch["action_log_prob"], batch["loc"], batch["scale"] = log_prob, *loc_and_scale(loss, batch)
    v, next_v = (evaluate(loss.critic_network_params, td["observation"]) for td in (batch, batch["next"]))
    target = by_hand(batch, v, next_v)
    out = loss(batch)
    torch.testing.assert_close(out["loss_critic"].detach(), ((v - target) ** 2).mean(), **CLOSE)
    gain = log_prob if name == "a2c" else 1.0  # PPO's ratio is 1 here
    torch.testing.assert_close(out["loss_objective"].detach(), -(gain * (target - v)).mean(), **CLOSE)


def loc_and_scale(loss, batch):
    with loss.actor_network_params.to_module(loss.actor_network), torch.no_grad():
        out = loss.actor_network[0](batch.select("observation"))
    return out["loc"], out["scale"]


@pytest.mark.parametrize("options", [{}, {"vectorized": True}, {"deactivate_vmap": True}], ids=str)
@pytest.mark.parametrize("estimator", ESTIMATORS)
@pytest.mark.parametrize("shape", [(T,), (B, T), (2, 3, T)], ids=str)
def test_an_estimator_by_itself_equals_the_equation(estimator, shape, options):
    """As PPO scripts call it, with one env, several, or several of several."""
    _, cls, by_hand, lmbda = ESTIMATORS[estimator]
    if estimator == "td0":
        options = {name: value for name, value in options.items() if name != "vectorized"}
    critic, batch = Networks().v(), macro_transitions(6 * T)[: torch.Size(shape).numel()].reshape(shape)
    module = cls(gamma=0.5, value_network=critic, **options, **({} if lmbda is None else {"lmbda": 0.5}))
    assert use_macro_discount(module, GAMMA, lmbda) is module
    flat = batch.reshape(-1, T)
    params = {"module": {"weight": critic.module.weight, "bias": critic.module.bias}}
    v, next_v = (evaluate(TensorDict(params), td["observation"]) for td in (flat, flat["next"]))
    target = by_hand(flat, v, next_v)
    out = module(batch.clone())
    torch.testing.assert_close(out["value_target"].reshape(-1, T), target, **CLOSE)
    torch.testing.assert_close(out["advantage"].reshape(-1, T), target - v, **CLOSE)
    torch.testing.assert_close(module.value_estimate(batch.clone()).reshape(-1, T), target, **CLOSE)


@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_one_call_of_the_value_network_is_enough(estimator):
    """``shifted=True``: V(s') is V of the next row, but at the end of an episode or batch."""
    _, cls, by_hand, lmbda = ESTIMATORS[estimator]
    critic, batch = Networks().v(), macro_transitions(B, T)
    goes_on = ~batch["next", "done"][:, :-1]
    batch["observation"][:, 1:] = batch["next", "observation"][:, :-1].where(goes_on, batch["observation"][:, 1:])
    options = {} if lmbda is None else {"lmbda": lmbda}
    module = use_macro_discount(cls(gamma=1, value_network=critic, shifted=True, shifted_budget=T, **options), GAMMA)
    v, next_v = (critic(td.select("observation"))["state_value"].squeeze(-1) for td in (batch, batch["next"]))
    target = module(batch)["value_target"].squeeze(-1)
    torch.testing.assert_close(target, by_hand(batch, v, next_v).detach(), **CLOSE)


@pytest.fixture
def env():
    base_policy = FlowPolicy(observation_dim=2, action_dim=2, pred_horizon=4).freeze()
    return LatentActionEnv(PointReachEnv(num_envs=4, seed=0), base_policy, gamma=0.98)


@pytest.mark.parametrize("name", [*OFF_POLICY, *ON_POLICY])
def test_it_trains_on_the_latent_env(name, env):
    make = ON_POLICY[name] if name in ON_POLICY else OFF_POLICY[name][0]
    observation = env.observation_spec["observation"].shape[-1]
    loss = use_macro_discount(
        make(Networks(observation, env.latent_dim, env.decoder.action_magnitude, torch.float32)), env.gamma
    )
    optimiser = torch.optim.Adam(loss.parameters())
    before = [p.clone() for p in loss.parameters()]
    actor = loss.get_stateful_net("actor_network")
    for batch in Collector(env, actor, frames_per_batch=16, total_frames=32, auto_register_policy_transforms=False):
        losses = loss(batch if name in ON_POLICY else batch.reshape(-1))
        assert all(value.isfinite().all() for value in losses.values())
        sum(value for key, value in losses.items() if key.startswith("loss_")).backward()
        optimiser.step()
        optimiser.zero_grad()
    assert any((p != q).any() for p, q in zip(loss.parameters(), before, strict=True))


@pytest.mark.parametrize("name", [*OFF_POLICY, *ON_POLICY])
def test_a_collector_that_drops_the_step_counts_is_refused(name, env):
    """TorchRL takes k = 1."""
    make = ON_POLICY[name] if name in ON_POLICY else OFF_POLICY[name][0]
    loss = use_macro_discount(make(Networks(2, env.latent_dim, dtype=torch.float32)), env.gamma)
    actor = loss.get_stateful_net("actor_network")
    (batch,) = Collector(env, actor, frames_per_batch=16, total_frames=16, compact_obs=True)
    batch["next", "observation"] = batch["observation"]
    with pytest.raises(UserError, match="has no such entry"):
        loss(batch if name in ON_POLICY else batch.reshape(-1))
