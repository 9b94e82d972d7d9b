"""The paper's method: prune, retrain, measure, accept or roll back.

One iteration: thresholds -> remove -> retrain with regularisation, which prepares the next iteration's thresholds ->
measure on the validation images -> accept, or go back to the last accepted network. Read `prune` from top to bottom;
the rules themselves are in rules.py.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

from torch import nn

from pipeline import config
from pipeline.errors import UserError
from pipeline.evaluation.metrics import Quality
from pipeline.files import LOCK, load_tensors, read_sealed, write_sealed
from pipeline.networks import checkpoint, duplicate
from pipeline.progress import Progress
from pipeline.pruning import coupling, criteria, reconstruction, removal, rules
from pipeline.pruning.gate import Target, judge
from pipeline.pruning.importance import group_states, lasso_shares, reference_magnitudes, regulariser
from pipeline.pruning.iterations import Iteration
from pipeline.training.loop import NonFiniteLossError
from pipeline.training.recipes import train_iteration
from pipeline.training.setup import Setup


@dataclass
class Current:
    """The last accepted network and how it came about."""

    network: nn.Module
    groups: removal.Coupling
    kept: dict[str, dict[int, list[int]]]  # tensor -> dimension -> channels of the baseline that are left
    cuts: tuple[removal.Removed, ...] = ()  # what each accepted iteration removed

    @property
    def lineage(self) -> int:
        """Iterations of training behind it."""
        return len(self.cuts)


def prune(
    baseline: nn.Module,
    setup: Setup,
    settings: config.Settings,
    active: tuple[str, ...],
    target: Target,
    scratch: Path,
    progress: Progress,
    on_iteration: Callable[[Iteration], None] = lambda iteration: None,
) -> list[Iteration]:
    """Prune by the rules `active` until a stopping rule holds; returns the log.

    Accepted networks are left in `scratch` as accepted-NNN.pt (000: the baseline). Called again after a stop at any
    moment, it goes on from there and ends with the same bits.
    """
    baseline = baseline.to(setup.machine.device)
    example = setup.example(baseline).to(setup.machine.device)
    all_groups = coupling.find_groups(baseline, example, settings.norms)
    criteria.check(settings.criterion, baseline, all_groups, example, setup.name)
    for sentence in all_groups.frozen:
        progress.say(sentence)
    reference = reference_magnitudes(baseline, all_groups)
    channels = {group.name: group.channels for group in all_groups.groups}
    whole = setup.cost(baseline)
    total = (whole.mac, whole.weights)

    current, state, log = _restore(scratch, baseline, all_groups, setup, settings)
    if not log:
        log = [_record(0, "accepted", "the baseline", current, setup, setup.quality(current.network), target)]
        _keep(scratch, current, setup, state, log)
    for iteration in log:
        on_iteration(iteration)
    progress.phase_over(setup.iteration_steps * (len(log) - 1))

    while True:
        stop = stop_reason(log, settings, setup.retrain.max_iterations, whole.mac)
        if stop:
            break
        number = len(log)
        known = None
        if settings.reconstruct or settings.criterion == "saliency":
            known = reconstruction.moments(current.network, current.groups, setup.sample_pairs())
        limits = {group.name: rules.group_cap(group.channels, settings, 1) for group in current.groups.groups}
        scores = criteria.scores(settings.criterion, current.network, current.groups, setup, limits, known)
        states = _states(current, setup, settings, reference, channels, scores)
        plan = rules.next_plan(states, state, active, settings, total)
        if plan is None:
            stop = "no group can be pruned any further"
            break
        candidate = cut(current, plan.removed, known if settings.reconstruct else None)
        now = _states(candidate, setup, settings, reference, channels)
        penalty = regulariser(candidate.groups, reference, lasso_shares(now, active), settings, active)
        ended = setup.iteration_steps * number  # steps of progress after this iteration, also when it is cut short
        try:
            train_iteration(candidate.network, setup, number, scratch, progress, baseline, penalty)
        except NonFiniteLossError as error:
            progress.base = ended
            before = [iteration for iteration in log if iteration.verdict == "accepted"][-1]
            log.append(_refusal(number, plan, before, f"{error}"))
            state = rules.after_rejected(state, plan, states)
        else:
            measured = setup.quality(candidate.network)
            accepted, reason = judge(measured, target.at(candidate.lineage), setup.gate, setup.tolerance)
            pruned = "; ".join(f"{len(gone)} of {name}" for name, gone in plan.removed.items())
            verdict = "accepted" if accepted else "rejected"
            log.append(_record(number, verdict, f"{reason}. Channels removed: {pruned}", candidate, setup, measured,
                               target, plan))  # fmt: skip
            now = _states(candidate, setup, settings, reference, channels)
            if accepted:
                current, state = candidate, rules.after_accepted(state, plan, now, active, settings)
            else:
                state = rules.after_rejected(state, plan, states)
        _keep(scratch, current, setup, state, log)
        for unfinished in scratch.glob(f"{number:03d}-*.pt"):
            unfinished.unlink()
        last = log[-1]
        progress.say(f"iteration {number} {last.verdict}, MAC {100 * last.mac / whole.mac:.1f}%: {last.reason}")
        on_iteration(last)
    progress.say(f"stopped after {len(log) - 1} iterations: {stop}")
    return log


def stop_reason(log: list[Iteration], settings: config.Settings, max_iterations: int, baseline_mac: int) -> str:
    """The sentence of the first stopping rule that holds, or nothing."""
    accepted = [iteration for iteration in log if iteration.verdict == "accepted"]
    rejected_in_a_row = len(log) - 1 - accepted[-1].number
    if accepted[-1].mac <= settings.target_mac * baseline_mac:
        return f"the MAC target of {100 * settings.target_mac:g}% is reached"
    if rejected_in_a_row >= settings.patience:
        return f"{rejected_in_a_row} rejections in a row"
    if len(log) > max_iterations:
        return "max_iterations"
    return ""


def cut(current: Current, removed: removal.Removed, known: reconstruction.Known | None = None) -> Current:
    """The smaller network, before it is trained on.

    removed: group name -> channels that go. With moments, the layers that read them make up for them as well as they
    can.
    """
    network = current.network
    if known is not None:
        network = reconstruction.compensated(network, current.groups, removed, known)
    smaller = removal.remove(network, current.groups, removed)
    kept = {tensor: dict(dims) for tensor, dims in current.kept.items()}
    for tensor, dims in removal.kept_indices(network, current.groups, removed).items():
        for dim, indices in dims.items():
            before = kept.setdefault(tensor, {}).get(dim)
            kept[tensor][dim] = [before[i] for i in indices] if before else list(indices)
    return Current(smaller, removal.narrow(current.groups, removed), kept, (*current.cuts, removed))


def _states(
    current: Current, setup: Setup, settings: config.Settings, reference: dict[str, float], channels: dict[str, int],
    scores: Mapping[str, tuple[float, ...]] | None = None,
) -> list[rules.GroupState]:  # fmt: skip
    """What the rules see; by the scores of the settings' criterion, else by magnitude."""
    spent = setup.cost(current.network)
    return group_states(current.network, spent, current.groups, reference, channels, settings.criterion, scores)


