"""The command `l3rs`."""

from __future__ import annotations

import re
import sys
from collections.abc import Sequence
from pathlib import Path

from l3rs._version import __version__
from l3rs.extras import what_to_install


def without_extra(command: str, error: ModuleNotFoundError) -> None:
    """Ends in one line where a library of an extra is missing; raises any other error."""
    missing = what_to_install(command, error.name or "")
    if missing is None:
        raise error
    print(f"l3rs: error: {missing}", file=sys.stderr)
    sys.exit(2)


try:
    import jsonargparse
except ModuleNotFoundError as error:
    without_extra("l3rs", error)


class Parser(jsonargparse.ArgumentParser):
    """A parser whose errors are one line, with exit code 2."""

    def error(self, message: str, ex: Exception | None = None) -> None:  # type: ignore[override]
        print(f"l3rs: error: {in_words(' '.join(str(message).split()))}", file=sys.stderr)
        sys.exit(2)


def in_words(message: str) -> str:
    """What jsonargparse says of a value of a wrong type, without Python's types; any other message as it is."""
    kinds = {"int": "a whole number", "float": "a number", "bool": "true or false", "tuple": "a list, as in [10,100]"}
    found = re.match(r"""Parser key "(\S+)"(?: element \d+)?: .*?Expected a <class '(\w+)'>.*?(?:Got|Given) value: (.*)""", message)
    if found is None or found[2] not in kinds:
        return message
    return f"--{found[1].replace('_', '-')} must be {kinds[found[2]]} (got {found[3]})"


