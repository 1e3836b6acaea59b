"""One condensation while it runs: what happens around the steps."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Mapping
from typing import Any

import torch

from datafree import parallel
from datafree.condensation import check_parts
from datafree.condensation.initial import initial_images
from datafree.condensation.loop import ImageTrainer, check_finite
from datafree.condensation.synthetic import Synthetic
from datafree.data.condensed import CondensedSet
from datafree.data.formation import decode, decoded_labels
from datafree.data.whitening import Whitening
from datafree.jobs.condense_planning import CondensePlan, make_setting, run_clock, set_info
from datafree.jobs.machine import random_states, restore_random_states, seed_all
from datafree.jobs.session import LOG_SECONDS, PICTURES, Say, Show
from datafree.pictures import grid, png_bytes
from datafree.runs import Run
from datafree.training import Seconds

# Logits (N, classes) of images (N, C, H, W) and class numbers (N,).
Labeller = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


class CondenseSession:
    """What happens around the steps: logs, pictures, checkpoints. Rank 0 alone writes."""

    def __init__(self, plan: CondensePlan, folder: Run, say: Say, show: Show, stop: Callable[[], bool]) -> None:
        config = plan.config
        self.plan, self.run, self.say, self.show, self.stop = plan, folder, say, show, stop
        self.main = parallel.rank() == 0
        seed_all(config.seed)
        self.clock = run_clock(config)
        self.setting = make_setting(plan, self.clock, say, stop)
        self.seconds = Seconds()
        self.preparation = 0.0
        # Grids are of what was learned: first images that are real ones are in none, nor those of the steps just after.
        self.picture_mark = 0 if config.init == "noise" else 1
        self.logged = self.saved = time.monotonic()

    def start(self) -> None:
        """The set as it is at the beginning, and the objective with what it needs."""
        plan, config = self.plan, self.plan.config
        assert config.init is not None and config.factor is not None
        begin = time.monotonic()
        self.objective = plan.method(self.setting, plan.method_config)
        check_parts(self.objective)
        own = getattr(self.objective, "first_images", None)
        if own is not None and config.init == "real" and config.factor == 1:
            images, labels = own(plan.counts)
        else:
            bounded = config.clip == "step"
            images, labels = initial_images(self.setting, plan.counts, config.init, config.factor, bounded=bounded)
        logits = None
        if config.labels != "hard":
            self.labeller = self._labeller()
            logits = self.labeller(decode(images, config.factor), decoded_labels(labels, config.factor))
        self.synthetic = Synthetic(
            images,
            labels,
            factor=config.factor,
            label_logits=logits,
            learn_labels=config.labels == "learned",
            learning_rate=getattr(plan.method_config, "rate", None),
        )
        self.trainer = ImageTrainer(self.synthetic, config)
        self.preparation += time.monotonic() - begin

    def _labeller(self) -> Labeller:
        """The method's own, or a trained network's."""
        own: Labeller | None = getattr(self.objective, "first_labels", None)
        if own is not None:
            return own
        from datafree.condensation.trained import in_batches, trained_network

        network = trained_network(self.setting)
        return lambda images, _: in_batches(network, images)

    def state_dict(self) -> dict[str, Any]:
        return {
            "trainer": self.trainer.state_dict(),
            "objective": self.objective.state_dict(),
            "clock": self.clock.state_dict(),
            "seconds": dataclasses.asdict(self.seconds),
            "preparation": self.preparation,
            "picture": self.picture_mark,
            "random": random_states(self.setting.rng),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.trainer.load_state_dict(state["trainer"])
        self.objective.load_state_dict(state["objective"])
        self.clock.load_state_dict(state["clock"])
        self.seconds = Seconds(**state["seconds"])
        self.preparation, self.picture_mark = float(state["preparation"]), int(state["picture"])
        restore_random_states(state["random"], self.setting.rng)

    def save(self) -> None:
        """Keeps the last good checkpoint where what is learned is not finite any more: the next term will say so."""
        if self.main and all(bool(part.isfinite().all()) for part in self.trainer.parameters.values()):
            self.run.save_checkpoint(self.state_dict())
        self.saved = time.monotonic()

    def after_step(self, terms: Mapping[str, torch.Tensor], _: Mapping[str, float]) -> bool:
        now = time.monotonic()
        stopping = bool(parallel.latest(float(self.stop())))
        if self.clock.fraction * PICTURES >= self.picture_mark:
            self.picture_mark = int(self.clock.fraction * PICTURES) + 1
            self.picture()
        # The first process's clock says when a row is due: its terms are those of all, who add them up together.
        if parallel.latest(float(self.main and (now - self.logged >= LOG_SECONDS or self.clock.ended))):
            whole = whole_terms(terms)
            self.logged = now
            if self.main:
                self._log(whole)
        if stopping or now - self.saved >= self.plan.config.checkpoint_every:
            self.save()
        return stopping

    def _log(self, terms: Mapping[str, float]) -> None:
        row = {"step": self.clock.step, "seconds": round(self.clock.elapsed, 3)}
        row |= {f"condensation/{name}": value for name, value in terms.items()}
        if self.synthetic.log_rate is not None:
            row["rate"] = float(self.synthetic.rate.detach())
        self.run.log(row)
        self.show({**row, "fraction": self.clock.fraction, "seconds_left": self.clock.seconds_left})

    def picture(self) -> None:
        """A grid of the decoded images, at most 10 of a class and 100 in all, labelled with their classes."""
        if not self.main:
            return
        images = decode(self.trainer.images, self.synthetic.factor).clamp(0, 1)
        classes = decoded_labels(self.synthetic.labels, self.synthetic.factor)
        rows = class_rows(classes, self.plan.domain.classes)
        names = self.plan.domain.class_names or tuple(map(str, range(self.plan.domain.classes)))
        labels = [names[int(c)] for c in classes[rows]]
        self.run.picture(f"step-{self.clock.step:07d}", png_bytes(grid(images[rows].cpu().float(), labels)))

    def conclude(self) -> None:
        """The objective's last word, on the images as they are kept (the average, where there is one).

        Soft labels that no term depends on are made anew: they shall be those of these images. After the last
        checkpoint, which holds what steps go on from.

        Raises:
            TermError: the last step has spoilt what was learned, and no term comes after it to tell.
        """
        self.trainer.settle()
        check_finite(self.trainer.parameters, self.clock.step)
        synthetic, method = self.synthetic, self.plan.method
        if (finish := getattr(self.objective, "finish", None)) is not None:
            finish(synthetic)
        elif synthetic.label_logits is not None and not self._counted(method):
            logits = self.labeller(synthetic.decoded().detach(), synthetic.decoded_classes)
            synthetic.label_logits = torch.nn.Parameter(logits, False)

    def _counted(self, method: type[Any]) -> bool:
        """Whether terms depend on the labels: on any logits, or on learned ones alone (`SOFT_AT_END`)."""
        learned = self.plan.config.labels == "learned"
        return "label_lr" in method.READS and (learned or not getattr(method, "SOFT_AT_END", False))

    def result_set(self) -> CondensedSet:
        """The condensed set of the moment, brought back into [0, 1]."""
        plan, synthetic, whitening = self.plan, self.synthetic, self.setting.whitening
        logits = synthetic.label_logits
        return CondensedSet(
            images=self.trainer.images.clamp(0, 1).float().cpu(),
            labels=(synthetic.labels if logits is None else logits.detach().float()).cpu(),
            domain=plan.domain,
            factor=synthetic.factor,
            whitening=Whitening(*(t.cpu() for t in whitening)) if whitening is not None else None,
            learning_rate=float(synthetic.rate.detach()) if synthetic.log_rate is not None else None,
            info=set_info(plan),
        )


def whole_terms(terms: Mapping[str, torch.Tensor]) -> dict[str, float]:
    """The terms' values, each the sum of all processes' shares. Every process has to call it."""
    shares = torch.stack([term.detach() for term in terms.values()])
    sums = parallel.world_size() * parallel.mean_over_processes(shares)
    return dict(zip(terms, sums.tolist(), strict=True))


def class_rows(classes: torch.Tensor, count: int, each: int = 10, most: int = 100) -> torch.Tensor:
    """Rows of the first `each` images of every class, class by class, `most` in all."""
    rows = [(classes == label).nonzero().flatten()[:each] for label in range(count)]
    return torch.cat(rows)[:most]
