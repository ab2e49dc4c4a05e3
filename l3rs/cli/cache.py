"""`l3rs cache`: decoded images, made beforehand."""

from __future__ import annotations

from dataclasses import dataclass, fields

from jsonargparse import Namespace

from l3rs.cli.options import Options, values_of
from l3rs.cli.parser import Parser
from l3rs.data.cache import in_words, open_cache, size_in_bytes
from l3rs.data.splits import PURPOSES
from l3rs.finetuning.workload import Workload

ABOUT = """
Decode the images of a split once, so that training on them decodes nothing; meta-training does this by itself. A build that was
stopped goes on where it was. With the same options, meta-training finds the cache.
"""
WORKLOAD = Options(
    Workload,
    metavars={"split": "NAME", "data": "FOLDER", "weights": "FILE", "cache": "FOLDER", "model": "NAME"},
    texts={"augment": "does not cut out and mirror training images at random"},
)
"""How the fields of a workload are shown, here and in `l3rs meta-train`."""


@dataclass(frozen=True)
class CacheOptions:
    """What to decode.

    Attributes:
        purposes: the classes whose images to decode, by what they serve.
        plan: only says how many images there are, and how much disk they take.
        verify: reads all pixels of finished caches again, and compares their SHA-256.
    """

    purposes: tuple[str, ...] = PURPOSES[1:]
    plan: bool = False
    verify: bool = False


def parser() -> Parser:
    """What to decode, and the workload that it is for."""
    parser = Parser("[options]", ABOUT)
    Options(CacheOptions, choices={"purposes": PURPOSES}, metavars={"purposes": "NAME"}).add(parser, "purposes", "plan", "verify")
    WORKLOAD.add(parser, *(f.name for f in fields(Workload)), title="the images and the network, as of meta-train")
    return parser


def run(args: Namespace) -> None:
    """Decodes what is not decoded yet."""
    unknown = [p for p in args.purposes if p not in PURPOSES]
    if unknown:
        raise ValueError(f"--purposes must be one or more of {', '.join(PURPOSES)} (got {unknown[0]!r})")
    workload = Workload(**values_of(Workload, vars(args)))
    if workload.embedded:
        raise ValueError(f"the images of {workload.split} are embedded; there is nothing to decode")
    purposes = [p for p in args.purposes if workload.class_split.classes[p]]
    for purpose in purposes:
        tree, folder = workload.tree(purpose), workload.cache_folder(purpose)
        size = in_words(size_in_bytes(len(tree.files), workload.decoder))
        print(f"{purpose}: {len(tree.classes)} classes, {len(tree.files)} images of {workload.decoder.side} px, {size} in {folder}")
    if not args.plan:
        workload.prepare(purposes)
    if args.verify:
        for purpose in purposes:
            open_cache(workload.cache_folder(purpose), workload.class_split.classes[purpose], verify=True)
        print("All pixels are as they were decoded.")
