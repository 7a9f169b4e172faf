"""The steerability report as one page of figures."""

from __future__ import annotations

import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from dsrl_torchrl.policies.probe import LOW_SPREAD
from dsrl_torchrl.steerability.action_magnitude import MAX_OUTSIDE
from dsrl_torchrl.steerability.noise_aliasing import SAME_ACTION, Aliasing
from dsrl_torchrl.steerability.report import SteerabilityReport

if TYPE_CHECKING:
    from matplotlib.axes import Axes

BLUE, ORANGE, GREEN, GREY = "tab:blue", "tab:orange", "tab:green", "0.45"


def plot_steerability(report: SteerabilityReport, path: Path, title: str) -> None:
    """Writes the page as a PNG.

    Args:
        report: of :func:`~dsrl_torchrl.steerability.report.measure_steerability`.
        path: of the PNG.
        title: first line of the page; the advice stands below it.
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    panels = _panels(report)
    columns = len(panels) // 2
    figure, axes = plt.subplots(2, columns, figsize=(4.5 * columns, 8.2), constrained_layout=True)
    for panel, axis in zip(panels, axes.flat, strict=True):
        panel(report, axis)
        axis.title.set_fontsize(11)
        axis.grid(alpha=0.25)
        axis.set_axisbelow(True)
    advice = textwrap.fill(report.advice(), 170)
    figure.suptitle(f"{title}\n{advice}", fontsize=12, parse_math=False)
    figure.savefig(path, dpi=100)
    plt.close(figure)


def _panels(report: SteerabilityReport) -> list[Callable[[SteerabilityReport, Axes], None]]:
    """Eight, or ten with the critics' ranking; the numbers stand where something was not measured."""
    measured = [
        _spread_by_dim,
        _response,
        *([_aliasing] if report.aliasing is not None else []),
        _magnitude,
        _headroom,
        _layout_success,
        _layout_jumps,
        *([_gap] if report.gap_prior is not None else []),
        *([_ranking] if report.critic_ranking is not None else []),
    ]
    room = (10 if report.critic_ranking is not None else 8) - len(measured)
    return [*measured, *[_numbers, _nothing, _nothing][:room]]


def _nothing(report: SteerabilityReport, axis: Axes) -> None:
    axis.set_axis_off()


def _spread_by_dim(report: SteerabilityReport, axis: Axes) -> None:
    spread = report.spread.per_action_dim
    axis.bar(range(len(spread)), spread, color=BLUE)
    axis.axhline(report.spread.spread, color="black", lw=1, label=f"mean {report.spread.spread:.3f}")
    axis.axhline(LOW_SPREAD, color="tab:red", lw=1, ls="--", label=f"too small below {LOW_SPREAD}")
    axis.set_xticks(range(len(spread)))
    axis.set(title="Spread over prior noise", xlabel="action dim", ylabel="std of the decoded action [half ranges]")
    axis.set_ylim(0, 1.3 * max(*spread, LOW_SPREAD))
    axis.legend(fontsize=8, loc="upper right")


def _response(report: SteerabilityReport, axis: Axes) -> None:
    response = report.response
    axis.plot(response.scales, response.spread, "o-", color=BLUE, label="spread [half ranges]")
    axis.plot(response.scales, response.clipped, "s-", color=ORANGE, label="share clipped at ±1")
    axis.axvline(1.0, color=GREY, lw=1, ls=":", label="base policy")
    axis.set(title="Executed actions over the noise scale", xlabel="std of the noise [prior stds]", ylim=(0, None))
    axis.set_ylabel("spread, share")
    axis.legend(fontsize=8)


def _aliasing(report: SteerabilityReport, axis: Axes) -> None:
    measured = report.aliasing
    assert measured is not None
    floor = SAME_ACTION / 30  # keeps the zeros of exactly aliased directions on the logarithmic axis
    axis.semilogy(
        range(1, measured.latent_dim + 1), [max(value, floor) for value in measured.singular_values], "o-", color=BLUE,
        ms=4, label=f"mean; effective dims {measured.effective_dim:.1f} of {measured.latent_dim}",
    )  # fmt: skip
    axis.axhspan(floor, SAME_ACTION, color="tab:red", alpha=0.12, label=f"aliased: {measured.aliased_fraction:.0%}")
    axis.set(title="Aliasing: singular values of ∂actions/∂w", xlabel="noise direction", ylim=(floor, None))
    axis.set_ylabel("change of the executed chunk\n[half ranges per prior std]")
    axis.legend(fontsize=8, loc="lower left")


def _magnitude(report: SteerabilityReport, axis: Axes) -> None:
    table, choice = report.magnitude.table, report.magnitude
    bounds = [row.magnitude for row in table]
    axis.plot(bounds, [row.outside for row in table], "o-", color=BLUE, label="corners: outside the prior's range")
    axis.axhline(MAX_OUTSIDE, color=BLUE, lw=1, ls="--", label=f"limit {MAX_OUTSIDE:g}")
    axis.plot(bounds, [row.clipped for row in table], "s-", color=ORANGE, label="uniform: clipped at ±1")
    axis.axhline(choice.prior_clipped, color=ORANGE, lw=1, ls=":", label="clipped under the prior")
    axis.axvline(choice.value, color=GREEN, lw=6, alpha=0.25, label=f"recommended {choice.value:g}")
    axis.set(
        title=f"Noise box |w| ≤ bound, layout {report.recommended_layout}",
        ylabel="share of executed actions",
        ylim=(-0.02, 1.02),
    )
    axis.set_xlabel("action_magnitude [prior stds]")
    axis.legend(fontsize=8, loc="upper left")


