"""Training (Sec. 3.3 and 4.1): a loop that can be killed and goes on; what it minimises is cfld.objective.

    python -m cfld.train --preset sd15 --init DIR --data ROOT --out RUN
    python -m cfld.train --preset tiny --stage vae --data people:2000x4 --out RUN_VAE              tiny, from nothing,
    python -m cfld.train --preset tiny --stage source --init RUN_VAE/model --data people:2000x4 --out RUN_SOURCE    in
    python -m cfld.train --preset tiny --init RUN_SOURCE/model --data people:2000x4 --out RUN             three stages
    python -m cfld.train --ablation B3 ...                        a baseline of Table 3 instead of the whole method
    python -m cfld.train --out RUN --resume                       after a stop of any kind; SIGTERM and Ctrl-C save
    python -m cfld.train --dry-run ...                            what it needs of memory and time
    python -m cfld.train --plot RUN                               the curves of its log, as RUN/plot.png
    torchrun --nproc-per-node 8 -m cfld.train ...                 the same training, its batch divided among 8 processes

The paper starts from a Swin that knows ImageNet's classes, and from Stable Diffusion, which paints people from words.
For drawn people, --stage source makes a Swin that tells their attributes from a photo, and --stage base a UNet that
paints a prompt of attributes, without source or pose; --stage cfld may keep it frozen (unet_trainable in --config).

A run folder holds config.json, log.jsonl (step, loss, lr, rows/s), samples/, checkpoints/ and at the end model/, a
model folder. Everything random in a step is a function of (seed, step, place of the pair in the global batch), so
neither accumulation nor the number of processes nor a stop changes what is trained.

Letters in shapes: B pairs, which make 2B rows: every source from itself, then every target from its source.
"""

import contextlib
import dataclasses
import json
import math
import os
import re
import signal
import sys
import time
from collections.abc import Iterable, Iterator
from datetime import timedelta
from pathlib import Path
from types import FrameType
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from tqdm import tqdm

from cfld.baselines import to_dict
from cfld.config import CFLDConfig
from cfld.data.batch import Batch, StepOrder, collate, seeded, step_batches
from cfld.data.cache import Cache
from cfld.data.encode import manifest
from cfld.data.pairs import DescribedPairs, FashionPairs, Pairs, PeoplePairs, open_pairs
from cfld.folder import save, save_parts
from cfld.model import CFLD, Conditions
from cfld.objective import Draws, draw_step, training_loss
from cfld.photos.pixels import picture_grid, to_pictures, to_range
from cfld.pose import FRAME, pose_maps
from cfld.sampling import check_steps, denoise, sample
from cfld.scheduler import Scheduler
from cfld.swin import Swin
from cfld.tools.cli import PRECISIONS, UserError, command, pick_device
from cfld.tools.files import alone_in, link, remove, remove_leftovers, write_json, write_text, writing
from cfld.tools.pictures import save_image
from cfld.tools.plot import plot
from cfld.training.checkpoint import State, architecture, build, checkpoints, frozen_hash, rebuilt, step_of
from cfld.training.memory import checkpoint_blocks, keep_freed_memory, memory, num_bytes, shrink_frozen
from cfld.training.options import (
    Request,
    TrainConfig,
    finetuned,
    parse_options,
    read_run_config,
    refuse_run,
    settle_options,
)
from cfld.training.pretrain import AttributeHead, AttributePrompt, base_loss, source_loss, standardise, vae_loss, whiten
from cfld.vae import VAE

HELD_OUT, NO_STEP = 64, 2**31  # pairs of the held-out loss, and the step whose draws they take


class Objective(nn.Module):
    """What a stage trains, and its loss: one module, so that processes can share its gradients."""

    def __init__(
        self,
        options: TrainConfig,
        config: CFLDConfig,
        model: CFLD | None,
        vae: VAE,
        helper: AttributeHead | AttributePrompt | None,
    ):
        super().__init__()
        self.options, self.scheduler = options, Scheduler(config.scheduler)
        self.model, self.vae, self.helper = model, vae, helper

    def forward(self, batch: Batch, draws: Draws) -> tuple[Tensor, Tensor]:
        """The mean loss over a micro-batch, and its timesteps."""
        if self.model is None:
            return vae_loss(self.vae, batch, draws, self.options.kl), torch.zeros(0)
        if isinstance(self.helper, AttributeHead):
            return source_loss(self.model.source_encoder, self.helper, batch, draws), torch.zeros(0)
        min_snr = self.options.min_snr
        if self.helper is not None:
            return base_loss(self.model, self.helper, self.vae, self.scheduler, batch, draws, min_snr)
        return training_loss(self.model, self.vae, self.scheduler, batch, draws, self.options.recipe, min_snr)


