"""``use_macro_discount``: one call, for losses and estimators, that later calls don't undo, or one line."""

from __future__ import annotations

import copy
import io
import pickle
from dataclasses import asdict

import pytest
import torch
from torchrl.data import MultiStep
from torchrl.objectives import BCLoss, TQCLoss, ValueEstimators
from torchrl.objectives.value import GAE, MultiAgentGAE, TD0Estimator, TD1Estimator, TDLambdaEstimator

from dsrl_torchrl import LatentActionEnv
from dsrl_torchrl.envs.toy import PointReachEnv
from dsrl_torchrl.errors import UserError
from dsrl_torchrl.latent_env.macro_step import STEPS_KEY
from dsrl_torchrl.objectives.macro_discount import STEPS_ENTRY, use_macro_discount
from dsrl_torchrl.objectives.q_action import QActionLoss
from dsrl_torchrl.objectives.sac import LatentSACLoss, SACOptions, make_sac_loss
from dsrl_torchrl.policies import FlowPolicy

from . import macro_batch
from .any_loss import GAMMA, LMBDA, OFF_POLICY, ON_POLICY, B, Networks, T, macro_transitions, make_sac, target_of

OTHER_GAMMA = 0.75


def make_plain(name):
    torch.manual_seed(0)
    return OFF_POLICY[name][0](Networks())


def drawn(loss, batch):
    torch.manual_seed(3)
    return target_of(loss, batch)


def expected(name, gamma=GAMMA, batch=None):
    return drawn(use_macro_discount(make_plain(name), gamma), macro_transitions(B) if batch is None else batch)


@pytest.fixture(params=OFF_POLICY)
def name(request):
    return request.param


def test_one_step_each_is_torchrls_own_target(name):
    batch, plain = macro_transitions(B), make_plain(name)
    plain.make_value_estimator(ValueEstimators.TD0, gamma=GAMMA)
    theirs = drawn(plain, batch)
    batch["next", "chunk_steps"].fill_(1)
    torch.testing.assert_close(expected(name, batch=batch), theirs)


def test_without_the_call_every_macro_step_counts_once():
    """What a latent env writes, k = 0 at a reset and the step before's at the root included, changes nothing."""
    base_policy = FlowPolicy(observation_dim=2, action_dim=2, pred_horizon=4).freeze()
    torch.manual_seed(0)
    batch = LatentActionEnv(PointReachEnv(num_envs=3), base_policy, act_horizon=3, gamma=GAMMA).rollout(4)
    batch, loss = batch.reshape(-1), make_sac(Networks(2, 8, dtype=torch.float32))
    loss.make_value_estimator(ValueEstimators.TD0, gamma=GAMMA)
    plain = drawn(loss, batch)
    assert (batch["next", STEPS_KEY] > 1).any()
    batch["next", STEPS_KEY].fill_(1)
    torch.testing.assert_close(plain, drawn(use_macro_discount(loss, GAMMA), batch))


def test_a_batch_without_its_step_counts_is_refused(name):
    """TorchRL takes k = 1."""
    with pytest.raises(UserError, match=r"needs \('next', 'chunk_steps'\).*no such entry"):
        expected(name, batch=macro_transitions(B).exclude(STEPS_ENTRY))


def test_the_step_counts_at_the_root_are_refused(name):
    """They are those of the macro step before."""
    loss, batch = use_macro_discount(make_plain(name), GAMMA), macro_transitions(B)
    loss.set_keys(steps_to_next_obs="chunk_steps")
    with pytest.raises(UserError, match="should be under 'next', got 'chunk_steps'"):
        loss(batch)


def test_in_keys_are_all_that_it_reads(name):
    loss, batch = use_macro_discount(make_plain(name), GAMMA), macro_transitions(B)
    assert loss.in_keys.count(STEPS_ENTRY) == 1
    torch.testing.assert_close(drawn(loss, batch.select(*loss.in_keys, strict=False)), expected(name))


def test_keys_renamed_later_are_followed(name):
    loss, batch = use_macro_discount(make_plain(name), GAMMA), macro_transitions(B)
    loss.set_keys(reward="r", terminated="t", steps_to_next_obs=("next", "k"))
    for new, old in {"r": "reward", "t": "terminated", "k": "chunk_steps"}.items():
        batch["next"].rename_key_(old, new)
    torch.testing.assert_close(drawn(loss, batch), expected(name))
    assert {("next", "r"), ("next", "k")} <= set(loss.in_keys) and STEPS_ENTRY not in loss.in_keys
    loss.make_value_estimator()
    assert ("next", "k") in loss.in_keys


