"""The step, as Lightning calls it: one batch is one window of this rank's lanes, one optimizer update.

In: batches of `training/data.py`. Out: gradients of the global mean nats; the carried state and what a checkpoint needs
beyond weights. Refuses nothing: what it is given was judged before.
"""

from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from itertools import islice
from typing import Any, NamedTuple

import lightning
import torch
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor

from pipeline.config import OptimConfig
from pipeline.corpus.lanes import LanePlan
from pipeline.corpus.order import Order
from pipeline.model.language_model import LanguageModel
from pipeline.run.checkpoint import AVERAGED, OWN_KEY, all_finite
from pipeline.training.collectives import Collectives
from pipeline.training.data import Batch
from pipeline.training.optimization import averages_from, build_optimizer, learning_rate
from pipeline.training.state import TrainState
from pipeline.upgrades import stored_identity


class Measured(NamedTuple):
    """What is known of a step once the ranks have told each other; the first update leads to step 1.

    Attributes:
        step: the update's number.
        nats: of the global batch.
        gradient_norm: of the global gradient, before clipping; if it is not finite, the update has spoilt the weights.
        cluster_nats, cluster_targets: of the global batch, for each cluster of the output layer.
    """

    step: int
    nats: float
    gradient_norm: float
    cluster_nats: tuple[float, ...] = ()
    cluster_targets: tuple[int, ...] = ()


