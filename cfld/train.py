"""Train CFLD (Sec. 3.3 and 4.1). This is the loop; the loss is in cfld/objective.py.

    python -m cfld.train --preset sd15 --init DIR --data ROOT --out RUN
    python -m cfld.train --ablation B3 ...                        a baseline of Table 3 instead of the full model
    python -m cfld.train --out RUN --resume                       continue after any stop; SIGTERM and Ctrl-C save
    python -m cfld.train --finetune DIR --data ROOT --out RUN     from a model folder, with its architecture
    python -m cfld.train --stage distill --init DIR --data ROOT --out RUN    a student that needs four steps
    python -m cfld.train --dry-run ...                            memory and time of a step; writes nothing
    torchrun --nproc-per-node 8 -m cfld.train ...                 the same training; 8 processes share each batch

TINY has no public weights to start from, so two stages come before it:
    python -m cfld.train --preset tiny --stage vae --data people:2000x4 --out RUN_VAE
    python -m cfld.train --preset tiny --stage source --init RUN_VAE/model --data people:2000x4 --out RUN_SOURCE
    python -m cfld.train --preset tiny --init RUN_SOURCE/model --data people:2000x4 --out RUN

A run folder holds config.json, log.jsonl, samples/, checkpoints/ and at the end model/, a model folder.
Everything random in a step is a function of (seed, step, place of the pair in the global batch). A run that is stopped
and resumed therefore ends with the same weights, bit for bit on a CPU. Other micro-batches, or another number of
processes, change only rounding.

Letters in shapes: B pairs, which make 2B samples: every source from itself, then every target from its source.
"""

import contextlib
import dataclasses
import math
import signal
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NoReturn

import torch
from torch.nn.utils import clip_grads_with_norm_, get_total_norm
from tqdm import tqdm

from cfld.config import CFLDConfig
from cfld.data.batch import Batch, StepOrder, collate, lost_worker, seeded, step_batches
from cfld.data.cache import Cache
from cfld.data.encode import manifest
from cfld.data.pairs import DescribedPairs, FashionPairs, PeoplePairs, listing_sum, open_pairs, refuse_common_photos
from cfld.objective import step_noise
from cfld.sampling import SamplingConfig
from cfld.tools.cli import PRECISIONS, UserError, command, require_compiler
from cfld.tools.files import alone_in
from cfld.tools.processes import Processes, join
from cfld.training.attention import write_out_attention
from cfld.training.checkpoint import State
from cfld.training.initial import architecture
from cfld.training.memory import cast_frozen, checkpoint_activations, estimate, keep_freed_memory, memory
from cfld.training.options import Request, TrainConfig, parse
from cfld.training.run_folder import Meter, RunFolder, read_run_config
from cfld.training.stages import STAGES, Stage
from cfld.unet import UNet

VALIDATION_PAIRS, NO_STEP = 64, 2**31  # pairs of the validation loss, and the step whose noise they take


def learning_rate(step: int, total: int, options: TrainConfig) -> float:
    """Linear warm-up, constant, a tenth for the rest (Sec. 4.1). The warm-up begins at a tenth, as in the released
    code; the paper does not say where."""
    if step < options.warmup_steps:
        return options.peak_lr * (0.1 + 0.9 * (step + 1) / options.warmup_steps)
    return options.peak_lr * (0.1 if step >= options.decay_at * total else 1.0)


def moved_decay(step: int, began: int | None, total: int, options: TrainConfig) -> str | None:
    """A message if a run continues after this step with another number of steps than it began with."""
    if began is None or began == total or step >= total:
        return None
    falls, fell = (math.ceil(options.decay_at * steps) for steps in (total, began))
    rate, was = (learning_rate(step, steps, options) for steps in (total, began))
    return (
        f"{total:,} steps instead of {began:,} move the fall of the learning rate from step {fell:,} to {falls:,}: "
        f"step {step + 1:,} has {rate:g}, where the run began with {was:g}"
    )


