"""Condensation: real data sets become small synthetic sets. One file a method.

`METHODS` maps a name to where its class stands, so that listing names imports nothing heavy. There are two kinds:

* objectives, which are minimised step by step: `terms(synthetic)` gives named, weighted terms that are differentiable
  in the images; `advance(synthetic)` trains inner networks and takes the next expert; `state_dict`/`load_state_dict`
  hold all that a bit-exact resume needs. Where there are such, `first_images(counts)` gives the real images to start
  from, `first_labels(images, classes)` the first logits of soft labels, and `finish(synthetic)` is called at the end,
  on the images as they are kept.
* selections, which are made in one go: `build(counts)` gives images (M, C, H, W) in [0, 1] and labels (M,).

Each has a `Config` with its own hyper-parameters, `LOOP`, its defaults for `CondenseConfig`, and `READS`, those of the
loop's options that it reads itself ("label_lr" where its terms depend on labels); another that a person gives is an
error. `SOFT_AT_END = True` says that they depend on learned labels alone, `SOFT = False` that it has no soft ones. One
that looks through no network of `--arch` says `NEEDS_NETWORK = False`. Where something is made before the first step,
`beforehand(setting, config)` gives a line on each such thing, and makes nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module
from typing import Any

from datafree.config import CondenseConfig
from datafree.fields import fields_of, method_config, nearest

METHODS: dict[str, str] = {
    "random": "datafree.condensation.subsets:Random",
    "herding": "datafree.condensation.subsets:Herding",
    "k-center": "datafree.condensation.subsets:KCenter",
    "k-means": "datafree.condensation.subsets:KMeans",
    "mean": "datafree.condensation.subsets:Mean",
    "dc": "datafree.condensation.dc:DC",
    "dsa": "datafree.condensation.dsa:DSA",
    "idc": "datafree.condensation.idc:IDC",
    "dm": "datafree.condensation.dm:DM",
    "cafe": "datafree.condensation.cafe:CAFE",
    "datadam": "datafree.condensation.datadam:DataDAM",
    "ncfm": "datafree.condensation.ncfm:NCFM",
    "mtt": "datafree.condensation.mtt:MTT",
    "tesla": "datafree.condensation.tesla:TESLA",
    "datm": "datafree.condensation.datm:DATM",
    "frepo": "datafree.condensation.frepo:FRePo",
    "sre2l": "datafree.condensation.sre2l:SRe2L",
    "rded": "datafree.condensation.rded:RDED",
}

# What `datafree list condensers` says of each.
ABOUT: dict[str, str] = {
    "random": "real images at random: the baseline",
    "herding": "real images whose mean embedding follows the class's (Welling 2009)",
    "k-center": "real images that no other is far from (Sener and Savarese 2018)",
    "k-means": "the real image nearest to each centroid of the embeddings",
    "mean": "class means or k-means centroids in pixel space: synthetic and free",
    "dc": "gradient matching (Zhao et al. 2021)",
    "dsa": "gradient matching with siamese augmentation (Zhao and Bilen 2021)",
    "idc": "gradient matching through networks trained on the real data, several images in one (Kim et al. 2022)",
    "dm": "mean embeddings (Zhao and Bilen 2023)",
    "cafe": "features of all layers, discrimination (Wang et al. 2022)",
    "datadam": "attention maps of all layers (Sajedi et al. 2023)",
    "ncfm": "characteristic functions of embeddings, random or adversarial frequencies (Wang et al. 2025)",
    "mtt": "training trajectories, exact gradient (Cazenavette et al. 2022)",
    "tesla": "training trajectories, the cheaper gradient (Cui et al. 2023)",
    "datm": "training trajectories by difficulty, learned soft labels (Guo et al. 2024)",
    "frepo": "kernel ridge regression on a pool of networks, learned labels (Zhou et al. 2022)",
    "sre2l": "a trained network inverted, its soft labels (Yin et al. 2023)",
    "rded": "crops that a trained network is surest of, its soft labels (Sun et al. 2024)",
}

# What a method with `terms` has beside them.
STEPWISE = ("advance", "state_dict", "load_state_dict")


def method_spec(name: str) -> str:
    """Where the method of that name stands.

    Raises:
        ValueError: no such method; names the nearest.
    """
    if name not in METHODS:
        raise ValueError(f"unknown condensation method {name!r}{nearest(name, list(METHODS))}")
    return METHODS[name]


def load_method(name: str) -> type[Any]:
    """The method's class.

    Raises:
        ValueError: unknown name, or a class that lacks what every method has.
    """
    module, _, cls = method_spec(name).partition(":")
    method: type[Any] = getattr(import_module(module), cls)
    check_method(method)
    return method


def check_method(method: type[Any]) -> None:
    """Raises ValueError, one line that names the class, where the job could not run a method as it is declared."""
    name = method.__name__
    method_config(method, CondenseConfig)
    options = [field.name for field in fields_of(CondenseConfig)]
    parts: tuple[tuple[str, type[Any], str], ...] = (
        ("LOOP", Mapping, "a dict of the loop's options, {} where none is its own"),
        ("READS", tuple, "a tuple of the loop's options that it reads itself, () where it reads none"),
    )
    for part, kind, what in parts:
        held = getattr(method, part, None)
        if not isinstance(held, kind):
            raise ValueError(f"{name} has no {part}: give {what}")
        for option in held:
            if option not in options:
                raise ValueError(f"{name}.{part}: unknown {option!r}{nearest(option, options)}")
    if not (hasattr(method, "build") or hasattr(method, "terms")):
        raise ValueError(f"{name} has neither build nor terms: give it what CONTRIBUTING.md says of one of them")


def check_parts(method: Any) -> None:
    """Raises ValueError, one line that names the class, where a method with `terms` that is built lacks a part."""
    if lacking := [part for part in STEPWISE if not hasattr(method, part)]:
        name = type(method).__name__
        raise ValueError(f"{name} has terms and no {', '.join(lacking)}: give it what CONTRIBUTING.md says of each")