def _record(
    number: int, verdict: str, reason: str, current: Current, setup: Setup, measured: Quality, target: Target,
    plan: rules.Plan | None = None,
) -> Iteration:  # fmt: skip
    """A network of that quality for the log."""
    spent, aim = setup.cost(current.network), target.at(current.lineage)
    return Iteration(
        number, verdict, reason, current.lineage,
        alpha=plan.alpha if plan else 0.0,
        thresholds=dict(plan.thresholds) if plan else {},
        removed={name: len(gone) for name, gone in plan.removed.items()} if plan else {},
        channels={group.name: group.channels for group in current.groups.groups},
        widths={layer.name: layer.out_channels for layer in spent.layers},
        mac=spent.mac, weights=spent.weights, activations=spent.activations, bw=spent.bw,
        psnr=measured.mean_psnr, ssim=measured.mean_ssim,
        psnr_change=measured.mean_psnr - aim.mean_psnr, ssim_change=measured.mean_ssim - aim.mean_ssim,
    )  # fmt: skip


def _refusal(number: int, plan: rules.Plan, accepted: Iteration, reason: str) -> Iteration:
    """The log of an iteration whose loss became infinite or NaN: its figures are the last accepted network's."""
    return Iteration(**{
        **vars(accepted), "number": number, "verdict": "rejected", "reason": reason,
        "alpha": plan.alpha, "thresholds": dict(plan.thresholds),
        "removed": {name: len(gone) for name, gone in plan.removed.items()},
    })  # fmt: skip


def _keep(scratch: Path, current: Current, setup: Setup, state: rules.State, log: list[Iteration]) -> None:
    """Write the last accepted network, and the log after it: a network that the log names is always there."""
    if log[-1].verdict == "accepted":
        path = scratch / f"accepted-{log[-1].number:03d}.pt"
        checkpoint.save(
            path, current.network, setup.network.factory, setup.network.args, current.kept, example=setup.example()
        )
    saved = {**asdict(state), "frozen": sorted(state.frozen)}
    lines = [vars(iteration) for iteration in log]
    write_sealed(scratch / "log.json", {"state": saved, "cuts": current.cuts, "log": lines})


def _restore(
    scratch: Path, baseline: nn.Module, groups: removal.Coupling, setup: Setup, settings: config.Settings
) -> tuple[Current, rules.State, list[Iteration]]:
    """How far an earlier process came, or the beginning. A damaged folder is emptied, and a line says so."""
    state = rules.State(alpha=settings.threshold_scale, step=settings.threshold_growth)
    start: tuple[Current, rules.State, list[Iteration]] = Current(duplicate(baseline), groups, {}), state, []
    if not (scratch / "log.json").exists():
        return start
    try:
        saved = read_sealed(scratch / "log.json")
        log = [Iteration(**iteration) for iteration in saved["log"]]
        sets = {"frozen": frozenset(saved["state"]["frozen"]), "suspects": tuple(saved["state"]["suspects"])}
        accepted = [iteration.number for iteration in log if iteration.verdict == "accepted"]
        for number in accepted[:-1]:  # all of them are results
            load_tensors(scratch / f"accepted-{number:03d}.pt")
        last = accepted[-1]
        network, meta = checkpoint.load(scratch / f"accepted-{last:03d}.pt", setup.network.factory)
        cuts = tuple({name: tuple(gone) for name, gone in removed.items()} for removed in saved["cuts"])
        for removed in cuts:  # renumbered rather than traced again, so that every group keeps its name
            groups = removal.narrow(groups, removed)
        current = Current(network.to(setup.machine.device), groups, meta["kept"], cuts)
        return current, rules.State(**{**saved["state"], **sets}), log
    except (UserError, LookupError, TypeError, ValueError, AttributeError) as error:
        print(f"{scratch} is damaged ({error}): the pruning starts anew", file=sys.stderr)
        for path in scratch.iterdir():
            if path.name != LOCK:  # this process holds it
                path.unlink()
        return start