def fit(
    stage: Stage,
    state: State,
    batches: Iterable[Batch],
    validation: Any,
    run: RunFolder,
    processes: Processes,
    options: TrainConfig,
) -> None:
    """Minimise the stage's loss (Eq. 6 for the full model) from state.step to options.steps, one batch per step.

    All randomness of a step is a function of (seed, step, place of the pair), so no generator's state is saved. A run
    that is stopped and resumed ends with the same weights; other micro-batches or processes change only rounding.
    """
    assert options.steps is not None  # train() has settled it
    loss_of = processes.distribute(stage)
    bar = tqdm(batches, desc=options.stage, total=options.steps, initial=state.step, disable=not processes.is_main)
    meter = Meter(samples_per_step=2 * options.global_batch)
    for step, batch in zip(range(state.step, options.steps), bar, strict=True):
        # Learning rate (Sec. 4.1).
        lr = learning_rate(step, options.steps, options)
        for group in state.optimizer.param_groups:
            group["lr"] = lr

        # Gradient of the mean loss over the global batch, one micro-batch at a time.
        state.optimizer.zero_grad(set_to_none=True)
        loss = torch.zeros((), device=processes.device)
        for i, micro_batch in enumerate(batch.split(options.accumulate)):
            noise = step_noise(options.seed, step, micro_batch.places, stage.config).to(processes.device)
            with processes.sync_gradients(loss_of, when=i == options.accumulate - 1):
                with processes.autocast(options.precision):
                    part = loss_of(micro_batch.to(processes.device), noise) / options.accumulate
                state.scaler.scale(part).backward()
            loss += part.detach()

        # Adam step on a finite, clipped gradient. In fp16 the scaler skips a step whose gradient is not finite.
        state.scaler.unscale_(state.optimizer)
        norm = get_total_norm([p.grad for p in state.trained.values() if p.grad is not None])
        if options.clip:
            clip_grads_with_norm_(state.trained.values(), options.clip, norm)
        # Means over processes, and a signal if somebody has sent one: the step's only wait for the device.
        mean_loss, mean_norm, stop = processes.mean_and_stop(loss, norm)
        require_finite("loss", mean_loss, step, run)
        if not state.scaler.is_enabled():
            require_finite("gradient norm", mean_norm, step, run)
        state.scaler.step(state.optimizer)
        state.scaler.update()
        state.step = step + 1

        # Exponential moving average with a warm-up, so that the initial weights are soon forgotten.
        state.update_ema(decay=min(options.ema, state.step / (state.step + 9)))

        # Log and validate.
        meter.add(mean_loss)
        bar.set_postfix(loss=f"{mean_loss:.4f}", refresh=False)
        if is_due(state.step, options.log_every):
            run.log(state.step, lr=lr, **meter.read())
        best = is_due(state.step, options.eval_every) and validate(stage, state, validation, run, processes, options)

        # Save on schedule, on a new best, at the end, or because somebody has asked us to stop.
        if is_due(state.step, options.save_every) or best or stop or state.step == options.steps:
            run.save(state, best)
        if stop:
            leave(stop, state, run, processes)
        if is_due(state.step, options.sample_every):
            save_samples(stage, state, validation, run, processes, options)
        meter.restart()


def leave(stop: signal.Signals, state: State, run: RunFolder, processes: Processes) -> NoReturn:
    """End all processes, now that the state is saved, with the exit code that a shell gives to this signal."""
    processes.barrier()
    processes.print(
        f"{stop.name}: saved {run.path} after step {state.step}; python -m cfld.train --out {run.path} --resume "
        "continues it"
    )
    raise SystemExit(128 + stop)


def is_due(step: int, every: int) -> bool:
    """Whether step is a multiple of every; never if every is 0."""
    return every > 0 and step % every == 0


def require_finite(name: str, value: float, step: int, run: RunFolder) -> None:
    """Raise UserError unless a value of a step is finite."""
    if not math.isfinite(value):
        raise UserError(
            f"the {name} of step {step} must be finite, found {value}; {run.last_checkpoint()} was not overwritten; "
            "start again with a lower --lr"
        )


