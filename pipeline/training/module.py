"""The step, as Lightning calls it: one batch is one window of this rank's lanes, one optimizer update.

In: batches of `training/data.py`. Out: gradients of the global mean nats; the carried state and what a checkpoint needs
beyond weights. Refuses nothing: what it is given was judged before.
"""

from typing import Any

import lightning
import torch
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor

from pipeline.config import OptimConfig
from pipeline.corpus.lanes import LanePlan
from pipeline.model.language_model import LanguageModel
from pipeline.model.recurrent import State
from pipeline.training.data import Batch
from pipeline.training.optimization import build_optimizer, learning_rate

OWN_KEY = "wordlanes"  # where our part of a checkpoint stands


class LanguageModelModule(lightning.LightningModule):
    """A language model under training.

    Args:
        model: with its weights drawn.
        plan: the tiling of the training split.
        optim: the section.
        total_steps: steps of the whole run.
        validate_every: steps between validations; the one at the run's end may stand between two of them.
        carry: each lane carries its state on at an epoch's start, instead of zero.
        identity: what a checkpoint is stamped with: plain values, by name.

    Attributes:
        validations: nats per token of each validation so far, by step.
        interval_nats, interval_targets: summed since the last logged step, over this rank's lanes.
        gradient_norm: of the global gradient in the last step, before clipping.
    """

    def __init__(
        self,
        model: LanguageModel,
        *,
        plan: LanePlan,
        optim: OptimConfig,
        total_steps: int,
        validate_every: int,
        carry: bool,
        identity: dict[str, str],
    ) -> None:
        super().__init__()
        self.model = model
        self.plan = plan
        self.optim = optim
        self.total_steps = total_steps
        self.validate_every = validate_every
        self.carry = carry
        self.identity = identity
        self.state: State | None = None
        self.validations: dict[int, float] = {}
        self.interval_nats = torch.zeros((), dtype=torch.float64)
        self.interval_targets = 0
        self.gradient_norm = torch.zeros(())

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """The optimizer alone: the learning rate is set before each step."""
        return build_optimizer(self.parameters(), self.optim)

    def current_learning_rate(self) -> float:
        """The rate of the step to come.

        A validation at the end of a run that now goes on has no part in it: without the stop it would not have been.
        """
        regular = [nats for step, nats in sorted(self.validations.items()) if step % self.validate_every == 0]
        return learning_rate(
            self.optim,
            step=self.global_step,
            epoch=self.plan.position(self.global_step)[0],
            total_steps=self.total_steps,
            validations=regular,
        )

    def on_train_start(self) -> None:
        """Puts what a checkpoint brought where the steps are computed."""
        self.interval_nats = self.interval_nats.to(self.device)
        if self.state is not None:
            self.state = State(self.state.hidden_KLP.to(self.device), self.state.cell_KLH.to(self.device))

    def on_train_batch_start(self, batch: Batch, batch_idx: int) -> None:
        """Sets the learning rate of the step."""
        rate = self.current_learning_rate()
        for group in self.trainer.optimizers[0].param_groups:
            group["lr"] = rate

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """The rank's share of the global mean nats.

        DDP averages the ranks' gradients, so each gives its nats · world_size / targets of the global batch.
        """
        if self.state is None or (batch.starts_epoch and not self.carry):
            self.state = self.model.recurrence.zero_state(batch.inputs_TL.shape[1])
        nats_N, state = self.model(
            batch.inputs_TL,
            self.state,
            batch.targets,
            keys_SL=batch.keys_SL,
            short_L=batch.short_L,
            rows_N=batch.rows_N,
        )
        self.state = state.detached()
        total_nats: Tensor = nats_N.sum()
        self.interval_nats += total_nats.detach()
        self.interval_targets += batch.num_targets
        return total_nats * (self.trainer.world_size / batch.num_targets)

    def configure_gradient_clipping(
        self,
        optimizer: torch.optim.Optimizer,
        gradient_clip_val: float | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:
        """Clips the global gradient once, by its norm; the norm before it is the one logged."""
        limit = self.optim.clip_norm or float("inf")
        self.gradient_norm = torch.nn.utils.clip_grad_norm_(self.parameters(), limit)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Adds what a resume needs: the carried state, the sums since the last logged step, the validations."""
        assert self.state is not None, "a checkpoint before the first step"
        checkpoint[OWN_KEY] = {
            "identity": self.identity,
            "tokens_seen": self.plan.tokens_seen(self.global_step),
            "hidden_KLP": self.state.hidden_KLP.cpu(),
            "cell_KLH": self.state.cell_KLH.cpu(),
            "validations": self.validations,
            "interval_nats": float(self.interval_nats),
            "interval_targets": self.interval_targets,
        }

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Takes it up again."""
        own = checkpoint[OWN_KEY]
        self.state = State(own["hidden_KLP"], own["cell_KLH"])
        self.validations = own["validations"]
        self.interval_nats = torch.tensor(own["interval_nats"], dtype=torch.float64)
        self.interval_targets = own["interval_targets"]
        # a finished run whose limit has grown goes on; Lightning would take its last batch for the end
        checkpoint["loops"]["fit_loop"]["epoch_loop.batch_progress"]["is_last_batch"] = False