def test_estimators_made_later_discount_by_macro_steps(name):
    loss, batch = use_macro_discount(make_plain(name), GAMMA), macro_transitions(B)
    for again in ((), (ValueEstimators.TD0,)):
        loss.make_value_estimator(*again)  # TorchRL's own γ would be 0.99
        torch.testing.assert_close(drawn(loss, batch), expected(name))
    loss.make_value_estimator(gamma=OTHER_GAMMA)
    torch.testing.assert_close(drawn(loss, batch), expected(name, OTHER_GAMMA))
    use_macro_discount(loss, GAMMA)
    torch.testing.assert_close(drawn(loss, batch), expected(name))


def test_an_estimator_of_the_users_is_taken(name):
    loss, batch = use_macro_discount(make_plain(name), GAMMA), macro_transitions(B)
    made = loss.value_estimator
    own = TD0Estimator(gamma=OTHER_GAMMA, value_network=made.value_network)
    own.set_keys(**{key: value for key, value in asdict(made.tensor_keys).items() if key != "steps_to_next_obs"})
    loss.make_value_estimator(own)
    torch.testing.assert_close(drawn(loss, batch), expected(name, OTHER_GAMMA))


def test_what_cannot_be_right_is_refused_and_changes_nothing():
    loss = use_macro_discount(make_sac(Networks()), GAMMA)
    before = drawn(loss, macro_transitions(B))
    for estimator in (ValueEstimators.TD1, ValueEstimators.VTrace, TD1Estimator(gamma=GAMMA, value_network=None)):
        with pytest.raises(UserError, match=r"SACLoss: .*(TD1Estimator|VTrace)"):
            loss.make_value_estimator(estimator)
        torch.testing.assert_close(drawn(loss, macro_transitions(B)), before)