@torch.no_grad()
def validate(
    stage: Stage,
    state: State,
    pairs: Any,
    run: RunFolder,
    processes: Processes,
    options: TrainConfig,
) -> bool:
    """Log the validation loss: of the same pairs with the same noise each time, under the EMA weights if there are
    any. Returns whether it is the lowest so far."""
    count = min(VALIDATION_PAIRS, len(pairs))
    total = torch.zeros((), device=processes.device)
    with state.ema_weights(), processes.autocast(options.precision):
        for place in processes.share(count):
            batch = collate([pairs[place * len(pairs) // count]]).to(processes.device)
            noise = step_noise(options.seed, NO_STEP, range(place, place + 1), stage.config).to(processes.device)
            total += stage(batch, noise)
    loss = processes.all_reduce(total[None])[0] / count
    run.log(state.step, **{"validation loss": loss})
    return state.is_best(loss)


@torch.no_grad()
def save_samples(
    stage: Stage,
    state: State,
    pairs: Any,
    run: RunFolder,
    processes: Processes,
    options: TrainConfig,
) -> None:
    """Write a sample grid of the same four pairs from the same seeds each time, under the EMA weights."""
    if not run.writes:
        return
    chosen = [pairs[i * len(pairs) // 4] for i in range(min(4, len(pairs)))]
    seeds = [seeded(options.seed, i) for i in range(len(chosen))]
    with state.ema_weights(), processes.autocast(options.precision):
        columns = stage.samples(collate(chosen).to(processes.device), options.sample_steps, seeds)
    run.save_samples(state.step, columns, pairs.frame)


@dataclasses.dataclass(frozen=True)
class Data:
    """The training pairs, and those for validation and samples."""

    pairs: Any  # a data set of Pair
    listing: str  # cfld.data.pairs.listing_sum
    validation: Any  # the test split (for samples only, the training split if there is none); None if not needed
    steps_per_epoch: int  # the last, partial batch of an epoch is dropped


def open_data(options: TrainConfig, config: CFLDConfig) -> Data:
    """Open the pairs that the options name. Raises UserError if they do not fit the options."""
    if options.data is None:
        raise UserError(
            "--data ROOT is needed: a folder in DeepFashion's layout, prepared by python -m cfld.data prepare ROOT"
        )
    sizes = config.image_size, config.source_size
    pairs = open_pairs(options.data, "train", *sizes)
    if options.cache:
        if not (isinstance(pairs, FashionPairs) and options.init):
            raise UserError(f"--cache needs --init and a folder as --data, found --data {options.data}")
        expected = manifest(pairs, Path(options.init) / "vae.safetensors")
        pairs.cache = Cache(options.cache, expected, pairs.photos)
    if len(pairs) < options.global_batch:
        raise UserError(
            f"--batch {options.global_batch} must not exceed the {len(pairs)} training pairs of {options.data}"
        )
    has_test_split = isinstance(pairs, PeoplePairs) or (Path(options.data) / "test_highres").is_dir()
    if options.eval_every and not has_test_split:
        raise UserError(f"--eval-every needs pairs that are not trained on, found no test split in {options.data}")
    validation = None
    if options.eval_every or options.sample_every:
        validation = open_pairs(options.data, "test" if has_test_split else "train", *sizes)
        if has_test_split:
            refuse_common_photos(pairs, validation)
    listing, steps_per_epoch = listing_sum(pairs), len(pairs) // options.global_batch
    if STAGES[options.stage].needs_attributes:
        return Data(DescribedPairs(pairs), listing, validation and DescribedPairs(validation), steps_per_epoch)
    return Data(pairs, listing, validation, steps_per_epoch)


@contextlib.contextmanager
def batches_of(data: Data, state: State, processes: Processes, options: TrainConfig) -> Iterator[Iterator[Batch]]:
    """This process's share of the batches of all steps that are still to be done. Ends their workers on leaving."""
    workers = (4 if processes.device.type == "cuda" else 0) if options.workers is None else options.workers
    share = options.global_batch // processes.world
    places = range(processes.rank * share, (processes.rank + 1) * share)
    order = StepOrder(len(data.pairs), options.global_batch, options.seed, state.step, options.steps or 0, places)
    advice = "go on with --resume and fewer --workers"
    with lost_worker(advice), contextlib.closing(step_batches(data.pairs, order, workers)) as batches:
        yield batches


def train(options: TrainConfig, request: Request, processes: Processes) -> None:
    """Set up a run, fit the stage, export the model. Raises UserError."""
    # Processes: each takes an equal share of every micro-batch.
    if options.global_batch % (processes.world * options.accumulate):
        raise UserError(
            f"--batch {options.global_batch} must be a multiple of the {processes.world} processes times --accumulate "
            f"{options.accumulate}"
        )
    run = RunFolder(options, writes=processes.is_main and not request.dry_run)

    # Data, of the sizes that the architecture asks for.
    begun = run.path / "config.json"
    config = read_run_config(begun) if request.resume and begun.is_file() else architecture(options)
    SamplingConfig(options.sample_steps).check_steps(config, "--sample-steps")
    data = open_data(options, config)
    epochs = 100 if options.epochs is None else options.epochs
    steps = options.steps or max(1, round(epochs * data.steps_per_epoch))
    settled = dataclasses.replace(options, steps=steps, epochs=None)
    if options.warmup_steps > options.decay_at * steps:
        processes.print(
            f"the warm-up of {options.warmup_steps} steps ends after --decay-at {options.decay_at} of {steps:,} steps: "
            f"use a shorter --warmup to reach the learning rate of {options.peak_lr:g}"
        )

    # Stage: the networks, what trains of them, and the loss.
    stage = STAGES[options.stage](options, config, data.pairs)
    trained = stage.trained()
    processes.print(
        f"{options.stage}: training {sum(p.numel() for p in trained.values()):,} parameters for {steps:,} steps of "
        f"{options.global_batch} pairs on {processes.world} x {processes.device}"
    )

    # Precision and memory.
    keep_freed_memory()
    cast_frozen(stage, PRECISIONS[options.precision])
    stage.to(processes.device)
    checkpoint_activations(stage, options.activation_checkpointing)
    if processes.device.type == "cpu":
        write_out_attention(stage)  # in half precision, where it is faster
    if options.compile:
        require_compiler(processes.device)
    for module in stage.modules() if options.compile else ():
        if isinstance(module, UNet):
            module.compile()

    # Optimiser and state.
    fp16 = options.precision == "fp16"
    state = State.begin(trained, config, stage.frozen_sha256, options.peak_lr, ema=options.ema > 0, scaled=fp16)
    state.pairs = data.listing
    stage.ema = state.ema
    if request.dry_run:
        return dry_run(stage, state, data, run, processes, settled)

    # Run folder: a new one, or back to a checkpoint. No other process may work in it.
    with alone_in(run.path) if run.writes else contextlib.nullcontext():
        run.clear(request)
        processes.barrier()
        if message := run.restore(state, request.resume, steps):
            processes.print(message)
        if message := moved_decay(state.step, state.steps, steps, options):
            processes.print(message)
        state.steps = steps
        run.begin(state)

        # Fit and export.
        with processes.handle_signals(), batches_of(data, state, processes, settled) as batches:
            fit(stage, state, batches, data.validation, run, processes, settled)
        if processes.is_main:
            learnt = state.learnt()
            state.optimizer.state.clear()  # its memory makes room for the frozen weights
            stage.export(run.path / "model", learnt)
            processes.print(f"wrote {run.path / 'model'}")
        processes.barrier()


def dry_run(stage: Stage, state: State, data: Data, run: RunFolder, processes: Processes, options: TrainConfig) -> None:
    """Take two steps, of which the second is like all others, and print what a step needs. Writes nothing."""
    before = memory(processes.device)
    two = dataclasses.replace(options, steps=2, log_every=1, save_every=0, sample_every=0, eval_every=0)
    with batches_of(data, state, processes, two) as batches:
        fit(stage, state, batches, None, run, processes, two)
    seconds = 2 * options.global_batch / run.logged["samples/s"]
    lines = estimate(stage, state, before, processes.device) | {
        "steps per epoch": f"{data.steps_per_epoch:,}",
        "a step": f"{seconds:,.3g} s",
        f"{options.steps:,} steps": f"{(options.steps or 0) * seconds / 3600:,.3g} h, without checkpoints and samples",
    }
    width = max(len(name) for name in lines)
    processes.print("\n".join(f"{name:{width}}  {value}" for name, value in lines.items()))


@command
def main(argv: list[str] | None = None) -> None:
    options, request = parse(argv, __doc__)
    with join(options.device, options.timeout) as processes:
        processes.barrier()  # no process may create --out before all have checked it
        train(options, request, processes)


if __name__ == "__main__":
    sys.exit(main())
