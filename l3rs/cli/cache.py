"""`l3rs cache`: decodes images beforehand."""

from __future__ import annotations

from dataclasses import dataclass, fields

from jsonargparse import Namespace

from l3rs.cli.options import Options, values_of
from l3rs.cli.parser import Parser
from l3rs.data.cache import open_cache, size_in_bytes, size_in_words
from l3rs.data.splits import PURPOSES
from l3rs.finetuning.workload import Workload

ABOUT = """
Decode the images of a split once, so that training decodes nothing. Meta-training with the same options finds the cache, and makes
it if there is none. If the command stops, give it again: it resumes.
"""
WORKLOAD = Options(
    Workload,
    metavars={"split": "NAME", "data": "FOLDER", "weights": "FILE", "cache": "FOLDER", "model": "NAME"},
    texts={"augment": "does not crop and mirror training images at random"},
)
"""The options of a workload, here and in `l3rs meta-train`."""


@dataclass(frozen=True)
class CacheOptions:
    """The choice of images to decode.

    Attributes:
        purposes: purposes of the classes to decode.
        plan: only prints the number of images and the disk space that they need.
        verify: reads all pixels of finished caches again, and compares their SHA-256.
    """

    purposes: tuple[str, ...] = PURPOSES[1:]
    plan: bool = False
    verify: bool = False

    def __post_init__(self) -> None:
        unknown = [purpose for purpose in self.purposes if purpose not in PURPOSES]
        if unknown:
            raise ValueError(f"--purposes must be one or more of {', '.join(PURPOSES)} (got {unknown[0]!r})")


def parser() -> Parser:
    """The images to decode, and their workload."""
    parser = Parser("[options]", ABOUT)
    parser.add_config_file("a YAML file of settings of the images and the network; may be given again")
    Options(CacheOptions, choices={"purposes": PURPOSES}, metavars={"purposes": "NAME"}).add(parser, "purposes", "plan", "verify")
    WORKLOAD.add(parser, *(f.name for f in fields(Workload)), title="the images and the network, as in meta-train")
    return parser


def run(args: Namespace) -> None:
    """Decodes the images that are not decoded yet."""
    options = CacheOptions(**values_of(CacheOptions, vars(args)))
    workload = Workload(**values_of(Workload, vars(args)))
    if workload.embedded:
        raise ValueError(f"the images of {workload.split} are embedded: there is nothing to decode")
    purposes = [p for p in options.purposes if workload.class_split.classes[p]]
    for purpose in purposes:
        tree, folder = workload.tree(purpose), workload.cache_folder(purpose)
        size = size_in_words(size_in_bytes(len(tree.files), workload.decoder))
        print(f"{purpose}: {len(tree.classes)} classes, {len(tree.files)} images of {workload.decoder.side} px, {size} in {folder}")
    if not options.plan:
        workload.prepare(purposes)
    if options.verify:
        for purpose in purposes:
            open_cache(workload.cache_folder(purpose), workload.class_split.classes[purpose], verify=True)
        print("All pixels match their SHA-256.")
