"""Stages: the interface between the training loop and what it trains.

The loop (cfld.train.fit) uses only this interface. A stage is an nn.Module, so that processes can share its gradients.
Its constructor takes the options, the architecture and the training pairs.

To add a stage, write a class with the attributes and methods of Stage, as in cfld/training/pretrain.py, and name it in
STAGES and in cfld.training.options.STAGE_NAMES. To train the full model on another loss, change cfld.objective.
"""

from pathlib import Path
from typing import Any, Protocol

from torch import Generator, Tensor, nn
from torch.utils.data import Dataset

from cfld.config import CFLDConfig
from cfld.data.batch import Batch, Pair
from cfld.folder import save
from cfld.model import CFLD
from cfld.objective import StepNoise, training_loss
from cfld.sampling import SamplingConfig
from cfld.tools.card import training_card
from cfld.tools.cli import UserError
from cfld.training.checkpoint import frozen_hash, read_learnt
from cfld.training.distill import DistillStage
from cfld.training.initial import hashed_modules, initial_model, trained_model
from cfld.training.options import TrainConfig, checked_options, saved_options
from cfld.training.pretrain import BaseStage, SourceStage, VAEStage
from cfld.training.samples import sample_columns
from cfld.vae import VAE


class Stage(Protocol):
    """What is trained, on which loss, and what comes of it."""

    config: CFLDConfig
    ema: dict[str, Tensor]  # State.ema, which the loop sets before the first step
    frozen_sha256: str  # of the weights of --init that do not change, before any cast
    needs_attributes: bool  # whether pairs must come with the attributes of their people
    makes_model: bool  # whether its checkpoints can be made into model folders

    def __call__(self, batch: Batch, noise: StepNoise) -> Tensor:
        """The mean loss of a micro-batch."""

    def trained(self) -> dict[str, nn.Parameter]:
        """The parameters that train, by their names in a checkpoint."""

    def samples(self, batch: Batch, steps: int, generators: list[Generator]) -> list[Tensor]:
        """Columns of a sample grid, each (B, 3, H, H) in [-1, 1]; none if there is nothing to show."""

    def export(self, folder: Path, learnt: dict[str, Tensor]) -> None:
        """Write the folder that the next stage starts from, or a model folder; learnt: State.learnt."""


class CFLDStage(nn.Module):
    """The full model, or a baseline of Table 3."""

    needs_attributes, makes_model = False, True

    def __init__(self, options: TrainConfig, config: CFLDConfig, pairs: Dataset[Pair]):
        super().__init__()
        self.config, self.options = config, options
        self.model, self.vae = initial_model(options, config)
        self.frozen_sha256 = frozen_hash(*hashed_modules(options, self.model, self.vae.requires_grad_(False)))

    def forward(self, batch: Batch, noise: StepNoise) -> Tensor:
        """Half of Eq. 6: the mean of its two losses."""
        return training_loss(self.model, self.vae, batch, noise, self.options.recipe, self.options.min_snr)

    def trained(self) -> dict[str, nn.Parameter]:
        return {name: p for name, p in self.model.named_parameters() if p.requires_grad}

    def samples(self, batch: Batch, steps: int, generators: list[Generator]) -> list[Tensor]:
        """Columns of a sample grid: source, pose, target, result."""
        return sample_columns(self.model, self.vae, batch, SamplingConfig(steps=steps), generators)

    def export(self, folder: Path, learnt: dict[str, Tensor]) -> None:
        """Write a model folder."""
        model, vae = trained_model(self.options, self.config, learnt, self.frozen_sha256)
        save(folder, model, vae, replace=True, card=training_card(self.options, self.config.image_size))


STAGES: dict[str, Any] = {
    "cfld": CFLDStage,
    "vae": VAEStage,
    "source": SourceStage,
    "base": BaseStage,
    "distill": DistillStage,
}


def checkpoint_model(path: str | Path) -> tuple[CFLD, VAE]:
    """The model that a run would write if it ended at this checkpoint, RUN/checkpoints/NAME. Raises UserError."""
    path = Path(path)
    learnt, config, frozen = read_learnt(path)
    run = path.absolute().parent.parent
    options = checked_options(saved_options(run), run)
    if not STAGES[options.stage].makes_model:
        raise UserError(
            f"{path}: checkpoints of --stage {options.stage} cannot become model folders: wait until the stage ends"
        )
    return trained_model(options, config, learnt, frozen)
