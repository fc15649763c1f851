"""A small training that uses every source of chance: dropout, shuffled data, a random start.

Run as a program it resumes from a folder, in a process of its own, and prints what it ends with.
"""

import hashlib
import sys
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from encoders.config import PromptEncoderConfig
from encoders.formats.training_state import load_training_state, save_training_state
from encoders.modules.prompt_encoder import PromptEncoder

ROWS, BATCH, WIDTH, VIRTUAL = 10, 3, 6, 4
OPTIMIZERS: dict[str, Any] = {
    "AdamW": lambda parameters: torch.optim.AdamW(
        parameters, lr=0.1 / 3, betas=(0.87, 1 - 1e-3 / 7), amsgrad=True
    ),
    "SGD": lambda parameters: torch.optim.SGD(parameters, lr=0.05, momentum=0.9, nesterov=True),
    "Adafactor": lambda parameters: torch.optim.Adafactor(parameters, lr=0.05),
    "RMSprop": lambda parameters: torch.optim.RMSprop(parameters, lr=0.01, momentum=0.1),
    "LBFGS": lambda parameters: torch.optim.LBFGS(parameters, lr=0.1, max_iter=2),
    "Adam with a tensor as lr": lambda parameters: torch.optim.Adam(parameters, torch.tensor(0.01)),
}
_lr = torch.optim.lr_scheduler
SCHEDULERS: dict[str, Any] = {
    "cosine": lambda optimizer: _lr.CosineAnnealingLR(optimizer, T_max=7),
    "lambda": lambda optimizer: _lr.LambdaLR(optimizer, lambda step: 0.97**step),
    "steps": lambda optimizer: _lr.MultiStepLR(optimizer, [2, 2, 5], gamma=0.3),
    "one cycle": lambda optimizer: _lr.OneCycleLR(optimizer, max_lr=0.2, total_steps=20),
    "plateau": lambda optimizer: _lr.ReduceLROnPlateau(optimizer, patience=1),
    "warm-up": lambda optimizer: _lr.SequentialLR(
        optimizer,
        [_lr.LinearLR(optimizer, total_iters=3), _lr.ExponentialLR(optimizer, 0.9)],
        milestones=[3],
    ),
}


class TinyTraining:
    """Trains an encoder towards a random target; its next batch is `order[position]` on."""

    def __init__(
        self, encoder: str = "LSTM", optimizer: str = "AdamW", scheduler: str | None = "cosine"
    ) -> None:
        self.config = PromptEncoderConfig(
            num_virtual_tokens=VIRTUAL,
            token_dim=WIDTH,
            encoder_hidden_size=5,
            encoder_reparameterization_type=encoder,
            encoder_dropout=0.3 if encoder == "LSTM" else 0.0,
        )
        self.encoder = PromptEncoder(self.config)
        self.dropout = nn.Dropout(0.2)
        self.optimizer: Optimizer = OPTIMIZERS[optimizer](self.encoder.parameters())
        self.scheduler: LRScheduler | None = (
            SCHEDULERS[scheduler](self.optimizer) if scheduler else None
        )
        self.data = torch.Generator().manual_seed(5)
        self.order: list[int] = []
        self.step = 0
        self.losses: list[float] = []
        self.targets = torch.randn(ROWS, VIRTUAL, WIDTH, generator=torch.Generator().manual_seed(6))

    def run(self, num_steps: int) -> None:
        for _ in range(num_steps):
            if len(self.order) < BATCH:
                self.order += torch.randperm(ROWS, generator=self.data).tolist()
            batch, self.order = self.order[:BATCH], self.order[BATCH:]

            def loss(rows: list[int] = batch) -> Tensor:
                self.optimizer.zero_grad()
                tokens = self.dropout(self.encoder.virtual_tokens())
                value = (tokens - self.targets[rows]).square().mean()
                value.backward()
                return value

            self.losses.append(float(self.optimizer.step(loss).detach()))
            if isinstance(self.scheduler, _lr.ReduceLROnPlateau):
                self.scheduler.step(self.losses[-1])
            elif self.scheduler is not None:
                self.scheduler.step()
            self.step += 1

    def save(self, folder: Path) -> None:
        save_training_state(
            folder,
            encoder=self.encoder,
            optimizer=self.optimizer,
            scheduler=self.scheduler,
            generators={"data": self.data},
            step=self.step,
            data_position={"order": self.order},
            config=self.config.to_dict(),
        )

    def resume(self, folder: Path) -> None:
        state = load_training_state(folder)
        state.restore(self.encoder, self.optimizer, self.scheduler, {"data": self.data})
        self.step, self.order = state.step, state.data_position["order"]

    def digest(self) -> str:
        """Of the weights, to the last bit."""
        digest = hashlib.sha256()
        for tensor in self.encoder.state_dict().values():
            digest.update(tensor.numpy().tobytes())
        return digest.hexdigest()


if __name__ == "__main__":
    torch.set_num_threads(1)
    training = TinyTraining(*sys.argv[3:])
    training.resume(Path(sys.argv[1]))
    training.run(int(sys.argv[2]))
    print(training.digest(), *[loss.hex() for loss in training.losses])