@pytest.mark.parametrize(
    ("target", "arguments", "message"),
    [
        (TD1Estimator(gamma=0.9, value_network=None), {}, "TD1Estimator can't.*TDLambdaEstimator with lmbda=1"),
        (MultiAgentGAE(gamma=0.9, lmbda=0.9, value_network=None), {}, "MultiAgentGAE can't"),
        (BCLoss(Networks().actor()), {}, "BCLoss: "),
        (TD0Estimator(gamma=0.9, value_network=None), {"lmbda": 0.9}, "TD0Estimator has none"),
        (TD0Estimator(gamma=0.9, value_network=None), {"gamma": 1.5}, "gamma must be between 0 and 1, got 1.5"),
        (GAE(gamma=0.9, lmbda=0.9, value_network=None), {"lmbda": -1.0}, "lmbda must be between 0 and 1, got -1.0"),
        (None, {}, "NoneType can't"),
        (TQCLoss(Networks().actor(), Networks().q(), action_spec=None, target_entropy=-1.0), {}, "TQCLoss can't"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_other_targets_and_values_are_refused(target, arguments, message):
    with pytest.raises(UserError, match=message):
        use_macro_discount(target, **{"gamma": GAMMA} | arguments)


def test_n_step_returns_are_refused():
    """Their own discount is γ per macro step."""
    batch = MultiStep(gamma=GAMMA, n_steps=2)(macro_transitions(B, T))
    with pytest.raises(UserError, match="MultiStep's n-step returns"):
        target_of(use_macro_discount(make_sac(Networks()), GAMMA), batch.reshape(-1))


def test_a_copy_is_as_good(name):
    loss = copy.deepcopy(use_macro_discount(make_plain(name), GAMMA))
    assert type(loss).__name__ == type(make_plain(name)).__name__
    torch.testing.assert_close(drawn(loss, macro_transitions(B)), expected(name))


@pytest.mark.parametrize("name", ["ddpg", *ON_POLICY])
def test_a_loss_that_could_be_sent_and_saved_still_can(name):
    """Those of several critics never could: TorchRL's vmap of them is a closure."""
    plain = make_plain(name) if name in OFF_POLICY else ON_POLICY[name](Networks())
    pickle.dumps(plain)
    kind, loss, batch = type(plain), use_macro_discount(plain, GAMMA), macro_transitions(B, T)
    torch.save(loss, file := io.BytesIO())
    file.seek(0)
    copies = pickle.loads(pickle.dumps(loss)), torch.load(file, weights_only=False)
    results = []
    for each in (loss, *copies):
        assert type(each) is type(loss) and isinstance(each, kind)
        torch.manual_seed(3)
        results.append(each(batch.clone()))
        with pytest.raises(UserError, match="no such entry"):
            each(batch.exclude(STEPS_ENTRY))
    for key, value in results[0].items():
        assert all(torch.equal(result[key], value) for result in results), key


@pytest.mark.parametrize("name", ON_POLICY)
def test_on_policy_losses_refuse_a_batch_without_its_step_counts(name):
    loss = use_macro_discount(ON_POLICY[name](Networks()), GAMMA, LMBDA)
    assert STEPS_ENTRY in loss.in_keys and loss.value_estimator.lmbda == LMBDA
    with pytest.raises(UserError, match="no such entry"):
        loss(macro_transitions(B, T).exclude(STEPS_ENTRY))


def test_lambda_stays_too():
    loss = use_macro_discount(ON_POLICY["ppo"](Networks()), GAMMA, LMBDA)
    for value_type in (ValueEstimators.GAE, ValueEstimators.TDLambda):
        loss.make_value_estimator(value_type)
        assert (loss.value_estimator.gamma, loss.value_estimator.lmbda) == (GAMMA, LMBDA)
    loss.make_value_estimator(lmbda=0.5)
    assert (loss.value_estimator.gamma, loss.value_estimator.lmbda) == (GAMMA, 0.5)


@pytest.fixture(params=[GAE, TDLambdaEstimator, TD0Estimator])
def estimator(request):
    options = {} if request.param is TD0Estimator else {"lmbda": LMBDA}
    return use_macro_discount(request.param(gamma=1, value_network=Networks().v(), **options), GAMMA)


def test_estimators_take_tensors_and_refuse_a_batch_without_step_counts(estimator):
    batch = macro_transitions(B, T)
    tensors = batch.select(*estimator.in_keys).items(True, True)
    named = {"_".join(key) if isinstance(key, tuple) else key: value for key, value in tensors}
    torch.testing.assert_close(estimator(**named)[0], estimator(batch.clone())["advantage"])
    for call in (estimator, estimator.value_estimate):
        with pytest.raises(UserError, match="no such entry"):
            call(batch.exclude(STEPS_ENTRY))


def test_estimators_can_be_compiled(estimator):
    """On values that are there: TorchRL's own call of a value network is no one graph."""
    batch = macro_transitions(B, T)
    wanted = estimator(batch)["advantage"].clone()
    estimator.value_network = None
    compiled = torch.compile(estimator, backend="eager", fullgraph=True)
    torch.testing.assert_close(compiled(batch.exclude("advantage"))["advantage"], wanted)


def test_our_losses_without_a_discount_are_refused():
    """TorchRL guesses 0.99."""
    loss = LatentSACLoss(macro_batch.make_actor(), macro_batch.make_q_noise(), action_spec=None, target_entropy=-1.0)
    batch = macro_batch.make_batch().set("action", torch.zeros(macro_batch.B, macro_batch.DIM).double())
    with pytest.raises(UserError, match=r"LatentSACLoss has no discount: use_macro_discount\(loss, gamma=\.\.\.\)"):
        loss(batch)
    td = QActionLoss(macro_batch.make_q_action(), None, None, num_critics=2, backup="min", temperature=0.0)
    with pytest.raises(UserError, match="QActionLoss has no discount"):
        td.make_value_estimator()
    assert use_macro_discount(td, GAMMA) is td and td.in_keys.count(STEPS_ENTRY) == 1


def test_our_losses_keep_the_step_counts():
    sizes = {"latent_dim": macro_batch.DIM, "action_magnitude": macro_batch.MAGNITUDE, "num_critics": 2}
    batch, targets = macro_batch.make_batch(), []
    for gamma in (OTHER_GAMMA, GAMMA):
        torch.manual_seed(0)
        loss = make_sac_loss(macro_batch.make_actor(), macro_batch.make_q_noise(), SACOptions(), gamma=gamma, **sizes)
        loss.double().make_value_estimator(gamma=GAMMA)
        torch.manual_seed(0)
        targets.append(loss._compute_target_v2(batch))
        with pytest.raises(UserError, match="no such entry"):
            loss._compute_target_v2(batch.exclude(STEPS_ENTRY))
    torch.testing.assert_close(*targets)
