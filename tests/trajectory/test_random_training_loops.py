"""Random training loops: each is explained to rounding, or refused at the step at which something first acts unseen."""

import contextlib
from dataclasses import dataclass
from random import Random

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import kernelmem as km

N, STEPS, C = 9, 3, 3
NORMAL, SOAK = 30, 300
TOLERANCE = 1e-9  # relative to the sum of all terms: float64, three steps, denominators of adaptive optimizers


def infonce(f, y):
    return F.cross_entropy(F.normalize(f) @ F.normalize(f.flip(0)).T, torch.arange(len(f)), reduction="none")


def normalized_focal(f, y):
    losses = F.cross_entropy(f, y, reduction="none")
    weight = (1 - (-losses).exp()) ** 2
    return weight * losses / weight.sum() * len(losses)


def smoothed(f, y):
    return F.cross_entropy(f, y, reduction="none", label_smoothing=0.1)


class AnnealedLoss:
    """Cross-entropy at a temperature that is an attribute."""

    temperature = 1.0

    def __call__(self, f, y):
        return F.cross_entropy(f / self.temperature, y, reduction="none")


class Net(nn.Module):
    """Two layers and a temperature that is neither parameter nor buffer."""

    def __init__(self, middle):
        super().__init__()
        self.first, self.middle, self.last, self.temperature = nn.Linear(4, 5), middle, nn.Linear(5, C), 1.0

    def forward(self, x):
        return self.last(torch.tanh(self.middle(self.first(x)))) / self.temperature


OPTIMIZERS = {
    "sgd": lambda p, d: torch.optim.SGD(p, lr=0.1, weight_decay=d),
    "ascent": lambda p, d: torch.optim.SGD(p, lr=0.02, weight_decay=d, maximize=True, foreach=True),
    "momentum": lambda p, d: torch.optim.SGD(p, lr=0.1, momentum=0.9, dampening=0.1, weight_decay=d),
    "nesterov": lambda p, d: torch.optim.SGD(p, lr=0.1, momentum=0.8, nesterov=True, weight_decay=d),
    "adam": lambda p, d: torch.optim.Adam(p, lr=0.01, weight_decay=d),
    "amsgrad": lambda p, d: torch.optim.Adam(p, lr=0.01, weight_decay=d, amsgrad=True, foreach=True),
    "adamw": lambda p, d: torch.optim.AdamW(p, lr=0.01, weight_decay=d, fused=True),
    "rmsprop": lambda p, d: torch.optim.RMSprop(p, lr=0.01, weight_decay=d, momentum=0.5, centered=True),
    "adagrad": lambda p, d: torch.optim.Adagrad(p, lr=0.05, weight_decay=d, lr_decay=0.1),
}
MIDDLES = {
    "plain": nn.Identity,
    "layer norm": lambda: nn.LayerNorm(5),
    "batch norm": lambda: nn.BatchNorm1d(5),
    "dropout": lambda: nn.Dropout(0.4),
}
LOSSES = {
    "cross_entropy": "cross_entropy",
    "mse": "mse_mean",
    "weighted": nn.CrossEntropyLoss(weight=torch.tensor([1.0, 2.0, 0.5]), label_smoothing=0.1),
    "sum": nn.CrossEntropyLoss(reduction="sum", ignore_index=2),
    "huber": nn.HuberLoss(delta=0.5),
    "callable": smoothed,
    "infonce": infonce,
    "focal": normalized_focal,
    "annealed": None,  # made for each loop
}
SCHEDULES = ("none", "lambda", "one cycle", "temperature", "probability")
HOOKS = ("none", "look", "clip before", "clamp after", "tensor", "accumulated", "module")
FREEZING = ("none", "set to none", "zeros", "learning rate")
CLIPPING = ("none", "norm", "values", "one layer")
PRECISION = ("full", "scaled", "unscaled", "autocast")  # autocast leaves numbers in float64 alone