class LanguageModelModule(lightning.LightningModule):
    """A language model under training.

    Args:
        model: with its weights drawn.
        plan: the tiling of the training split.
        order: in which an epoch reads it.
        optim: the section.
        total_steps: steps of the whole run.
        validate_every: steps between validations; the one at the run's end may stand between two of them.
        carry: each lane carries its state on at an epoch's start, instead of zero.
        identity: what a checkpoint is stamped with: plain values, by name.
        ranks: the ranks of the run.
        lanes: those of this rank.
        first_batch: this rank's share of a batch near the first step, as full as that of step 0.
        skipped: steps whose windows are passed over: no update, and no lane's state moves.

    Attributes:
        state: what the run carries from step to step.
        unsettled_nats: of each step since the last `settle`, summed over this rank's lanes.
        unsettled_norms: of the global gradient of each of these steps.
        unsettled_cluster_nats, unsettled_cluster_targets: as `unsettled_nats`, for each cluster of the output layer.
        gradient_norm: of the global gradient in the last step, before clipping.
    """

    def __init__(
        self,
        model: LanguageModel,
        *,
        plan: LanePlan,
        order: Order,
        optim: OptimConfig,
        total_steps: int,
        validate_every: int,
        carry: bool,
        identity: dict[str, str],
        ranks: Collectives,
        lanes: range,
        first_batch: Callable[[], Batch],
        skipped: Collection[int] = (),
    ) -> None:
        super().__init__()
        self.model = model
        self.plan = plan
        self.order = order
        self.optim = optim
        self.total_steps = total_steps
        self.validate_every = validate_every
        self.carry = carry
        self.identity = identity
        self.ranks = ranks
        self.lanes = lanes
        self.first_batch = first_batch
        self.state = TrainState(skipped=set(skipped))
        self.unsettled_nats: list[Tensor] = []
        self.unsettled_norms: list[Tensor] = []
        self.unsettled_cluster_nats: list[Tensor] = []
        self.unsettled_cluster_targets: list[tuple[int, ...]] = []
        self.gradient_norm = torch.zeros(())

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """The optimizer alone: the learning rate is set before each step."""
        return build_optimizer(self.parameters(), self.optim)

    def current_learning_rate(self) -> float:
        """The rate of the step to come; a window whose length is drawn has its share of `bptt` of it."""
        rate = learning_rate(
            self.optim,
            step=self.global_step,
            epoch=self.plan.position(self.global_step)[0],
            total_steps=self.total_steps,
            validations=[nats for _, nats in sorted(self._regular_validations().items())],
        )
        return rate * self.plan.share_of_bptt(self.global_step)

    def averages_from(self) -> int | None:
        """The step after which the weights of each update enter their mean, by the validations so far."""
        return averages_from(self.optim, self._regular_validations())

    def _regular_validations(self) -> dict[int, float]:
        """Those that decide how training goes on.

        One at the end of a run that now goes on has no part in it: without the stop it would not have been.
        """
        return {step: nats for step, nats in self.state.validations.items() if step % self.validate_every == 0}

    @contextmanager
    def evaluated(self) -> Iterator[None]:
        """Within it the model has the weights that are evaluated: their mean, where there is one."""
        self._exchange_weights()
        try:
            yield
        finally:
            self._exchange_weights()

    @torch.no_grad()
    def _exchange_weights(self) -> None:
        """Puts each weight where its mean is and the mean where it is, in place: others hold on to both."""
        for name, weight in self.model.named_parameters() if self.state.averaged else ():
            kept = weight.clone()
            weight.copy_(self.state.averaged[name])
            self.state.averaged[name].copy_(kept)

    def on_train_start(self) -> None:
        """Puts what a checkpoint brought where the steps are computed."""
        if self.ranks.world_size > 2:
            self.rehearse(self.first_batch())
        if self.state.carried is not None:
            self.state.carried = tuple(each.to(self.device) for each in self.state.carried)
        self.state.averaged = {name: mean.to(self.device) for name, mean in self.state.averaged.items()}

    def on_train_batch_start(self, batch: Batch, batch_idx: int) -> None:
        """Sets the learning rate of the step."""
        rate = self.current_learning_rate()
        for group in self.trainer.optimizers[0].param_groups:
            group["lr"] = rate

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """The rank's share of the global mean nats, and of what the configuration adds to them.

        DDP averages the ranks' gradients, so each gives its nats · world_size / targets of the global batch. What is
        noted are the nats alone.
        """
        if self.state.carried is None or (batch.starts_epoch and not self.carry):
            self.state.carried = self.model.recurrence.zero_state(batch.inputs_TL.shape[1])
        if self.global_step in self.state.skipped:
            return self._no_loss()
        hidden_TLH, penalty, state = self.model.hidden_and_penalty(
            batch.inputs_TL,
            self.state.carried,
            keys_SL=batch.keys_SL,
            num_targets=batch.num_targets,
            num_pairs=max(0, batch.num_targets - self.plan.num_lanes),  # the lanes' lengths differ by one at most
            short_L=batch.short_L,
            rows_N=batch.rows_N,
        )
        nats_N = self.model.nats(hidden_TLH, batch.targets, rows_N=batch.rows_N)
        self.state.carried = tuple(each.detach() for each in state)  # truncated BPTT
        total_nats: Tensor = nats_N.sum()
        self._note_nats(total_nats.detach(), *self.model.softmax.cluster_sums(nats_N.detach(), batch.targets))
        minimized = total_nats if penalty is None else total_nats + penalty
        return minimized * (self.trainer.world_size / batch.num_targets)

    def _no_loss(self) -> Tensor:
        """Zero, with zero gradients for every parameter: DDP waits for each of them, in every step."""
        zeros = torch.zeros(len(self.model.softmax.clusters), device=self.device)
        self._note_nats(torch.zeros((), device=self.device), zeros, (0,) * len(zeros))
        return torch.stack([parameter.sum() * 0 for parameter in self.parameters()]).sum()

    def optimizer_step(
        self,
        epoch: int,
        batch_idx: int,
        optimizer: Any,
        optimizer_closure: Callable[[], Any] | None = None,
    ) -> None:
        """One update, which enters the mean of the weights if it is time; none where the window is passed over."""
        if self.global_step in self.state.skipped:
            assert optimizer_closure is not None
            optimizer_closure()
            self._note_norm(torch.zeros((), device=self.device))
            return
        super().optimizer_step(epoch, batch_idx, optimizer, optimizer_closure)
        if self.averages_from() is not None:
            self.state.average(self.model.named_parameters())

    def rehearse(self, batch: Batch) -> None:
        """One backward pass of a batch, of which nothing is kept; all ranks do it before their first step.

        DDP lays its buckets out anew after the first backward pass that it sees, and a sum over three ranks or more is
        rounded by the layout: without this, the first step after a resume would not have the bits of the same step of
        a run that was never stopped.
        """
        kept, self.state = self.state, TrainState()
        batch = self.trainer.strategy.batch_to_device(batch, self.device)
        loss: Any = self.trainer.strategy.training_step(batch, 0)
        loss.backward()
        self.zero_grad()
        self._forget_nats()
        self.state = kept

    def settle(self, also: Sequence[float]) -> tuple[list[Measured], list[float]]:
        """Brings together what the ranks know of the steps since the last call; a collective.

        It waits for the device, and is therefore not to be called in every step.

        Args:
            also: what else to sum over the ranks in the same message.

        Returns:
            These steps, in order; and the sums of `also`.
        """
        num_steps = len(self.unsettled_nats)
        local = [*self.unsettled_nats, *self.unsettled_norms]
        assert len(local) == 2 * num_steps, f"{len(local) - num_steps} gradient norms of {num_steps} steps"
        measured = torch.cat([torch.stack(local), *self.unsettled_cluster_nats]).double().tolist() if local else []
        counts = [float(count) for each in self.unsettled_cluster_targets for count in each]
        self._forget_nats()
        self.unsettled_norms.clear()
        sums = iter(self.ranks.sums([*measured, *counts, *also]))
        nats = list(islice(sums, num_steps))
        norms = [each / self.ranks.world_size for each in islice(sums, num_steps)]
        num_clusters = len(self.model.softmax.clusters)
        cluster_nats = [tuple(islice(sums, num_clusters)) for _ in nats]
        cluster_targets = [tuple(int(each) for each in islice(sums, num_clusters)) for _ in nats]
        steps = range(self.global_step - num_steps + 1, self.global_step + 1)
        found = zip(steps, nats, norms, cluster_nats, cluster_targets, strict=True)
        return [Measured(*each) for each in found], list(sums)

    def not_finite(self) -> list[str]:
        """What of that which a checkpoint holds is not finite, by name; a collective.

        Of the weights it is the square of their norm: as long as that fits into float32, no inner product of two of
        them can overflow, so that a loss that is not finite has another cause than them.

        It reads all of it and waits for the device: it is for steps that are saved.
        """
        assert self.state.carried is not None
        weights = torch.stack([torch.linalg.vector_norm(each.detach()) for each in self.parameters()])
        optimizer = [each for kept in self.trainer.optimizers[0].state.values() for each in dict(kept).values()]
        parts = {
            "norm of the weights": [weights.square().sum()],
            "optimizer's state": [each for each in optimizer if isinstance(each, Tensor)],
            "carried state": [*self.state.carried],
            "mean of the weights": [*self.state.averaged.values()],
        }
        found = self.ranks.sums([float(not all_finite(tensors)) for tensors in parts.values()])
        return [name for name, count in zip(parts, found, strict=True) if count]

    def configure_gradient_clipping(
        self,
        optimizer: torch.optim.Optimizer,
        gradient_clip_val: float | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:
        """Clips the global gradient once, by its norm; the norm before it is the one logged."""
        limit = self.optim.clip_norm or float("inf")
        self._note_norm(torch.nn.utils.clip_grad_norm_(self.parameters(), limit))

    def _note_nats(self, nats: Tensor, cluster_nats: Tensor, cluster_targets: tuple[int, ...]) -> None:
        self.unsettled_nats.append(nats)
        self.unsettled_cluster_nats.append(cluster_nats)
        self.unsettled_cluster_targets.append(cluster_targets)

    def _forget_nats(self) -> None:
        self.unsettled_nats.clear()
        self.unsettled_cluster_nats.clear()
        self.unsettled_cluster_targets.clear()

    def _note_norm(self, norm: Tensor) -> None:
        self.gradient_norm = norm
        self.unsettled_norms.append(norm)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Adds what a resume needs; a collective: all ranks save, and the first one writes."""
        assert not self.unsettled_nats, "a checkpoint of steps that nobody has judged"
        names = self.model.recurrence.state_names
        checkpoint[OWN_KEY] = {
            "identity": stored_identity(self.identity),
            "tokens_seen": self.plan.tokens_seen(self.global_step),
            **self.state.state_dict(names, step=self.global_step, lanes_of_all=self.ranks.lanes_of_all),
            AVERAGED: self._averaged_by_all_names(),
        }

    def _averaged_by_all_names(self) -> dict[str, Tensor]:
        """A weight that is shared has several names in the model's `state_dict`; so has its mean in a checkpoint."""
        if not self.state.averaged:
            return {}
        first = {id(weight): name for name, weight in self.model.named_parameters()}
        every = self.model.named_parameters(remove_duplicate=False)
        return {name: self.state.averaged[first[id(weight)]] for name, weight in every}

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Takes it up again, with the state of this rank's lanes, however many ranks wrote it."""
        self.state.load_state_dict(checkpoint[OWN_KEY], self.model.recurrence.state_names, lanes=self.lanes)
        if averaged := self.state.averaged:
            self.state.averaged = {name: averaged[name] for name, _ in self.model.named_parameters()}
        # a finished run whose limit has grown goes on; Lightning would take its last batch for the end
        checkpoint["loops"]["fit_loop"]["epoch_loop.batch_progress"]["is_last_batch"] = False