def learning_rate(step: int, total: int, options: TrainConfig) -> float:
    """Linear warm-up, constant, and a tenth of it for the rest (Sec. 4.1). It begins at a tenth, as in the released
    code; the paper does not say where."""
    if step < options.warmup_steps:
        return options.peak_lr * (0.1 + 0.9 * (step + 1) / options.warmup_steps)
    return options.peak_lr * (0.1 if step >= options.decay_at * total else 1.0)


class Run:
    """One training: what it needs, and the loop."""

    def __init__(self, options: TrainConfig, resume: str | None = None, dry_run: bool = False):
        self.options, self.out = options, Path(options.out)
        self.rank, self.world = (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)
        self.writes = self.rank == 0 and not dry_run
        self.device = pick_device(options.device)
        if self.device == torch.device("cuda") and self.world > 1:
            self.device = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
        if options.global_batch % (self.world * options.accumulate):
            raise UserError(
                f"--batch {options.global_batch} must be a multiple of the {self.world} processes times --accumulate "
                f"{options.accumulate}"
            )
        begun = self.out / "config.json"
        self.config = read_run_config(begun) if resume and begun.is_file() else architecture(options)
        check_steps("--sample-steps", options.sample_steps, self.config)
        if options.data is None:
            raise UserError(
                "--data ROOT is needed: a folder in DeepFashion's layout, prepared by python -m cfld.data prepare ROOT"
            )
        self.sizes = self.config.image_size, self.config.source_size
        self.pairs = open_pairs(options.data, "train", *self.sizes)
        if options.cache:
            if not (isinstance(self.pairs, FashionPairs) and options.init):
                raise UserError(f"--cache needs --init and a folder as --data, found --data {options.data}")
            expected = manifest(self.pairs, Path(options.init) / "vae.safetensors")
            self.pairs.cache = Cache(options.cache, expected, self.pairs.photos)
        if len(self.pairs) < options.global_batch:
            raise UserError(
                f"--batch {options.global_batch} must not exceed the {len(self.pairs)} training pairs of {options.data}"
            )
        if options.eval_every and not self.has_test_split():
            raise UserError(f"--eval-every needs pairs that are not trained on, found no test split in {options.data}")
        self.held_out: Pairs | None = None  # what is looked at: the test split, or the training split if there is none
        if options.eval_every or options.sample_every:
            self.held_out = open_pairs(options.data, "test" if self.has_test_split() else "train", *self.sizes)
        self.steps_an_epoch = len(self.pairs) // options.global_batch  # the last, partial batch is dropped
        epochs = 100 if options.epochs is None else options.epochs
        self.total = options.steps or max(1, round(epochs * self.steps_an_epoch))
        if options.warmup_steps > options.decay_at * self.total:
            self.say(
                f"the warm-up of {options.warmup_steps} steps ends after --decay-at {options.decay_at} of "
                f"{self.total:,} steps: a shorter --warmup would reach the learning rate of {options.peak_lr:g}"
            )
        self.model, self.vae = build(options, self.config)
        self.scheduler = Scheduler(self.config.scheduler)

        self.vae.requires_grad_(self.model is None)
        module: nn.Module = self.vae if self.model is None else self.model
        self.helper: AttributeHead | AttributePrompt | None = None  # what a stage trains beside the model's own
        if options.stage in ("source", "base"):
            assert self.model is not None
            module.requires_grad_(False)
            num_attributes = self.described(self.pairs)[0][-1].numel()
            if options.stage == "source":
                self.model.source_encoder.requires_grad_(True)
                self.helper = AttributeHead(num_attributes, self.config)
            else:
                self.model.unet.requires_grad_(True)
                self.model.null_prompt.requires_grad_(True)
                self.helper = AttributePrompt(num_attributes, self.config)
        self.dtype = PRECISIONS[options.precision]
        base = frozen_hash(*(m for m in (self.model, self.vae) if m is not None))
        for frozen in (self.model, self.vae):
            if frozen is not None:
                shrink_frozen(frozen, self.dtype)
                frozen.to(self.device)
                if options.channels_last:
                    frozen.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
                checkpoint_blocks(frozen, options.checkpointing)
        if options.compile and self.model is not None:
            self.model.unet.compile()
        trained = {name: p for name, p in module.named_parameters() if p.requires_grad}
        if self.helper is not None:
            self.helper.to(self.device)
            trained |= {f"helper.{name}": p for name, p in self.helper.named_parameters()}
        averages = {name: p.detach().clone() for name, p in trained.items()} if options.ema else {}
        optimizer = torch.optim.Adam(trained.values(), lr=options.peak_lr, fused=True)
        scaler = torch.amp.GradScaler(self.device.type, enabled=options.precision == "fp16")
        self.state = State(trained, averages, optimizer, scaler, self.config, base)
        self.objective: nn.Module = Objective(options, self.config, self.model, self.vae, self.helper)
        if self.world > 1:
            self.objective = DistributedDataParallel(self.objective, broadcast_buffers=False)
        self.board: Any = None
        self.stop: signal.Signals | None = None  # what somebody has asked this process to stop with

    def autocast(self) -> torch.autocast:
        """Products and convolutions in --precision."""
        return torch.autocast(self.device.type, self.dtype, enabled=self.dtype != torch.float32)

    def wait(self) -> None:
        """Go on when all processes are here."""
        if self.world > 1:
            dist.barrier()

    def say(self, text: str) -> None:
        """Print a line, once for all processes."""
        if self.rank == 0:
            tqdm.write(text)

    def begin(self, resume: str | None, force: bool = False) -> None:
        """Go back to a checkpoint, or begin the run folder (anew, if there is one)."""
        if not resume and self.writes:
            refuse_run(self.out, force)  # once more: only now no other process works in it
            for path in self.out.iterdir():
                remove(path)
        self.wait()
        found = checkpoints(self.out)
        if resume not in (None, "latest"):
            self.state.restore(Path(str(resume)))
        elif resume and found:
            self.state.restore(found[-1])
        elif resume:
            self.say(f"{self.out} holds no checkpoint yet: starting from step 0")
        if self.state.step:
            self.say(f"resuming {self.out} after step {self.state.step}")
        if found and self.state.step < step_of(found[-1]):
            raise UserError(
                f"{self.out} holds a later checkpoint, {found[-1].name}: go on in another --out, or remove those after "
                f"step {self.state.step}"
            )
        if self.state.step > self.total:
            raise UserError(f"--steps {self.total} must be at least the {self.state.step} that are done already")
        if not self.writes:
            return
        for folder in (self.out, self.out / "checkpoints", self.out / "samples"):
            remove_leftovers(folder)
        log_path = self.out / "log.jsonl"
        if log_path.is_file():  # forget what is done again, and a line that a kill cut short
            kept = [line for line in log_path.read_text().splitlines(True) if self.is_done(line)]
            write_text(log_path, "".join(kept))
        with contextlib.suppress(ImportError):  # TensorBoard, if it happens to be installed
            from torch.utils.tensorboard import SummaryWriter

            self.board = SummaryWriter(self.out / "tensorboard", purge_step=self.state.step + 1)
        options = dataclasses.asdict(self.options)
        write_json(
            self.out / "config.json", {"options": options, "model": to_dict(self.config), "base": self.state.base}
        )

    def is_done(self, line: str) -> bool:
        """Whether a line of log.jsonl is whole and of a step that the state includes."""
        with contextlib.suppress(json.JSONDecodeError):
            return json.loads(line)["step"] <= self.state.step
        return False

    def train(self) -> None:
        """Train to the last step, then write the model folder."""
        with self.heeding_signals():
            self.loop(self.total)
        if self.rank == 0:
            self.write_model()
        self.wait()

    def loop(self, stop_at: int) -> None:
        """The steps that are still to be done, up to this one."""
        with self.batches(stop_at) as (batches, places):
            self.take_steps(batches, places, stop_at)

    @contextlib.contextmanager
    def batches(self, stop_at: int) -> Iterator[tuple[Iterator[Batch], range]]:
        """This process's share of the batches of the steps up to this one, and its places in the global batch."""
        options = self.options
        workers = (4 if self.device.type == "cuda" else 0) if options.workers is None else options.workers
        share = options.global_batch // self.world
        places = range(self.rank * share, (self.rank + 1) * share)
        order = StepOrder(len(self.pairs), options.global_batch, options.seed, self.state.step, stop_at, places)
        with contextlib.closing(step_batches(self.described(self.pairs), order, workers)) as batches:
            yield batches, places

    def take_steps(self, batches: Iterable[Batch], places: range, stop_at: int) -> None:
        """A step with each of these batches, the pairs at these places of the global batches."""
        options, state = self.options, self.state
        bar = tqdm(batches, options.stage, self.total, initial=state.step, unit="step", disable=self.rank > 0)
        losses: list[float] = []
        started, rows = time.perf_counter(), 0
        for step, batch in zip(range(state.step, stop_at), bar, strict=True):
            # Learning rate: warm-up, constant, a tenth.
            lr = learning_rate(step, self.total, options)
            for group in state.optimizer.param_groups:
                group["lr"] = lr

            # Accumulate: the gradient of the mean over all rows, a part of the batch at a time.
            state.optimizer.zero_grad(set_to_none=True)
            loss_sum, all_timesteps = 0.0, []
            for number, part in enumerate(batch.split(options.accumulate)):
                first = places.start + number * len(part)
                mine = range(first, first + len(part))
                draws = draw_step(options.seed, step, mine, self.config, options.noise_offset).to(self.device)
                with self.exchange(with_part=options.accumulate - 1, now=number):
                    with self.autocast():
                        loss, timesteps = self.objective(part.to(self.device), draws)
                    all_timesteps += timesteps.tolist()
                    if not math.isfinite(loss.item()):
                        raise UserError(self.not_finite("loss", step, loss.item(), all_timesteps))
                    state.scaler.scale(loss / options.accumulate).backward()
                loss_sum += loss.item() / options.accumulate
            loss_sum, stop = self.agree(loss_sum)

            # Step, unless a gradient is lost (in fp16 the scaler leaves such a step out and scales less).
            state.scaler.unscale_(state.optimizer)
            norm = self.clip_gradients()
            if not math.isfinite(norm):
                raise UserError(self.not_finite("gradient", step, norm, all_timesteps))
            state.scaler.step(state.optimizer)
            state.scaler.update()
            state.step = step + 1

            # Average; over fewer steps at first, so that the initial weights are soon forgotten.
            decay = min(options.ema, state.step / (state.step + 9))
            with torch.no_grad():
                for name, average in state.averages.items():
                    average.lerp_(state.trained[name], 1 - decay)

            # Log, and try what it has learnt on pairs that it has not seen.
            losses.append(loss_sum)
            rows += 2 * options.global_batch
            bar.set_postfix(loss=f"{loss_sum:.4f}", refresh=False)
            if options.log_every and state.step % options.log_every == 0:
                speed = rows / (time.perf_counter() - started)
                self.log({"step": state.step, "loss": sum(losses) / len(losses), "lr": lr, "rows/s": speed})
                losses, started, rows = [], time.perf_counter(), 0
            best = bool(options.eval_every) and state.step % options.eval_every == 0 and self.evaluate()

            # Checkpoint: in time, at the end, the best, and if somebody wants to stop. And look at what it paints.
            due = options.save_every and state.step % options.save_every == 0
            if due or best or stop or state.step == self.total:
                self.checkpoint(best)
            if stop:
                self.leave(stop)
            if options.sample_every and state.step % options.sample_every == 0:
                self.sample_grid()

    def try_out(self) -> None:
        """Take two steps, of which the second is like all others, and say what a step needs. Writes nothing."""
        before = memory(self.device)
        self.loop(1)
        with self.batches(2) as (batches, places):
            batch = next(batches)  # which a training reads while the step before is at work
            started = time.perf_counter()
            self.take_steps([batch], places, 2)
            seconds = time.perf_counter() - started
        modules = [m for m in (self.model, self.vae, self.helper) if m is not None]
        parameters = [p for m in modules for p in m.parameters()]
        trained = list(self.state.trained.values())
        moments = [x for state in self.state.optimizer.state.values() for x in state.values()]
        parts = {
            "weights": num_bytes(parameters),
            "gradients": num_bytes(trained),
            "optimiser": num_bytes(moments),
            "averages": num_bytes(self.state.averages.values()),
        }
        peak = memory(self.device, peak=True)
        parts["activations and the rest"] = max(peak - before - parts["gradients"] - parts["optimiser"], 0)
        lines = {
            "parameters": f"{sum(p.numel() for p in parameters):,}",
            "that train": f"{sum(p.numel() for p in trained):,}",
            **{name: f"{size / 2**30:,.3f} GiB" for name, size in parts.items()},
            "all, a process": f"{sum(parts.values()) / 2**30:,.3f} GiB",
            "steps an epoch": f"{self.steps_an_epoch:,}",
            "a step": f"{seconds:,.3g} s",
            f"{self.total:,} steps": f"{self.total * seconds / 3600:,.3g} h, without what is written and painted",
        }
        width = max(len(name) for name in lines)
        self.say("\n".join(f"{name:{width}}  {value}" for name, value in lines.items()))

    def exchange(self, with_part: int, now: int) -> contextlib.AbstractContextManager[None]:
        """Let processes exchange gradients in the backward of one part of a step, and not in those before."""
        if isinstance(self.objective, DistributedDataParallel) and now != with_part:
            return self.objective.no_sync()
        return contextlib.nullcontext()

    def agree(self, loss: float) -> tuple[float, signal.Signals | None]:
        """The mean of the loss over all processes, and whether one of them was asked to stop."""
        if self.world == 1:
            return loss, self.stop
        total, asked = self.sum_of_processes(loss, self.stop is not None)
        return total / self.world, (self.stop or signal.SIGTERM) if asked else None

    def sum_of_processes(self, *values: float) -> list[float]:
        """The sum of each number over all processes."""
        if self.world == 1:
            return list(values)
        sums = torch.tensor(values, dtype=torch.float64, device=self.device)
        dist.all_reduce(sums)
        return sums.tolist()

    @contextlib.contextmanager
    def heeding_signals(self) -> Iterator[None]:
        """Let SIGTERM and Ctrl-C stop the loop after a step. A second Ctrl-C ends a lone process at once; torchrun
        passes on the first, which a terminal sends to all, so there it means nothing."""

        def note(number: int, frame: FrameType | None) -> None:
            if self.stop == number == signal.SIGINT and self.world == 1:
                raise KeyboardInterrupt
            self.stop = signal.Signals(number)

        before = {number: signal.signal(number, note) for number in (signal.SIGTERM, signal.SIGINT)}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def leave(self, stop: signal.Signals) -> None:
        """End all processes, now that the state is saved: with 128 + the signal's number, as a shell says it."""
        self.wait()
        again = f"python -m cfld.train --out {self.out} --resume goes on"
        self.say(f"{stop.name}: saved {self.out} after step {self.state.step}; {again}")
        raise SystemExit(128 + stop)

    def clip_gradients(self) -> float:
        """Shorten the gradient to options.clip, if that is asked for. Returns its norm before, 0 where fp16's scaler
        looks after it and nobody needs it."""
        if self.state.scaler.is_enabled() and not self.options.clip:
            return 0.0
        gradients = [p.grad for p in self.state.trained.values() if p.grad is not None]
        norm = torch.nn.utils.get_total_norm(gradients)
        if self.options.clip:
            torch.nn.utils.clip_grads_with_norm_(self.state.trained.values(), self.options.clip, norm)
        return 0.0 if self.state.scaler.is_enabled() else norm.item()

    def not_finite(self, what: str, step: int, found: float, timesteps: list[int]) -> str:
        """What to say when the loss or its gradient is lost."""
        last = checkpoints(self.out)
        return (
            f"the {what} of step {step} must be finite, found {found} at timesteps {timesteps}; "
            f"nothing was saved over {last[-1] if last else 'any checkpoint'}; begin anew with a lower --lr"
        )

    def log(self, values: dict[str, float]) -> None:
        """Add a line to log.jsonl."""
        if not self.writes:
            return
        with writing(self.out / "log.jsonl"), open(self.out / "log.jsonl", "a", encoding="utf-8") as file:
            rounded = {name: x if isinstance(x, int) else float(f"{x:.6g}") for name, x in values.items()}
            file.write(json.dumps(rounded) + "\n")
        for name in values.keys() - {"step"}:
            if self.board is not None:
                self.board.add_scalar(name, values[name], values["step"])

    def evaluate(self) -> bool:
        """Log the held-out loss: of the same pairs with the same draws each time, with the averages if there are any.
        Returns whether it is the least so far."""
        assert self.held_out is not None
        pairs = self.described(self.held_out)
        count = min(HELD_OUT, len(pairs))
        places = range(self.rank, count, self.world)
        objective = getattr(self.objective, "module", self.objective)
        total = 0.0
        with self.averaged(), self.autocast(), torch.no_grad():
            for place in places:
                batch = collate([pairs[place * len(pairs) // count]]).to(self.device)
                mine = range(place, place + 1)
                draws = draw_step(self.options.seed, NO_STEP, mine, self.config, self.options.noise_offset)
                total += objective(batch, draws.to(self.device))[0].item()
        loss = self.sum_of_processes(total)[0] / count
        self.log({"step": self.state.step, "held-out loss": loss})
        better = math.isfinite(loss) and (self.state.best is None or loss < self.state.best)
        if better:
            self.state.best = loss
        return better

    def checkpoint(self, best: bool = False) -> None:
        """Save the state, the best so far under that name as well, and forget the oldest checkpoints."""
        if not self.writes:
            return
        path = self.out / "checkpoints" / f"step_{self.state.step:08d}.safetensors"
        if best:  # first, so that a run that is killed in between finds it out again
            self.state.save(path.with_name("best.safetensors"))
            link(path.with_name("best.safetensors"), path)
        else:
            self.state.save(path)
        for old in checkpoints(self.out)[: -self.options.keep]:
            old.unlink()

    @contextlib.contextmanager
    def averaged(self) -> Iterator[None]:
        """Put the averages, if there are any, in the place of the weights."""
        kept = {name: self.state.trained[name].detach().clone() for name in self.state.averages}
        with torch.no_grad():
            for name, average in self.state.averages.items():
                self.state.trained[name].copy_(average)
            yield
            for name, weights in kept.items():
                self.state.trained[name].copy_(weights)

    def described(self, pairs: Pairs) -> Pairs | DescribedPairs:
        """The pairs, where a stage wants them with the attributes of their people."""
        return DescribedPairs(pairs) if self.options.stage in ("source", "base") else pairs

    def has_test_split(self) -> bool:
        """Whether there are pairs that are not trained on."""
        return isinstance(self.pairs, PeoplePairs) or (Path(str(self.options.data)) / "test_highres").is_dir()

    def sample_grid(self) -> None:
        """Write samples/step_*.png: source, pose, truth and result of the same held-out pairs from the same seeds."""
        if not self.writes or self.options.stage == "source":
            return
        assert self.held_out is not None
        pairs = self.described(self.held_out)
        chosen = [pairs[i * len(pairs) // 4] for i in range(min(4, len(pairs)))]
        batch = collate(chosen).to(self.device)
        truths, poses = batch.images.chunk(2)[1], pose_maps(batch.keypoints.chunk(2)[1], self.config.adapter.pose_size)
        steps = self.options.sample_steps
        with self.averaged(), self.autocast(), torch.no_grad():
            columns = [to_range(truths)]
            seeds = [seeded(self.options.seed, i) for i in range(len(chosen))]
            if self.model is None:
                columns += [self.vae.decode(self.vae.encode(to_range(truths)))]
            elif isinstance(self.helper, AttributePrompt):
                conditions = Conditions(self.helper(batch.attributes), None, None)
                columns += [denoise(self.model, self.vae, self.scheduler, conditions, steps=steps, generator=seeds)]
            else:
                results = sample(
                    self.model,
                    self.vae,
                    self.scheduler,
                    to_range(batch.source_images),
                    poses,
                    steps=steps,
                    generator=seeds,
                )
                columns = [to_range(batch.images.chunk(2)[0]), poses[:, :3] * 2 - 1, *columns, results]
        grid = picture_grid([to_pictures(column, FRAME) for column in columns])
        save_image(self.out / "samples" / f"step_{self.state.step:08d}.png", grid)

    def write_model(self) -> None:
        """Write model/: what was trained (the averages, if there are any), the frozen rest in its first precision."""
        folder = self.out / "model"
        trained = {
            n: x.cpu()
            for n, x in (self.state.averages or {n: p.detach() for n, p in self.state.trained.items()}).items()
        }
        self.state.optimizer.state.clear()  # its memory makes room for the frozen weights
        self.state.optimizer.zero_grad(set_to_none=True)
        if self.model is None:
            self.vae.load_state_dict(trained, strict=False)
            moments = self.moments()
            whiten(self.vae.cpu(), *moments)  # in float64, which not every device has
            config = dataclasses.replace(self.config, vae=self.vae.config)
            save_parts(folder, config, replace=True, vae=self.vae)
        else:
            model, vae = rebuilt(self.options, self.config, trained, self.state.base)
            if self.options.stage == "source":
                standardise(model.source_encoder, self.source_features(model.source_encoder))
                save_parts(folder, self.config, replace=True, vae=vae, source_encoder=model.source_encoder)
            else:
                save(folder, model, vae, replace=True)
        tqdm.write(f"wrote {folder}")

    def moments(self) -> tuple[Tensor, Tensor]:
        """The VAE's mean and logvar of about 256 training photos."""
        found = []
        with torch.no_grad(), self.autocast():
            for i in self.some_pairs():
                found.append(self.vae.moments(to_range(self.pairs[i][2][None].to(self.device))))
        mean, logvar = (torch.cat(parts).float().cpu() for parts in zip(*found, strict=True))
        return mean, logvar

    def source_features(self, source_encoder: Swin) -> list[Tensor]:
        """f_1 .. f_4 of about 256 training photos."""
        with torch.no_grad():
            found = [source_encoder(to_range(self.pairs[i][0][None])) for i in self.some_pairs()]
        return [torch.cat(maps) for maps in zip(*found, strict=True)]

    def some_pairs(self) -> range:
        """The places of about 256 pairs, evenly."""
        return range(0, len(self.pairs), math.ceil(len(self.pairs) / 256))


@command
def main(argv: list[str] | None = None) -> None:
    given, request = parse_options(argv)
    if request.plot:
        print(f"wrote {plot(Path(request.plot))}")
        return
    if request.finetune:
        given = finetuned(given, request.finetune)
    options = settle_options(given, request.resume, request.force or request.dry_run)
    if "WORLD_SIZE" not in os.environ:
        train(options, request)
        return
    on_cuda = (options.device or "cuda").startswith("cuda") and torch.cuda.is_available()
    if on_cuda:
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    try:
        dist.init_process_group("nccl" if on_cuda else "gloo", timeout=timedelta(minutes=options.timeout))
        dist.barrier()  # all have settled their options before one of them makes the folder that the others look for
        train(options, request)
        dist.destroy_process_group()
    except RuntimeError as error:
        if not (isinstance(error, dist.DistError) or re.search("gloo|nccl", str(error), re.IGNORECASE)):
            raise
        raise UserError(
            f"process {os.environ['RANK']} has lost another, or heard nothing of it for {options.timeout:g} minutes "
            f"(--timeout): look for the error of that one, then go on with --resume; it was: {str(error)[:200]}"
        ) from None


def train(options: TrainConfig, request: Request) -> None:
    """Say what is to be trained, and train it."""
    keep_freed_memory()
    run = Run(options, request.resume, request.dry_run)
    counted = sum(p.numel() for p in run.state.trained.values())
    run.say(
        f"{run.options.stage}: {counted:,} parameters train"
        f"{'' if run.model is None else f' (of the UNet: {run.config.unet_trainable})'}, "
        f"{run.total:,} steps of {run.options.global_batch} pairs, {run.world} x {run.device}"
    )
    if request.dry_run:
        run.try_out()
        return
    with alone_in(run.out) if run.writes else contextlib.nullcontext():
        run.begin(request.resume, request.force)
        run.train()


if __name__ == "__main__":
    sys.exit(main())