@dataclass
class Plan:
    """One combination, and the step from which something acts that a recorder cannot attribute (None: nothing)."""

    optimizer: str
    decay: float
    middle: str
    loss: str
    schedule: str
    hook: str
    freezing: str
    clipping: str
    precision: str
    accumulation: int
    weighted: bool
    keep: object
    forget: bool
    start: int

    @classmethod
    def draw(cls, seed):
        """Mostly harmless ingredients, so that loops with none that is refused are frequent."""
        random = Random(seed)

        def pick(options, harmless, share=0.75):
            return random.choice(options[:harmless] if random.random() < share else options)

        losses = list(LOSSES)
        return cls(
            random.choice(list(OPTIMIZERS)),
            random.choice([0.0, 0.02]),
            random.choice(list(MIDDLES)),
            pick(losses, 6, 0.9),
            pick(SCHEDULES, 3, 0.9),
            pick(HOOKS, 2, 0.9),
            random.choice(FREEZING),
            pick(CLIPPING, 2, 0.9),
            pick(PRECISION, 3, 0.95),
            random.choice([1, 1, 2]),
            random.random() < 0.3,
            random.choice(["all", 2, 5]),
            random.random() < 0.05,
            random.randrange(STEPS),
        )

    @property
    def first_refused(self):
        """The step at which the recorder must refuse, or None."""
        steps = []
        if self.forget or self.clipping in ("values", "one layer"):
            steps.append(self.start)
        if self.hook not in ("none", "look"):
            steps.append(self.start)
        if self.schedule == "temperature" or self.loss == "annealed" or self._probability_changes:
            steps.append(max(1, self.start))
        if self.loss in ("infonce", "focal") or (self.accumulation > 1 and self.middle in ("dropout", "batch norm")):
            steps.append(0)
        return min(steps, default=None)

    @property
    def _probability_changes(self):
        return self.schedule == "probability" and self.middle == "dropout"


def train_loss(loss, outputs, y, weight):
    """The loss of the batch as its user computes it."""
    if loss == "cross_entropy":
        losses = F.cross_entropy(outputs, y, reduction="none")
    elif loss == "mse_mean":
        losses = (outputs - y).square().mean(1)
    else:
        losses = loss(outputs, y)
    if losses.ndim == 0:
        return losses
    return (losses if weight is None else losses * weight).mean()


def halve_accumulated(parameter):
    parameter.grad.mul_(0.5)


