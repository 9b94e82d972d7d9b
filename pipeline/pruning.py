"""The paper's method: prune, retrain, measure, accept or roll back.

One iteration: train with regularisation -> thresholds -> remove -> retrain -> measure on the validation images ->
accept, or go back to the last accepted network. Read `prune` from top to bottom; the rules themselves are in rules.py.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from pipeline import checkpoint, config, coupling, records, rules
from pipeline.errors import UserError
from pipeline.files import again, read_json, write_json
from pipeline.job import Job
from pipeline.magnitudes import group_states, lasso_shares, reference_magnitudes, regulariser
from pipeline.networks import duplicate
from pipeline.progress import Progress
from pipeline.records import Figure, Finite, Text, Whole
from pipeline.training import NonFiniteLossError, fit


@dataclass(frozen=True)
class Target:
    """Validation quality to hold: of the baseline, or of the control after each number of iterations."""

    psnr: tuple[float, ...]  # dB; the last one holds from there on
    ssim: tuple[float, ...]

    def at(self, iterations: int) -> tuple[float, float]:
        return self.psnr[min(iterations, len(self.psnr) - 1)], self.ssim[min(iterations, len(self.ssim) - 1)]


@dataclass(frozen=True)
class Iteration:
    """The log of one iteration; iteration 0 is the baseline."""

    number: Whole
    verdict: Text  # accepted, rejected
    reason: Text
    lineage: Whole  # iterations of training that the network has behind it, this one included
    alpha: Finite = 0.0
    thresholds: dict[Text, Finite] = field(default_factory=dict)
    removed: dict[Text, Whole] = field(default_factory=dict)  # channels that each group gave
    channels: dict[Text, Whole] = field(default_factory=dict)  # of each group afterwards
    widths: dict[Text, Whole] = field(default_factory=dict)  # output channels of each layer afterwards
    mac: Whole = 0
    weights: Whole = 0
    activations: Whole = 0
    bw: Whole = 0
    psnr: Figure = 0.0  # dB, validation
    ssim: Figure = 0.0
    psnr_drop: Figure = 0.0  # dB against the gate's reference; negative: better than it
    ssim_drop: Figure = 0.0


@dataclass
class Current:
    """The last accepted network and how it came about."""

    network: nn.Module
    groups: coupling.Coupling
    kept: dict[str, dict[int, list[int]]]  # tensor -> dimension -> channels of the baseline that are left
    cuts: tuple[dict[str, tuple[int, ...]], ...] = ()  # what each accepted iteration removed

    @property
    def lineage(self) -> int:
        """Iterations of training behind it."""
        return len(self.cuts)


def judge(
    measured: tuple[float, float], target: tuple[float, float], gate: config.Gate, loan: tuple[float, float] = (0, 0)
) -> tuple[bool, str]:
    """The gate: whether (PSNR, SSIM) hold the target's less the allowed drops, and the sentence that says so.

    loan: what may be missing beyond that until the fine-tune pays it back, in dB and SSIM.
    """
    psnr_limit, ssim_limit = gate.max_psnr_drop + loan[0], gate.max_ssim_drop + loan[1]
    psnr_drop, ssim_drop = target[0] - measured[0], target[1] - measured[1]
    text = (
        f"PSNR {measured[0] - target[0]:+.4f} dB and SSIM {measured[1] - target[1]:+.5f} against the {gate.reference}"
    )
    faults = []
    if not psnr_drop <= psnr_limit:  # also false for NaN
        faults.append(f"PSNR may drop by {psnr_limit:g} dB")
    if not ssim_drop <= ssim_limit:
        faults.append(f"SSIM may drop by {ssim_limit:g}")
    return not faults, text + (f": {' and '.join(faults)}" if faults else "")


def train_iteration(
    network: nn.Module,
    job: Job,
    number: int,
    scratch: Path,
    progress: Progress,
    penalty: Callable[[nn.Module], Tensor] | None = None,
    change: Callable[[nn.Module], nn.Module] = lambda network: network,
) -> nn.Module:
    """One iteration's training: `train_steps` with the penalty, `change`, `retrain_steps`; the control has neither."""
    retrain, common = job.retrain, {"milestones": (), "schedule": "cosine"}
    if retrain.train_steps:
        recipe = job.recipe.model_copy(
            update=common | {"steps": retrain.train_steps, "lr": retrain.train_lr, "lr_final": retrain.train_lr}
        )
        fit(network, job.train, recipe, job.machine, seed=job.seed + 2 * number, penalty=penalty,
            tick=progress.tick, resume=scratch / f"{number:03d}-train.pt")  # fmt: skip
    progress.phase_over(retrain.train_steps)
    network = change(network)
    if retrain.retrain_steps:
        recipe = job.recipe.model_copy(
            update=common
            | {"steps": retrain.retrain_steps, "lr": retrain.retrain_lr, "lr_final": retrain.retrain_lr_final}
        )
        fit(network, job.train, recipe, job.machine, seed=job.seed + 2 * number + 1,
            tick=progress.tick, resume=scratch / f"{number:03d}-retrain.pt")  # fmt: skip
    progress.phase_over(retrain.retrain_steps)
    return network


