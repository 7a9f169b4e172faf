"""IQL (Eq. 29) against the equation, written out."""

from __future__ import annotations

import pytest
import torch

from dsrl_torchrl.agents import IQL

from .cases import assert_logged, every_part, macro_target, make_agent, make_batch, members, polyak, step
from .test_awr import log_density

RATES = {"critic_lr": 1e-3, "actor_lr": 3e-4}


def value(agent, observations):
    """``V(s)`` by hand: two tanh layers and a linear one."""
    params, x = agent.loss.value_network_params, observations["features"]
    for layer in ("0", "2"):
        x = torch.tanh(x @ params["module", layer, "weight"].T + params["module", layer, "bias"])
    return (x @ params["module", "4", "weight"].T + params["module", "4", "bias"]).squeeze(-1)


@pytest.mark.parametrize("alpha_init", [0.0, 0.5])
def test_an_update_is_the_equations(alpha_init):
    options = {"expectile": 0.8, "inverse_temperature": 2.0, "alpha_init": alpha_init, **RATES}
    agent, twin = make_agent(IQL, **options), make_agent(IQL, **options)
    batch = make_batch(agent)
    batch["action"] = batch["action"].clamp(-1.2, 1.2)
    torch.manual_seed(5)
    metrics = agent.update(batch, every_part(agent))

    s, following = twin.encoder(batch.copy()), twin.encoder(batch["next"].copy())
    critic, params, targets = (
        getattr(twin.loss, f"{name}qvalue_network{end}")
        for name, end in (("", ""), ("", "_params"), ("target_", "_params"))
    )
    v = value(twin, s).detach()
    q = members(critic, params, s, batch["action"])
    error = q - macro_target(batch, value(twin, following))
    loss_q = error.square().mean(1).sum()
    step(params.values(True, True), loss_q, RATES["critic_lr"])
    least = members(critic, targets, s, batch["action"]).min(0)[0].detach()
    u = least - value(twin, s)
    assert (u > 0).any() and (u < 0).any()
    step(
        twin.loss.value_network_params.values(True, True),
        (torch.where(u < 0, 0.2, 0.8) * u**2).mean(),
        RATES["critic_lr"],
    )
    weights = torch.exp(2.0 * (least - value(twin, s).detach())).clamp(max=100)
    loc, scale = twin.actor.module[0].module(s["features"])
    loss = -(weights * log_density(loc, scale, batch["action"])).mean()
    torch.manual_seed(5)
    _, log_prob = twin.actor.draw(s)
    expected = {"actor/entropy": -log_prob.mean()}
    if alpha_init:
        alpha = twin.log_alpha.exp().detach()
        loss = loss + alpha * log_prob.mean()
        expected["actor/alpha"] = alpha
        step([twin.log_alpha], -(twin.log_alpha * (log_prob.detach() - 4)).mean(), RATES["actor_lr"])
        torch.testing.assert_close(agent.log_alpha, twin.log_alpha)
    step(twin.actor.parameters(), loss, RATES["actor_lr"])
    polyak(targets, params)
    weights = torch.exp(2.0 * (least - v)).clamp(max=100)  # as logged: of V before this update
    expected |= {"q_noise/loss": loss_q, "q_noise/td_error": error.abs().max(0)[0].mean(), "q_noise/q_mean": q.mean()}
    expected |= {"actor/loss": loss, "actor/value_mean": v.mean(), "actor/advantage": (least - v).mean()}
    expected |= {"actor/weights_mean": weights.mean(), "actor/weights_max": weights.max()}
    assert_logged(metrics, expected)
    for mine, theirs in zip(agent.actor.parameters(), twin.actor.parameters(), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(value(agent, s), value(twin, s))
    for name, theirs in (("qvalue_network_params", params), ("target_qvalue_network_params", targets)):
        for mine, other in zip(getattr(agent.loss, name).values(True, True), theirs.values(True, True), strict=True):
            torch.testing.assert_close(mine, other, rtol=1e-4, atol=1e-6)


def test_the_temperature_rises_while_the_policy_is_narrower_than_asked_for():
    agent = make_agent(IQL, alpha_init=1.0)
    with torch.no_grad():
        agent.actor.module[0].module[1].bias[4:] = -8.0  # a narrow policy
    batch = make_batch(agent)
    alphas = [float(agent.update(batch, every_part(agent))["actor/alpha"]) for _ in range(5)]
    assert alphas == sorted(alphas) and alphas[-1] > 1.0
