"""Who trains which encoder, what an update sees, and what the base policy and the acting policy see."""

from __future__ import annotations

from functools import partial

import pytest
import torch

from dsrl_torchrl.agents import DSRLSAC, TD3, BestOfN
from dsrl_torchrl.agents.agent import CRITIC
from dsrl_torchrl.errors import UserError
from dsrl_torchrl.networks.encoders import ACTOR_FEATURES_KEY, FEATURES_KEY

from .cases import AGENTS, every_part, make_agent, make_batch, pixel_env, state, state_env

OWN = {"actor_encoder": "own"}
CAN_ENCODE = pytest.mark.parametrize("kind", [kind for kind in AGENTS if kind.actor_can_encode])


def moved(module, before):
    return {name for name, p in module.named_parameters() if not torch.equal(p, before[name])}


@CAN_ENCODE
def test_the_actors_own_encoder_is_trained_by_the_actor_alone_and_the_critics_by_td_alone(kind):
    env = pixel_env()
    for actor in (False, True):
        agent = make_agent(kind, env, networks=OWN)
        batch = make_batch(agent, env)
        parts = every_part(agent) if actor else frozenset({CRITIC})
        critics, own = (
            {n: p.detach().clone() for n, p in m.named_parameters()} for m in (agent.encoder, agent.own_encoder)
        )
        agent.update(batch, parts)
        assert moved(agent.encoder, critics) == set(critics)
        assert moved(agent.own_encoder, own) == (set(own) if actor else set())


@CAN_ENCODE
def test_the_policy_acts_by_the_actors_encoder_and_the_critics_value_by_theirs(kind):
    env = pixel_env()
    agent = make_agent(kind, env, networks=OWN)
    td = env.reset().select(*agent.in_keys)
    noise = torch.randn(4, env.latent_dim)

    def answers():
        torch.manual_seed(2)
        return agent.policy(td.clone())["action"], agent.noise_values(td, noise)

    with torch.no_grad():
        for encoder, changes in ((agent.own_encoder, (True, False)), (agent.encoder, (False, True))):
            before = answers()
            for p in encoder.parameters():
                p.add_(0.3 * torch.randn_like(p))
            assert [not torch.equal(a, b) for a, b in zip(before, answers(), strict=True)] == list(changes)


@CAN_ENCODE
def test_own_encoders_are_saved_averaged_and_loaded(kind, tmp_path):
    env = pixel_env()
    agent, other = (make_agent(kind, env, seed, networks=OWN, actor_average=0.5) for seed in (0, 1))
    batch = make_batch(agent, env)
    for _ in range(2):
        agent.update(batch, every_part(agent))
    kept, own = agent.kept_policy.encoder, agent.own_encoder
    assert any(not torch.equal(a, b) for a, b in zip(kept.parameters(), own.parameters(), strict=True))
    agent.save(tmp_path)
    other.load(tmp_path)
    td = env.reset().select(*agent.in_keys)
    for policy, loaded in ((agent.policy, other.policy), (agent.kept_policy, other.kept_policy)):
        actions = []
        for each in (policy, loaded):
            torch.manual_seed(3)
            actions.append(each(td.clone())["action"])
        assert torch.equal(*actions)


def test_states_need_no_encoder_of_the_actors_and_others_refuse_one():
    assert make_agent(DSRLSAC, networks=OWN).own_encoder is None
    for kind in (TD3, BestOfN):
        with pytest.raises(UserError, match=f"networks.actor_encoder=own is not for {kind.__name__}"):
            make_agent(kind, state_env(), networks=OWN)


def watch(encoder):
    """The images that an encoder's forward passes get."""
    seen = []
    for each in encoder.encoders:
        each.register_forward_pre_hook(lambda module, args: seen.append(args[0].clone()))
    return seen