def _headroom(report: SteerabilityReport, axis: Axes) -> None:
    best = report.headroom
    k = range(1, best.repeats + 1)
    rate = best.success_at_n
    axis.plot(k, best.success_at_k, "o-", color=BLUE)
    axis.vlines(best.repeats, rate.low, rate.high, color=BLUE, lw=4, alpha=0.3, label="Wilson 95 % over resets")
    axis.set_xticks(k)
    axis.set(title=f"Best-of-N headroom, {rate.n} resets", xlabel="episodes from the same reset", ylim=(-0.02, 1.02))
    axis.set_ylabel("success of the best one")
    axis.legend(fontsize=8, loc="lower right")


def _layout_success(report: SteerabilityReport, axis: Axes) -> None:
    rates = [trial.success for trial in report.layouts]
    errors = [[max(r.value - r.low, 0) for r in rates], [max(r.high - r.value, 0) for r in rates]]
    colors = [GREEN if trial.name == report.recommended_layout else BLUE for trial in report.layouts]
    axis.bar(range(len(rates)), [r.value for r in rates], yerr=errors, capsize=5, color=colors, alpha=0.8, width=0.6)
    _name_layouts(report, axis)
    axis.set(title="Base policy by noise layout (green: recommended)", ylim=(0, 1.02))
    axis.set_ylabel(f"success, {rates[0].n} episodes, Wilson 95 %")


def _layout_jumps(report: SteerabilityReport, axis: Axes) -> None:
    jumps = [trial.jumps for trial in report.layouts]
    positions = range(len(jumps))
    axis.bar([x - 0.2 for x in positions], [j.jump for j in jumps], 0.4, color=ORANGE, label="between chunks")
    axis.bar([x + 0.2 for x in positions], [j.step for j in jumps], 0.4, color=BLUE, label="within a chunk")
    for x, j in zip(positions, jumps, strict=True):
        axis.annotate(f"{j.ratio:.1f}×", (x - 0.2, j.jump), ha="center", va="bottom", fontsize=9)
    _name_layouts(report, axis)
    axis.set(title="Jumps between chunks", ylabel="mean |change of action| [half ranges]")
    axis.margins(y=0.15)
    axis.legend(fontsize=8)


def _name_layouts(report: SteerabilityReport, axis: Axes) -> None:
    names = [f"{trial.name}\n{trial.dim} dims" for trial in report.layouts]
    axis.set_xticks(range(len(names)), names)


def _gap(report: SteerabilityReport, axis: Axes) -> None:
    gaps = {"prior noise": report.gap_prior, "latent policy": report.gap_policy}
    measured = {name: gap for name, gap in gaps.items() if gap is not None}
    for x, gap in enumerate(measured.values()):
        axis.errorbar(x, gap.mean, gap.std, fmt="o", capsize=6, color=BLUE)
    axis.axhline(0.0, color="black", lw=1)
    labels = [
        f"{name}\ncorrelation\nover noises " + ("-" if gap.correlation is None else f"{gap.correlation:.2f}")
        for name, gap in measured.items()
    ]
    if report.bound_share is not None:
        labels[-1] += f"\n{report.bound_share:.0%} of noises at the bound"
    axis.set_xticks(range(len(labels)), labels)
    axis.set_xlim(-0.5, len(labels) - 0.5)
    axis.set(title=r"Critic gap $Q^W(s,w) - Q^A(s,\mathrm{decode}(s,w))$", ylabel="mean ± std [return]")


def _ranking(report: SteerabilityReport, axis: Axes) -> None:
    ranking = report.critic_ranking
    assert ranking is not None
    critics = {"$Q^A$": (ranking.q_action, BLUE), "$Q^W$": (ranking.q_noise, ORANGE)}
    for shift, (name, (critic, color)) in zip((-0.12, 0.12), critics.items(), strict=True):
        if critic is None:
            continue
        for x, measured in enumerate((critic.pearson, critic.spearman, critic.share)):
            error = [[measured.value - measured.low], [measured.high - measured.value]]
            axis.errorbar(x + shift, measured.value, error, fmt="o", capsize=5, color=color, label=None if x else name)
    axis.axhline(0.0, color="black", lw=1)
    axis.axhline(1.0, color=GREY, lw=1, ls=":", label="the truth")
    best = f"share of best-of-{ranking.noises}'s\ngain, {ranking.best_gain.value:.2g}"
    axis.set_xticks(range(3), ["correlation", "of ranks", best])
    axis.set(title=f"Critics against true returns, {ranking.states} states", xlim=(-0.5, 2.5), ylim=(-1.05, 1.25))
    axis.set_ylabel("over a state's noises, bootstrap 95 %")
    axis.legend(fontsize=8, loc="lower left")


def _numbers(report: SteerabilityReport, axis: Axes) -> None:
    best = report.headroom
    lines = [
        f"spread {report.spread.spread:.3f}",
        *(_aliasing_numbers(report.aliasing) if report.aliasing is not None else ()),
        f"success@1 {best.success_at_1:.2f}, success@{best.repeats} {best.success_at_n.value:.2f}",
        f"{report.env_steps} env steps",
        *(textwrap.fill(line, 45) for line in report.left_out),
    ]
    if report.bound_share is not None:
        lines.append(f"latent policy beyond 0.95 of its bound: {report.bound_share:.0%}")
    axis.set_axis_off()
    axis.set_title("In numbers")
    axis.text(0.0, 0.95, "\n\n".join(lines), va="top", fontsize=11, transform=axis.transAxes)


def _aliasing_numbers(aliasing: Aliasing) -> list[str]:
    return [
        f"effective noise dims {aliasing.effective_dim:.1f} of {aliasing.latent_dim}",
        f"aliased directions {aliasing.aliased_fraction:.0%}",
        f"pairs of noises with the same chunk {aliasing.same_head_fraction:.0%}",
    ]