def _finetune_parser() -> Parser:
    # The defaults of the help are those of the config, which is imported only when the command runs: pandas and scipy take a second.
    from l3rs.finetuning.compare import OPTIMIZERS, FinetuneConfig

    d = FinetuneConfig()
    parser = Parser(
        description="Fine-tune the shipped ResNet-34 on new classes of Icons with the learned schedule and with tuned baselines, on the "
        "same tasks; print a table, and write runs.csv, curves.csv and finetune.png to --out. Runs that are there already are kept. "
        "On your own images: l3rs finetune --data FOLDER; l3rs finetune --data --help tells more."
    )
    parser.add_argument("--tasks", type=int, default=d.tasks, help="tasks of 25 new classes each (default: %(default)s)")
    parser.add_argument("--steps", type=int, nargs="+", default=list(d.steps), help="lengths of the runs (default: 10 25 50)")
    parser.add_argument(
        "--optimizers", type=str, nargs="+", default=list(d.optimizers), help=f"some of {', '.join(OPTIMIZERS)} (default: the first five)"
    )
    parser.add_argument("--learned", type=str, default=d.learned, help="auto, a name of `l3rs list`, or a path (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=d.seed, help="tasks are those of seeds SEED, SEED + 1, ... (default: %(default)s)")
    parser.add_argument("--out", type=str, default=str(d.out), help="folder for the results (default: %(default)s)")
    parser.add_argument("--workers", type=int, default=d.workers, help="processes; 0 is one a core (default: %(default)s)")
    return parser


def _finetune(args: jsonargparse.Namespace, parser: Parser) -> None:
    from l3rs.finetuning.compare import FinetuneConfig, Results, digest, finetune, schedule_for
    from l3rs.networks.pretrained import shipped_weights

    try:
        values = {**vars(args), "steps": tuple(args.steps), "optimizers": tuple(dict.fromkeys(args.optimizers)), "out": Path(args.out)}
        config = FinetuneConfig(**values)
        learned = schedule_for(config)
        about = {"network": digest([t for _, t in sorted(shipped_weights().items())])}
        if "l3rs" in config.optimizers:
            about["schedule"] = f"{learned.name} {digest([learned.theta])}"
        results = Results(config.out, about)
    except ValueError as error:
        parser.error(str(error))
    try:
        finetune(config, learned, results)
    except OSError as error:
        parser.error(f"{config.out} could not be written ({error.strerror}); make room there, and give the same command: it goes on")


def _own_images_parser() -> Parser:
    from l3rs.own_images.config import COMPARED, PRECISIONS, OwnImagesConfig

    d = OwnImagesConfig("photos", from_scratch=True)
    parser = Parser(
        description="Fine-tune a model of timm on your own images, FOLDER/CLASS/IMAGE or FOLDER/{train,val}/CLASS/IMAGE, with the learned "
        "schedule; write the best weights, the confusion matrix, the curves, and what the schedule decided to --out. It can be stopped: "
        "the same command goes on where it was."
    )
    parser.add_argument(
        "--data", type=str, required=True, help="folder of the images; without val/, a fifth of each class is for validation"
    )
    parser.add_argument("--model", type=str, default=d.model, help="its name in timm (default: %(default)s)")
    parser.add_argument("--steps", type=int, default=d.steps, help="of training (default: %(default)s)")
    parser.add_argument(
        "--weights", type=str, default=None, help="a safetensors file, or icons or glyphs (default: timm's pretrained ones)"
    )
    parser.add_argument("--from-scratch", action="store_true", help="start at random")
    parser.add_argument("--width", type=int, default=None, help="channels of the first stage, for resnet18 and resnet34 (default: timm's)")
    parser.add_argument("--side", type=int, default=None, help="height and width that the network sees, in pixels (default: the model's)")
    parser.add_argument("--channels", type=int, default=None, help="3, colour, or 1, grey (default: 3, or what --weights icons needs)")
    parser.add_argument("--batch-size", type=int, default=d.batch_size, help="images a step (default: %(default)s)")
    parser.add_argument("--no-augment", action="store_true", help="training images are not cut out and mirrored at random")
    parser.add_argument("--learned", type=str, default=d.learned, help="auto, a shipped schedule's name, or a path (default: %(default)s)")
    parser.add_argument(
        "--compare", type=str, nargs="+", default=[], metavar="NAME[=LR]", help=f"baselines on the same batches: {', '.join(COMPARED)}"
    )
    parser.add_argument("--precision", type=str, default=d.precision, help=f"one of {', '.join(PRECISIONS)} (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=d.seed, help="of everything that is drawn (default: %(default)s)")
    parser.add_argument("--out", type=str, default=None, help="folder of the run (default: l3rs-NAME, by the name of the images' folder)")
    parser.add_argument("--workers", type=int, default=None, help="processes that decode images (default: by their number and the machine)")
    return parser


def _own_images(args: jsonargparse.Namespace, parser: Parser) -> None:
    from l3rs.own_images.config import OwnImagesConfig
    from l3rs.own_images.run import Stopped, finetune_own

    values = {**vars(args), "augment": not args.no_augment, "compare": tuple(args.compare)}
    del values["no_augment"]
    try:
        config = OwnImagesConfig(**values)
        finetune_own(config)
    except (ValueError, OSError) as error:
        parser.error(str(error))
    except Stopped as stop:
        print(f"\nStopped at step {stop.step}. {config.folder} holds the run; the same command goes on from the last checkpoint.")
        sys.exit(stop.code)


def _predict_parser() -> Parser:
    parser = Parser(description="Say what is on images, with a model that `l3rs finetune --data` has trained.")
    parser.add_argument("run", type=str, help="folder of the run, or its model.safetensors")
    parser.add_argument("images", type=str, nargs="+", help="files, or folders of them")
    parser.add_argument("--top", type=int, default=1, help="how many classes of each image (default: %(default)s)")
    parser.add_argument("--csv", type=str, default=None, help="a file for the table")
    return parser


def _predict(args: jsonargparse.Namespace, parser: Parser) -> None:
    from l3rs.own_images.predict import predict_command

    try:
        predictions = predict_command(args.run, args.images, args.top, args.csv)
    except ValueError as error:
        parser.error(str(error))
    broken = [p.error for p in predictions if p.error is not None]
    for why in broken:
        print(f"l3rs: left out: {why}", file=sys.stderr)
    if broken:
        sys.exit(1)


def _split_parser() -> Parser:
    from l3rs.data.splits import PURPOSES
    from l3rs.finetuning.splitting import SHARES
    from l3rs.finetuning.tasks import TaskConfig

    d = TaskConfig()
    parser = Parser(
        description="Divide the classes of a folder of images, FOLDER/CLASS/IMAGE or FOLDER/{train,val}/CLASS/IMAGE, among four purposes, "
        "and write the class split that `l3rs meta-train --split` takes. A purpose asks for a share of all classes (0.5), a number of them "
        "(40), their names, or @FILE with a name a line; names are served first, and the others drawn at random."
    )
    parser.add_argument("folder", type=str, help="folder of the images; without val/, a fifth of each class is for validation")
    for purpose in PURPOSES:
        shown = f"{SHARES[purpose]:g}"
        parser.add_argument(
            f"--{purpose}", type=str, nargs="+", default=[shown], metavar="WANTED", help=f"{purpose} classes (default: {shown})"
        )
    parser.add_argument("--seed", type=int, default=0, help="of the draw (default: %(default)s)")
    parser.add_argument("--classes-per-task", type=int, default=d.classes, help="of the tasks to come (default: %(default)s)")
    parser.add_argument("--batch-size", type=int, default=d.batch_size, help="of the tasks to come (default: %(default)s)")
    parser.add_argument("--evaluation-size", type=int, default=d.evaluation_size, help="of the tasks to come (default: %(default)s)")
    parser.add_argument("--name", type=str, default=None, help="of the split (default: that of the folder)")
    parser.add_argument("--out", type=str, default="split.json", help="file to write (default: %(default)s)")
    return parser


def _split(args: jsonargparse.Namespace, parser: Parser) -> None:
    from l3rs.data.splits import PURPOSES
    from l3rs.finetuning.splitting import SplitConfig, as_table, make_split, wanted
    from l3rs.finetuning.tasks import TaskConfig

    try:
        shares = {purpose: wanted(purpose, args[purpose.replace("-", "_")]) for purpose in PURPOSES}
        task = TaskConfig(args.classes_per_task, args.batch_size, args.evaluation_size)
        split, tree = make_split(SplitConfig(Path(args.folder), Path(args.out), args.name, args.seed, shares, task))
    except ValueError as error:
        parser.error(str(error))
    print(f"{as_table(split, tree)}\n\nWrote {args.out}.")


def _cache_parser() -> Parser:
    from l3rs.data.splits import PURPOSES
    from l3rs.finetuning.workload import Workload

    parser = Parser(
        description="Decode the images of a split once, so that training on them decodes nothing; meta-training does this by itself. "
        "A build that was stopped goes on where it was. With the same options, meta-training finds the cache."
    )
    parser.add_argument(
        "--purposes", type=str, nargs="+", default=list(PURPOSES[1:]), help=f"some of {', '.join(PURPOSES)} (default: the meta ones)"
    )
    parser.add_argument("--plan", action="store_true", help="only say how many images there are, and how much disk they take")
    parser.add_argument("--verify", action="store_true", help="read all pixels of finished caches again, and compare their SHA-256")
    parser.add_class_arguments(Workload, as_group=False)
    return parser


def _cache(args: jsonargparse.Namespace, parser: Parser) -> None:
    from l3rs.data.cache import in_words, open_cache, size_in_bytes
    from l3rs.data.splits import PURPOSES
    from l3rs.finetuning.workload import Workload

    purposes, plan, verify = args.pop("purposes"), args.pop("plan"), args.pop("verify")
    try:
        unknown = [p for p in purposes if p not in PURPOSES]
        if unknown:
            raise ValueError(f"--purposes must be one or more of {', '.join(PURPOSES)} (got {unknown[0]!r})")
        workload = Workload(**vars(args))
        if workload.embedded:
            raise ValueError(f"the images of {workload.split} are embedded; there is nothing to decode")
        purposes = [p for p in purposes if workload.class_split.classes[p]]
        for purpose in purposes:
            tree, folder = workload.tree(purpose), workload.cache_folder(purpose)
            size = in_words(size_in_bytes(len(tree.files), workload.decoder))
            print(f"{purpose}: {len(tree.classes)} classes, {len(tree.files)} images of {workload.decoder.side} px, {size} in {folder}")
        if not plan:
            workload.prepare(purposes)
        if verify:
            for purpose in purposes:
                open_cache(workload.cache_folder(purpose), workload.class_split.classes[purpose], verify=True)
            print("All pixels are as they were decoded.")
    except ValueError as error:
        parser.error(str(error))


def _meta_train_parser() -> Parser:
    from l3rs.meta.config import add_arguments

    parser = Parser(
        description="Meta-train a schedule by evolution strategies, on Icons25 or on classes of your own. Stop it when you like: the same "
        "command goes on where it was. Writes the schedule that did best on meta-validation classes, its curve and its config to --out."
    )
    parser.add_argument("--config", action="config", help="a YAML file with the settings below, such as one in configs/")
    parser.add_argument("--out", type=str, required=True, help="folder of the run")
    add_arguments(parser)
    return parser


def _meta_train(args: jsonargparse.Namespace, parser: Parser) -> None:
    from l3rs.meta.config import MetaTrainConfig

    out = args.pop("out")
    args.pop("config", None)
    try:
        config = MetaTrainConfig.of(**vars(parser.instantiate(args)))
    except ValueError as error:
        parser.error(str(error))
    from l3rs.meta.folder import last_generation  # only now that the settings are right: EvoTorch takes seconds
    from l3rs.meta.problem import MetaTrainingError
    from l3rs.meta.train import meta_train

    try:
        chosen = meta_train(config, out)
    except (ValueError, OSError, MetaTrainingError) as error:
        parser.error(str(error))
    except KeyboardInterrupt:
        print(f"\nStopped. {out} holds the run up to generation {last_generation(Path(out))}; the same command goes on from there.")
        sys.exit(130)
    accuracy = chosen.training["validation_accuracy"]
    print(f"Wrote {Path(out) / chosen.name}.safetensors: generation {chosen.training['generation']}, {accuracy:.3f} on meta-validation.")


def _info_parser() -> Parser:
    parser = Parser(
        description="Show what is installed and shipped, and the number of meta-parameters of every variant of the paper's tables; or, "
        "given a schedule, what it is and how it was meta-trained."
    )
    parser.add_argument("schedule", type=str, nargs="?", help="a shipped schedule's name, a path, or a Hub id, OWNER/NAME[@REVISION]")
    return parser


def _info(args: jsonargparse.Namespace, parser: Parser) -> None:
    from l3rs.info import describe, overview
    from l3rs.learners import load

    try:
        lines = overview() if args.schedule is None else describe(load(args.schedule))
    except ValueError as error:
        parser.error(str(error))
    print(*lines, sep="\n")


def _list_parser() -> Parser:
    return Parser(
        description="List the schedules that are shipped, those of l3rs in the Hub's cache on this machine, and the networks that are "
        "shipped. Downloads nothing. A name of the first two is what `L3RS(..., learned=NAME)`, `l3rs.load(NAME)`, `l3rs info NAME` and "
        "`l3rs finetune --learned NAME` take; any other Hub id, OWNER/NAME[@REVISION], is downloaded by them first."
    )


def _list(args: jsonargparse.Namespace, parser: Parser) -> None:
    from l3rs.info import listing

    print(*listing(), sep="\n")


def spelled_out(words: Sequence[str], flags: Sequence[str] = ("--skip_broken", "--from_scratch")) -> list[str]:
    """Options as the parser of a config knows them: `--skip-broken` is `--skip_broken true`."""
    out: list[str] = []
    for i, word in enumerate(words):
        name, equals, value = word.partition("=")
        out.append(name.replace("-", "_").replace("__", "--", 1) + equals + value if name.startswith("--") else word)
        if out[-1] in flags and [w.lower() for w in words[i + 1 : i + 2]] not in (["true"], ["false"]):
            out.append("true")
    return out


COMMANDS = {
    "finetune": (_finetune_parser, _finetune),
    "split": (_split_parser, _split),
    "cache": (_cache_parser, _cache),
    "meta-train": (_meta_train_parser, _meta_train),
    "info": (_info_parser, _info),
    "list": (_list_parser, _list),
    "predict": (_predict_parser, _predict),
}


def main(argv: Sequence[str] | None = None) -> None:
    """Runs `l3rs COMMAND ...`; wrong input ends in one line and exit code 2."""
    words = list(sys.argv[1:] if argv is None else argv)
    about = "usage: l3rs {finetune,predict,split,cache,meta-train,info,list} [options]   (l3rs COMMAND --help tells more)"
    if words[:1] == ["--version"]:
        print(f"l3rs {__version__}")
        return
    if words[:1] in ([], ["--help"], ["-h"]):
        print(f"{about}\n")
        print("  finetune    fine-tune on new classes, against tuned baselines")
        print("              with --data: on your own images")
        print("  predict     what is on images, by a model fine-tuned on your own")
        print("  split       divide the classes of your own images")
        print("  cache       decode your own images once, beforehand")
        print("  meta-train  learn a schedule")
        print("  info        what is installed and shipped, and what a schedule is")
        print("  list        the schedules and networks that are there")
        return
    if words[0] not in COMMANDS:
        print(f"l3rs: error: no command is called {words[0]!r}; there are {', '.join(COMMANDS)}", file=sys.stderr)
        sys.exit(2)
    make, run = COMMANDS[words[0]]
    if words[0] == "finetune" and any(word.partition("=")[0] == "--data" for word in words):
        make, run = _own_images_parser, _own_images
    try:
        parser = make()
        parser.prog = f"l3rs {words[0]}"
        run(parser.parse_args(spelled_out(words[1:]) if words[0] in ("cache", "meta-train") else words[1:]), parser)
    except ModuleNotFoundError as error:
        without_extra(f"l3rs {words[0]}", error)


if __name__ == "__main__":
    main()