class Loop:
    """The training loop of a plan; ``steps`` counts the recorded steps."""

    def __init__(self, plan, seed):
        torch.manual_seed(seed)
        self.plan, self.steps = plan, 0
        self.x, self.labels = torch.randn(N, 4, dtype=torch.float64), torch.arange(N) % C
        self.net = Net(MIDDLES[plan.middle]()).double()
        self.loss = AnnealedLoss() if plan.loss == "annealed" else LOSSES[plan.loss]
        self.train_loss = self.loss.double() if isinstance(self.loss, nn.Module) else self.loss
        is_regression = self.loss == "mse_mean" or isinstance(self.loss, nn.HuberLoss)
        self.y = F.one_hot(self.labels, C).double() if is_regression else self.labels
        can_weight = plan.weighted and not isinstance(self.loss, nn.Module)
        self.weight = torch.rand(N, dtype=torch.float64) + 0.5 if can_weight else None
        groups = [{"params": list(self.net.first.parameters())}, {"params": [*self.net.middle.parameters()]}]
        groups = [g for g in [*groups, {"params": list(self.net.last.parameters())}] if g["params"]]
        self.optimizer = OPTIMIZERS[plan.optimizer](groups, plan.decay)
        self.scheduler = None
        if plan.schedule == "lambda":
            self.scheduler = torch.optim.lr_scheduler.LambdaLR(self.optimizer, lambda t: 1 / (1 + t))
        has_momentum = "momentum" in self.optimizer.defaults or "betas" in self.optimizer.defaults
        if plan.schedule == "one cycle" and has_momentum and self.optimizer.defaults.get("momentum") != 0:
            self.scheduler = torch.optim.lr_scheduler.OneCycleLR(self.optimizer, 0.05, total_steps=STEPS + 1)
        self.scaler = (
            torch.amp.GradScaler("cpu", init_scale=256.0) if plan.precision in ("scaled", "unscaled") else None
        )

    def add_hook(self):
        """Register the hook of the plan; it acts from now on."""
        hook, net, parameters = self.plan.hook, self.net, list(self.net.parameters())
        if hook == "look":
            self.optimizer.register_step_pre_hook(lambda optimizer, args, kwargs: None)
            net.last.weight.register_hook(lambda gradient: None)
        elif hook == "clip before":
            self.optimizer.register_step_pre_hook(lambda *_: nn.utils.clip_grad_value_(parameters, 1e-5))
        elif hook == "clamp after":
            self.optimizer.register_step_post_hook(lambda *_: [p.data.clamp_(-0.01, 0.01) for p in parameters])
        elif hook == "tensor":
            net.last.weight.register_hook(lambda gradient: gradient / 2)
        elif hook == "accumulated":
            net.last.weight.register_post_accumulate_grad_hook(halve_accumulated)
        elif hook == "module":
            net.last.register_full_backward_hook(lambda module, before, after: tuple(g / 2 for g in before))

    def run(self, recorder):
        """Take all steps."""
        plan, net = self.plan, self.net
        order = torch.Generator().manual_seed(1)
        for t in range(STEPS):
            active = t >= plan.start
            if t == plan.start:
                self.add_hook()
            if plan.schedule == "temperature" and active and t:
                net.temperature = 1.0 + 0.1 * t
            if plan.schedule == "probability" and plan.middle == "dropout" and active and t:
                net.middle.p = 0.4 + 0.1 * t
            if plan.loss == "annealed" and active and t:
                self.loss.temperature = 1.0 + 0.1 * t
            if plan.freezing in ("set to none", "zeros"):
                net.first.requires_grad_(t != 1)
            if plan.freezing == "learning rate" and self.scheduler is None:
                self.optimizer.param_groups[0]["lr"] = 0.0 if t == 1 else 0.01
            index = torch.randperm(N, generator=order)[:6]
            self.optimizer.zero_grad(set_to_none=plan.freezing != "zeros")
            autocast = plan.precision == "autocast" and active
            parts = index.chunk(plan.accumulation)
            for part in parts:
                with torch.autocast("cpu", torch.bfloat16) if autocast else contextlib.nullcontext():
                    outputs = net(self.x[part])
                weight = None if self.weight is None else self.weight[part]
                loss = train_loss(self.train_loss, outputs.double(), self.y[part], weight)
                is_mean = getattr(self.loss, "reduction", "mean") == "mean"
                loss = loss / len(parts) if is_mean else loss
                (loss if self.scaler is None else self.scaler.scale(loss)).backward()
            if plan.precision == "scaled":
                self.scaler.unscale_(self.optimizer)
            if plan.clipping == "norm":
                nn.utils.clip_grad_norm_(net.parameters(), 0.1)
            if plan.clipping == "values" and active:
                nn.utils.clip_grad_value_(net.parameters(), 1e-5)
            if plan.clipping == "one layer" and active:
                nn.utils.clip_grad_norm_(net.last.parameters(), 1e-3)
            if plan.forget and t == plan.start:
                self.optimizer.step()
            else:
                recorder.step(index, self.x[index], self.y[index], None if self.weight is None else self.weight[index])
            self.steps += 1
            if self.scaler is not None:
                self.scaler.update(256.0)
            if self.scheduler is not None:
                self.scheduler.step()


def check(seed, directory):
    plan = Plan.draw(seed)
    if plan.loss == "weighted" and plan.accumulation > 1:
        plan.accumulation = 1  # a mean of weighted means is not the weighted mean
    loop = Loop(plan, seed)
    expected, refusal = plan.first_refused, None
    try:
        with km.Recorder(loop.net, loop.optimizer, directory, loss=loop.loss, keep=plan.keep) as recorder:
            loop.run(recorder)
    except km.KernelmemError as error:
        refusal = error
    assert (loop.steps if refusal else None) == expected, (plan, refusal)
    run = km.Run.open(directory)
    assert len(run) == loop.steps
    if refusal:
        return
    given = {} if isinstance(loop.loss, str | nn.Module) else {"loss": loop.loss}
    ledger = km.ledger(run, loop.net, torch.randn(2, 4, dtype=torch.float64), **given)
    change = (ledger.final - ledger.initial).abs()
    size = float((ledger.mass + change + ledger.decay.abs() + ledger.buffers.abs()).max())
    assert float(ledger.rounding.abs().max()) <= TOLERANCE * size, (plan, float(ledger.rounding.abs().max()) / size)
    assert float(ledger.residual.abs().max()) <= TOLERANCE * size, (plan, float(ledger.residual.abs().max()) / size)


@pytest.mark.parametrize("seed", range(NORMAL))
def test_a_loop_is_explained_or_refused_when_it_happens(tmp_path, seed):
    check(seed, tmp_path / "run")


@pytest.mark.soak
@pytest.mark.parametrize("seed", range(NORMAL, SOAK))
def test_more_loops_are_explained_or_refused_when_it_happens(tmp_path, seed):
    check(seed, tmp_path / "run")