def test_updates_see_shifted_images_s_and_next_s_apart_and_the_base_policy_true_ones(kind, monkeypatch):
    """Both pictures of the batch are the same, so that what differs is the draw."""
    env = pixel_env()
    agent = make_agent(kind, env, networks={"random_shift": 2})
    batch = make_batch(agent, env)
    batch["pixels"] = torch.randint_like(batch["pixels"], 256)
    batch["next", "pixels"] = batch["pixels"]
    true = batch["pixels"].clone()
    decoded = []
    decode = env.decoder.base_policy.forward
    monkeypatch.setattr(
        env.decoder.base_policy, "forward", lambda pixels, *rest: decoded.append(pixels) or decode(pixels, *rest)
    )
    now, following = watch(agent.encoder), watch(agent.target_encoder)
    agent.update(batch, every_part(agent))
    (now,) = [x for x in now if x.ndim == 4]
    (following,) = [x for x in following if x.ndim == 4]
    assert not torch.equal(now, true) and not torch.equal(following, true) and not torch.equal(now, following)
    assert torch.equal(batch["pixels"], true)
    known = {image.numpy().tobytes() for image in true}
    assert all(image.numpy().tobytes() in known for images in decoded for image in images.reshape(-1, *true.shape[1:]))


@CAN_ENCODE
def test_the_actors_encoder_gives_the_features_of_the_next_state(kind):
    """By which the TD target's noise is drawn."""
    env = pixel_env()
    agent = make_agent(kind, env, networks=OWN)
    following = agent.encode(make_batch(agent, env))["next"]
    features = agent.own_encoder(following.select(*agent.in_keys))[ACTOR_FEATURES_KEY]
    assert torch.equal(following[ACTOR_FEATURES_KEY], features)


@CAN_ENCODE
def test_the_actors_encoder_sees_the_shifted_images_of_the_critics(kind):
    env = pixel_env()
    agent = make_agent(kind, env, networks=OWN | {"random_shift": 2})
    batch = make_batch(agent, env)
    batch["pixels"] = torch.randint_like(batch["pixels"], 256)
    critics, own = watch(agent.encoder), watch(agent.own_encoder)
    agent.update(batch, every_part(agent))
    own, critics = ([images for images in seen if images.ndim == 4] for seen in (own, critics))
    assert torch.equal(own[-1], critics[0]) and not torch.equal(own[-1], batch["pixels"])


def test_acting_and_valuing_see_true_images(kind):
    env = pixel_env()
    agent = make_agent(kind, env, networks={"random_shift": 4, "color_jitter": (0.2, 0.1, 0.1, 0.03)})
    plain = make_agent(kind, env)
    plain.load_state_dict(agent.state_dict())
    td = env.reset().select(*agent.in_keys)
    noise = torch.randn(4, env.latent_dim)
    for ours, theirs in ((agent.policy, plain.policy), (agent.kept_policy, plain.kept_policy)):
        actions = []
        for policy in (ours, theirs):
            torch.manual_seed(3)
            actions.append(policy(td.clone())["action"])
        assert torch.equal(*actions)
    assert torch.equal(agent.noise_values(td, noise), plain.noise_values(td, noise))


def test_without_augmentation_an_update_is_what_it_was(kind):
    """A shift by no pixel and a jitter by nothing are no augmentation."""
    env = pixel_env()
    results = []
    for networks in ({}, {"random_shift": 0, "color_jitter": None}):
        agent = make_agent(kind, env, networks=networks)
        batch = make_batch(agent, env)
        torch.manual_seed(5)
        agent.update(batch, every_part(agent))
        results.append(state(agent))
    assert all(torch.equal(results[0][name], results[1][name]) for name in results[0])


@pytest.mark.slow
def test_compiled_encoders_learn_from_two_losses_one_after_the_other():
    """What is encoded in one captured graph has one gradient: the actor's comes when the critics' has been used up."""
    env = pixel_env()
    agent = make_agent(DSRLSAC, env, networks={"actor_encoder": "own", "random_shift": 2})
    compiled = partial(torch.compile, backend="aot_eager")
    batch = compiled(lambda batch: agent.encode(batch, actor=True))(make_batch(agent, env))
    batch.get(FEATURES_KEY).sum().backward()
    batch = compiled(agent.detached)(batch)
    batch.get(ACTOR_FEATURES_KEY).sum().backward()
    for encoder in (agent.encoder, agent.own_encoder):
        assert all(parameter.grad is not None for parameter in encoder.parameters())