def train_final(network: nn.Module, job: Job, recipe: config.Finetune, resume: Path, progress: Progress) -> nn.Module:
    """The fine-tune of a pruned network, and of the control."""
    full = job.recipe.model_copy(update={"milestones": (), "schedule": "cosine", **recipe.model_dump()})
    fit(network, job.train, full, job.machine, seed=job.seed + 100_003, tick=progress.tick, resume=resume)
    progress.phase_over(recipe.steps)
    return network


def prune(
    baseline: nn.Module,
    job: Job,
    numbers: config.Rules,
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
    baseline = baseline.to(job.machine.device)
    all_groups = coupling.find_groups(baseline, job.example(baseline).to(job.machine.device))
    for sentence in all_groups.frozen:
        progress.say(sentence)
    reference = reference_magnitudes(baseline, all_groups)
    original = {group.name: group.channels for group in all_groups.groups}
    total = job.cost(baseline)

    current, state, log = _restore(scratch, baseline, all_groups, job)
    if not log:
        state = rules.State(alpha=numbers.threshold_scale, step=numbers.threshold_growth)
        log = [_record(0, "accepted", "the baseline", current, job, target)]
        _keep(scratch, current, job, state, log)
    for iteration in log:
        on_iteration(iteration)
    progress.phase_over(job.iteration_steps * (len(log) - 1))

    while True:
        stop = stop_reason(log, numbers, total.mac)
        if stop:
            break
        number = len(log)
        trial = duplicate(current.network)
        found = group_states(trial, job.cost(trial), current.groups, reference, original)
        if rules.next_plan(found, state, active, numbers, (total.mac, total.weights)) is None:
            stop = "no group can give any more"
            break
        penalty = regulariser(current.groups, reference, lasso_shares(found, active), numbers, active)
        made: dict[str, Any] = {"trial": current}

        def remove(network: nn.Module, made=made, current=current, state=state) -> nn.Module:
            found = group_states(network, job.cost(network), current.groups, reference, original)
            made["plan"] = rules.next_plan(found, state, active, numbers, (total.mac, total.weights))
            if made["plan"] is None:  # there was one before training: the last step left weights that aren't numbers
                raise NonFiniteLossError(job.retrain.train_steps)
            smaller, made["trial"] = cut(network, current, made["plan"].removed)
            return smaller

        ended = job.iteration_steps * number  # where the progress stands after this iteration, also if it is cut short
        try:
            smaller = train_iteration(trial, job, number, scratch, progress, penalty, remove)
        except NonFiniteLossError as error:
            plan = made.get("plan") or rules.plan(
                found, state, state.alpha, active, numbers, (total.mac, total.weights)
            )
            progress.base = ended
            before = [iteration for iteration in log if iteration.verdict == "accepted"][-1]
            log.append(_refusal(number, plan, before, f"{error}"))
            state = rules.after_rejected(state, plan, found)
        else:
            plan, candidate = made["plan"], made["trial"]
            record = _record(number, "", "", candidate, job, target, plan)
            accepted, reason = judge((record.psnr, record.ssim), target.at(candidate.lineage), job.gate, job.loan)
            gave = ", ".join(f"{name} {len(gone)}" for name, gone in plan.removed.items())
            verdict = "accepted" if accepted else "rejected"
            log.append(Iteration(**{**vars(record), "verdict": verdict, "reason": f"{reason}; gave: {gave}"}))
            now = group_states(smaller, job.cost(smaller), candidate.groups, reference, original)
            if accepted:
                current, state = candidate, rules.after_accepted(state, plan, now, active, numbers)
            else:
                state = rules.after_rejected(state, plan, found)
        _keep(scratch, current, job, state, log)
        for left in scratch.glob(f"{number:03d}-*.pt"):
            left.unlink()
        last = log[-1]
        progress.say(f"iteration {number} {last.verdict}, MAC {100 * last.mac / total.mac:.1f}%: {last.reason}")
        on_iteration(last)
    progress.say(f"stopped after {len(log) - 1} iterations: {stop}")
    return log


def stop_reason(log: list[Iteration], numbers: config.Rules, original_mac: int) -> str:
    """The sentence of the first stopping rule that holds, or nothing."""
    accepted = [iteration for iteration in log if iteration.verdict == "accepted"]
    rejected_in_a_row = len(log) - 1 - accepted[-1].number
    if accepted[-1].mac <= numbers.target_mac * original_mac:
        return f"the MAC target of {100 * numbers.target_mac:g}% is reached"
    if rejected_in_a_row >= numbers.patience:
        return f"{rejected_in_a_row} rejections in a row"
    if len(log) > numbers.max_iterations:
        return "max_iterations"
    return ""


def cut(network: nn.Module, current: Current, removed: dict[str, tuple[int, ...]]) -> tuple[nn.Module, Current]:
    """The smaller network, and its place after `current`."""
    smaller = coupling.remove(network, current.groups, removed)
    kept = {tensor: dict(dims) for tensor, dims in current.kept.items()}
    for tensor, dims in coupling.kept_indices(network, current.groups, removed).items():
        for dim, left in dims.items():
            before = kept.setdefault(tensor, {}).get(dim)
            kept[tensor][dim] = [before[i] for i in left] if before else list(left)
    return smaller, Current(smaller, coupling.narrow(current.groups, removed), kept, (*current.cuts, removed))


@dataclass(frozen=True)
class Finetuned:
    """The final network of a method."""

    network: nn.Module
    kept: dict[str, dict[int, list[int]]]
    attempts: list[str]  # a sentence for each network that was fine-tuned, the last one being the result
    steps: int  # of training that the network has had since it was the baseline


def finetune(
    networks: list[Path],
    job: Job,
    recipe: config.Finetune,
    target: tuple[float, float],
    scratch: Path,
    progress: Progress,
) -> Finetuned:
    """Train the last accepted network on; where the gate refuses it, undo iterations and train an earlier one.

    networks: accepted-NNN.pt, oldest first; the first is the baseline, which is what is left when nothing else holds.
    Here the loan is due: the gate allows no more than the stated drops. When the last network fails, the latest one
    that holds is looked for by bisection: a network holds when it passes the gate after its fine-tune or as it was
    before.
    """
    attempts: list[str] = []

    def attempt(lineage: int) -> Finetuned | None:
        """The network of that place when it holds."""
        path = networks[lineage]
        network, meta = checkpoint.load(path, job.network.factory)
        number, steps = int(path.stem.removeprefix("accepted-")), lineage * job.iteration_steps
        before = _measure(network.to(job.machine.device), job)
        untrained = duplicate(network)
        if attempts:
            progress.extend(recipe.steps)
        try:
            train_final(network, job, recipe, scratch / f"finetune-{number:03d}.pt", progress)
        except NonFiniteLossError as error:
            good, reason = False, f"{error}"
        else:
            good, reason = judge(_measure(network, job), target, job.gate)
        attempts.append(f"iteration {number}: {reason}")
        progress.say(f"iteration {number} {'holds' if good else 'is undone'}: {reason}")
        if good:
            return Finetuned(network, meta["kept"], attempts, steps + recipe.steps)
        good, reason = judge(before, target, job.gate)
        if good or not lineage:
            attempts.append(f"iteration {number} is kept as it was before fine-tuning: {reason}")
            progress.say(attempts[-1])
            return Finetuned(untrained, meta["kept"], attempts, steps)
        return None

    failed = len(networks) - 1
    best, good = attempt(failed), 0
    if best is not None:
        return best
    while failed - good > 1:
        middle = (good + failed) // 2
        found = attempt(middle)
        if found is None:
            failed = middle
        else:
            best, good = found, middle
    return best or attempt(0)


def _measure(network: nn.Module, job: Job) -> tuple[float, float]:
    measured = job.quality(network)
    return measured.mean_psnr, measured.mean_ssim


def _record(number, verdict, reason, current: Current, job: Job, target: Target, plan: rules.Plan | None = None):
    """Measure a network for the log."""
    measured, spent = job.quality(current.network), job.cost(current.network)
    aim = target.at(current.lineage)
    return Iteration(
        number, verdict, reason, current.lineage,
        alpha=plan.alpha if plan else 0.0,
        thresholds=dict(plan.thresholds) if plan else {},
        removed={name: len(gone) for name, gone in plan.removed.items()} if plan else {},
        channels={group.name: group.channels for group in current.groups.groups},
        widths={layer.name: layer.out_channels for layer in spent.layers},
        mac=spent.mac, weights=spent.weights, activations=spent.activations, bw=spent.bw,
        psnr=measured.mean_psnr, ssim=measured.mean_ssim,
        psnr_drop=aim[0] - measured.mean_psnr, ssim_drop=aim[1] - measured.mean_ssim,
    )  # fmt: skip


def _refusal(number: int, plan: rules.Plan, accepted: Iteration, reason: str) -> Iteration:
    """The log of an iteration whose training broke down: the figures are the last accepted network's."""
    return Iteration(**{
        **vars(accepted), "number": number, "verdict": "rejected", "reason": reason,
        "alpha": plan.alpha, "thresholds": dict(plan.thresholds),
        "removed": {name: len(gone) for name, gone in plan.removed.items()},
    })  # fmt: skip


def _keep(scratch: Path, current: Current, job: Job, state: rules.State, log: list[Iteration]) -> None:
    """The last accepted network, then the log: whoever reads the log finds the network that it speaks of."""
    if log[-1].verdict == "accepted":
        path = scratch / f"accepted-{log[-1].number:03d}.pt"
        checkpoint.save(path, current.network, job.network.factory, job.network.args, current.kept)
    saved = {**asdict(state), "frozen": sorted(state.frozen)}
    lines = [vars(iteration) for iteration in log]
    write_json(scratch / "log.json", {"state": saved, "cuts": current.cuts, "log": lines})


def read_log(path: Path) -> list[Iteration]:
    """A log.json of `prune`; UserError when it isn't whole, or its iterations don't follow one another."""
    log: list[Iteration] = records.read(path, list[Iteration])
    if not log:
        records.wrong(path, "has no iterations")
    accepted = 0
    for place, one in enumerate(log):
        if one.number != place:
            records.wrong(path, f"is {one.number} but should be {place}", place, "number")
        if one.verdict not in (("accepted", "rejected") if place else ("accepted",)):
            allowed = "'accepted' or 'rejected'" if place else "'accepted': the baseline"
            records.wrong(path, f"is {one.verdict[:60]!r} but should be {allowed}", place, "verdict")
        if one.verdict == "rejected":
            continue
        if one.lineage != accepted:
            records.wrong(path, f"is {one.lineage}, but {accepted} accepted iterations lie before", place, "lineage")
        if not all(math.isfinite(figure) for figure in (one.psnr, one.ssim, one.psnr_drop, one.ssim_drop)):
            records.wrong(path, "has quality that is no number though it was accepted", place)
        if not 1 <= one.mac <= log[0].mac or one.widths.keys() != log[0].widths.keys():
            records.wrong(path, "isn't a part of the baseline by its mac or widths", place)
        accepted += 1
    return log


def accepted_networks(folder: Path) -> list[Path]:
    """The networks/accepted-NNN.pt in a method's results, oldest first: those, and only those, that its log.json names.

    UserError when one is missing, or there is another.
    """
    networks, path = folder / "networks", folder / "log.json"
    found = {file.name for file in networks.glob("accepted-*.pt") if file.is_file()}
    if not found:
        raise UserError(f"{networks} holds no accepted-*.pt: prune makes them; {again(networks / 'accepted-000.pt')}")
    wanted = [f"accepted-{one.number:03d}.pt" for one in read_log(path) if one.verdict == "accepted"]
    for words, names in (("lacks", set(wanted) - found), ("holds", found - set(wanted))):
        if names:
            records.wrong(networks, f"{words} {', '.join(sorted(names))}, unlike what {path} says")
    return [networks / name for name in wanted]


def check_widths(networks: list[Path], log: list[Iteration], job: Job) -> None:
    """UserError when a network isn't as wide as the log of its iteration says."""
    accepted = [one for one in log if one.verdict == "accepted"]
    for path, one in zip(networks, accepted, strict=True):
        network, _ = checkpoint.load(path, job.network.factory)
        for layer in job.cost(network).layers:
            if one.widths.get(layer.name) != layer.out_channels:
                records.wrong(
                    path, f"has {layer.out_channels} channels in {layer.name}, unlike iteration {one.number} of the log"
                )


def _restore(
    scratch: Path, baseline: nn.Module, groups: coupling.Coupling, job: Job
) -> tuple[Current, rules.State | None, list[Iteration]]:
    """Where an earlier process got to, or the beginning; of a damaged folder too, after a line that says so."""
    start = Current(duplicate(baseline), groups, {}), None, []
    if not (scratch / "log.json").exists():
        return start
    try:
        saved = read_json(scratch / "log.json")
        log = [Iteration(**iteration) for iteration in saved["log"]]
        sets = {"frozen": frozenset(saved["state"]["frozen"]), "suspects": tuple(saved["state"]["suspects"])}
        last = max(iteration.number for iteration in log if iteration.verdict == "accepted")
        network, meta = checkpoint.load(scratch / f"accepted-{last:03d}.pt", job.network.factory)
        cuts = tuple({name: tuple(gone) for name, gone in removed.items()} for removed in saved["cuts"])
        for removed in cuts:  # renumbered rather than traced again, so that every group keeps its name
            groups = coupling.narrow(groups, removed)
        current = Current(network.to(job.machine.device), groups, meta["kept"], cuts)
        return current, rules.State(**{**saved["state"], **sets}), log
    except (UserError, LookupError, TypeError, ValueError, AttributeError) as error:
        print(f"{scratch} is damaged ({error}): the pruning starts anew", file=sys.stderr)
        for path in scratch.iterdir():
            path.unlink()
        return start
