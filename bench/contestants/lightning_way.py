"""PyTorch Lightning as its documentation shows it: a LightningModule, a Trainer; DDP by strategy="ddp".

To its advantage, logging to disk, checkpoints, the progress bar and the sanity check before training are off.
"""

from __future__ import annotations

import os

import lightning
import torch
from common import Options, Stopwatch, data_loader, image_sets, plain_model, plain_optimizer, read_options
from torch.nn import functional


class Classifier(lightning.LightningModule):
    def __init__(self, options: Options) -> None:
        super().__init__()
        self.options, self.model = options, plain_model(options)

    def training_step(self, batch, batch_index):
        images, labels = batch
        loss = functional.cross_entropy(self.model(images), labels, label_smoothing=self.options.config.label_smoothing)
        self.log("train_loss", loss)
        return loss

    def validation_step(self, batch, batch_index):
        images, labels = batch
        right = (self.model(images).argmax(1) == labels).float().mean()
        self.log("accuracy", right, sync_dist=True, on_epoch=True)

    def configure_optimizers(self):
        return plain_optimizer(self, self.options)


class Clock(lightning.Callback):
    """Tells the stopwatch where the Trainer is."""

    def __init__(self, watch: Stopwatch, images: int) -> None:
        self.watch, self.images = watch, images

    def on_train_epoch_start(self, trainer, module):
        self.watch.epoch_begins()

    def on_train_batch_end(self, trainer, module, outputs, batch, batch_index):
        self.watch.step_done()

    def on_validation_start(self, trainer, module):
        self.watch.training_done(self.images)

    def on_validation_epoch_end(self, trainer, module):
        self.watch.epoch_done(float(trainer.callback_metrics["accuracy"]))


def main() -> None:
    options, watch = read_options(), Stopwatch()
    processes = int(os.environ.get("WORLD_SIZE", 1))
    train, test = image_sets(options)
    train_loader, test_loader = data_loader(train, options, True), data_loader(test, options, False)
    steps = options.job.train_images // (processes * options.batch_size)
    trainer = lightning.Trainer(
        accelerator="cpu",
        devices=processes,
        strategy="ddp" if processes > 1 else "auto",
        precision="bf16-mixed" if options.precision == "bf16" else "32-true",
        max_epochs=options.config.epochs,
        num_sanity_val_steps=0,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[Clock(watch, steps * options.batch_size * processes)],
    )
    torch.manual_seed(0)
    classifier = Classifier(options)
    trainer.fit(torch.compile(classifier) if options.compiled else classifier, train_loader, test_loader)
    watch.report()


if __name__ == "__main__":
    main()
