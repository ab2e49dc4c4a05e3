"""Every option of every command with values that it cannot take: exit code 2, one line that names the option, and nothing is written.

The parsers are walked: an option that is new makes a test fail until it has its cases here."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest
from conftest import write_tree
from jsonargparse import ActionYesNo

import l3rs.data.cache
import l3rs.finetuning.compare
import l3rs.meta.train
import l3rs.own_images.run
from l3rs.cli import COMMANDS, dispatch, main
from l3rs.data.splits import PURPOSES, ClassSplit
from l3rs.data.transform import Transform
from l3rs.own_images.classifier import Classifier, save

parser_of = cache(dispatch.parser_of)  # a parser takes a while to make
OWN = ["--split", "split.json", "--data", "images", "--from-scratch", "--model", "resnet18", "--side", "16"]
# What a command needs besides the words that are wrong, which come after.
NEEDED = {
    "finetune": ["finetune", "--tasks", "1", "--steps", "1", "--out", "out"],
    "finetune --data": ["finetune", "--data", "images", "--model", "resnet18", "--side", "16", "--workers", "0", "--out", "out"],
    "predict": ["predict"],
    "evaluate": ["evaluate"],
    "export": ["export"],
    "split": ["split", "images", "--classes-per-task", "1", "--batch-size", "1", "--evaluation-size", "1", "--out", "out.json"],
    "cache": ["cache", *OWN, "--cache", "cache"],
    "meta-train": ["meta-train", "--out", "out", "--workers", "1"],
    "info": ["info"],
    "list": ["list"],
}
NOT_THERE, IN_A_FILE = "nowhere", "file/x"
ZOO = "--zoo.file zoo.yaml --specialist false --schedule.embedding 0"
# Of each option, the values that are of its type, or of none that can be told, and cannot be; and what is said (... stands for anything).
CASES: dict[str, dict[str, list[tuple[str, str]]]] = {
    "finetune": {
        "--tasks": [("0", "--tasks must be a whole number of at least 1 (got 0)")],
        "--steps": [
            ("0", "--steps must be one or more whole numbers of at least 1 (got 0)"),
            ("", "--steps must be followed by"),
            ("[]", "--steps must be followed by"),
        ],
        "--optimizers": [
            ("sgd", "--optimizers must be one or more of l3rs, adam ... (got 'sgd')"),
            ("", "--optimizers must be followed by at least one value"),
        ],
        "--head": [("zero", "--head must be one of random, start (got 'zero')")],
        "--learned": [(NOT_THERE, "a learned schedule is one of"), ("file", "cannot be read as safetensors"), ("images", "is a folder")],
        "--seed": [("-1", "--seed must be a whole number of at least 0 (got -1)")],
        "--out": [(IN_A_FILE, "--out must be a folder that can be written (got file/x: Not a directory)")],
        "--workers": [("-1", "--workers must be a whole number of at least 0 (got -1)")],
    },
    "finetune --data": {
        "--data": [(NOT_THERE, "nowhere is not a folder"), ("file", "file is not a folder")],
        "--model": [("resnet43", "model is 'resnet43', which timm"), ("", "model is ''")],
        "--steps": [("0", "--steps must be a whole number of at least 1 (got 0)")],
        "--weights": [(NOT_THERE, "the weights nowhere are not a file"), ("file", "file holds no weights that can be read")],
        "--from-scratch": [("=maybe", "--from-scratch must be true or false (got maybe)")],
        "--width": [
            ("0 --from-scratch", "width must be at least 1 (got 0)"),
            ("8", "width is 8, and pretrained weights are of timm's own"),
        ],
        "--side": [("0", "(got 0"), ("99999", "side and resize must satisfy ... (got 99999 and")],
        "--channels": [("2", "channels must be 1 (grey) or 3 (RGB) (got 2)")],
        "--batch-size": [
            ("0", "--batch-size must be a whole number of at least 1 (got 0)"),
            ("1 --from-scratch", "--batch-size must be at least 2: resnet18 has BatchNorm (got 1: "),
        ],
        "--augment": [("blur", "--augment must be one of none, crop, randaugment (got 'blur')")],
        "--mixup": [
            ("-1", "--mixup must be a number of at least 0, and finite (got -1.0)"),
            ("1 --batch-size 1", "batch_size must be at least 2 with mixup or cutmix"),
        ],
        "--cutmix": [("-0.5", "--cutmix must be a number of at least 0, and finite (got -0.5)")],
        "--label-smoothing": [("1", "--label-smoothing must be a number of at least 0 and below 1 (got 1.0)")],
        "--balance": [
            ("even", "--balance must be one of none, sampling, weights (got 'even')"),
            ("weights --labels file", "--labels and --balance do not go together"),
        ],
        "--head-start": [("=maybe", "--head-start must be true or false (got maybe)")],
        "--refresh": [("=maybe", "--refresh must be true or false (got maybe)")],
        "--head-only": [
            ("=maybe", "--head-only must be true or false (got maybe)"),
            ("--average", "--head-only and --average do not go together"),
            ("--learned generalist", "--head-only and --learned do not go together"),
            ("--no-head-start", "--head-only and --no-head-start do not go together"),
            ("--compare adam", "--compare must give a learning rate with --head-only, as in adam=1e-3 (got 'adam')"),
            ("--compare adamx", "--compare must be one or more of adam ... (got 'adamx')"),
        ],
        "--average": [("=maybe", "--average must be true or false (got maybe)")],
        "--patience": [("0", "--patience must be a whole number of at least 1 (got 0)")],
        "--validate-every": [("0", "--validate-every must be a whole number of at least 1 (got 0)")],
        "--epochs": [
            ("0", "--epochs must be a whole number of at least 1 (got 0)"),
            ("2 --steps 3", "--steps and --epochs do not go together: the other follows from it; leave one out"),
        ],
        "--labels": [(NOT_THERE, "the labels nowhere cannot be read"), ("file", "the labels file must have a column of files")],
        "--img-size": [
            ("0", "--img-size must be a whole number of at least 1 (got 0)"),
            ("64 --from-scratch", "--side and --img-size do not go together"),
        ],
        "--devices": [("0", "--devices must be a whole number of at least 1 (got 0)")],
        "--logger": [
            ("paper", "--logger must be one or more of tensorboard, csv, wandb (got 'paper')"),
            ("", "--logger must be followed by at least one value"),
        ],
        "--learned": [(f"{NOT_THERE} --from-scratch", "a learned schedule is one of"), ("file --from-scratch", "as safetensors")],
        "--compare": [
            ("adamx", "--compare must be one or more of adam ... (got 'adamx')"),
            ("adam=-1", "must be a number above 0, as in adam=3e-4 (got 'adam=-1')"),
            ("adam=1e-3,x", "must be a number above 0, as in adam=3e-4 (got 'adam=1e-3,x')"),
            ("adam=1e-3 adam=1e-3,1e-2", "--compare must have each baseline and learning rate once (got adam=0.001 twice)"),
        ],
        "--precision": [("8", "--precision must be one of 32-true ... (got '8')")],
        "--seed": [("-1", "--seed must be a whole number of at least 0 (got -1)"), ("9" * 30, "--seed must be below 2^63 (got 999")],
        "--out": [
            (f"{IN_A_FILE} --from-scratch", "--out must be a folder that can be written (got file/x: Not a directory)"),
            ("images/x", "--out must be outside of the images' folder"),
            ("images", "--out must be outside of the images' folder"),
        ],
        "--workers": [("-1", "--workers must be a whole number of at least 0 (got -1)")],
    },
    "predict": {
        "run": [(f"{NOT_THERE} images", "nowhere is not there; give the folder of a run"), ("file images", "file cannot be read as")],
        "images": [
            ("file nowhere", "nowhere is not there"),
            ("file empty", "the folder empty has no images"),
            ("file", "the following arguments are required: images"),
        ],
        "--top": [("0 file images", "--top must be at least 1 (got 0)")],
        "--csv": [
            ("no/x.csv file images", "--csv must be a file that can be written (got no/x.csv: No such file or directory)"),
            ("split.json file images", "--csv must be a new file, or one of earlier predictions (got split.json, which is there"),
        ],
    },
    "evaluate": {
        "run": [(f"{NOT_THERE} images", "nowhere is not there; give the folder of a run"), ("file images", "file cannot be read as")],
        "folder": [
            ("run nowhere", "nowhere is not a folder"),
            ("run empty", "empty has no class folders"),
            ("run", "the following arguments are required: folder"),
        ],
        "--labels": [("file run images", "is a model of one class an image, and takes no --labels")],
        "--out": [(f"{IN_A_FILE} run images", "--out must be a folder that can be written (got file/x: ")],
    },
    "export": {
        "run": [(NOT_THERE, "nowhere is not there; give the folder of a run"), ("file", "file cannot be read as")],
        "--to": [("jpeg run", "--to must be one of onnx, torch, hub (got 'jpeg')"), ("hub run", "--to hub needs --out OWNER/NAME")],
        "--out": [
            ("no/x.pt2 run --to torch", "--out must be a file that can be written (got no/x.pt2: No such file or directory)"),
            ("run/model.safetensors run --to torch", "--out must end in .pt2 with --to torch (got run/model.safetensors)"),
        ],
    },
    "split": {
        "folder": [("more", "unrecognized arguments: more")],
        "--pretrain": [("-1", "pretrain must be a share between 0 and 1, a number of classes, or a list of them (got -1.0)")],
        "--meta-train": [
            ("nan", "meta-train must be a share ... (got nan)"),
            ("@nowhere", "--meta-train must name a file that can be read (got @nowhere: "),
        ],
        "--meta-validation": [("1.5", "meta-validation must be a share ... (got 1.5)")],
        "--meta-test": [
            ("unicorn", "meta-test asks for class 'unicorn', which is not there"),
            ("", "must be followed by"),
        ],
        "--seed": [("-1", "--seed must be at least 0 (got -1)")],
        "--classes-per-task": [("0", "classes must be at least 1 (got 0)"), ("9", "a task has 9")],
        "--batch-size": [("0", "batch_size must be at least 1 (got 0)"), ("99", "which batches of 99")],
        "--evaluation-size": [("0", "evaluation_size must be at least 1 (got 0)"), ("99", "which batches of 99")],
        "--name": [("a/b", "the name of a split must have no slash, since files are called after it (got 'a/b')")],
        "--out": [(IN_A_FILE, "file/x cannot be written"), ("images", "images cannot be written")],
    },
    "cache": {
        "--config": [(NOT_THERE, "nowhere cannot be read (No such file or directory)"), ("zoo.yaml", "zoo.yaml: no setting is called ")],
        "--purposes": [
            ("x", "--purposes must be one or more of pretrain, meta-train ... (got 'x')"),
            ("", "--purposes must be followed by at least one value"),
        ],
        "--plan": [("=maybe", "--plan must be true or false (got maybe)")],
        "--verify": [("=maybe", "--verify must be true or false (got maybe)")],
        "--split": [(NOT_THERE, "the split nowhere is neither a file nor one of"), ("file", "file is no class split"), ("images", "Is a")],
        "--data": [(NOT_THERE, "nowhere is not a folder"), ("empty", "empty has no class folders")],
        "--side": [("0", "side must be at least 1 pixel (got 0)")],
        "--channels": [("2", "channels must be 1 (grey) or 3 (RGB) (got 2)")],
        "--augment": [("=maybe", "--augment must be true or false (got maybe)")],
        "--skip-broken": [("=maybe", "--skip-broken must be true or false (got maybe)")],
        "--cache": [(IN_A_FILE, "cannot be written (Not a directory)")],
        "--model": [("resnet43", "model is 'resnet43', which timm")],
        "--width": [
            ("0", "width must be at least 1 (got 0)"),
            ("8 --from-scratch=false", "width is 8, and pretrained weights are of timm's own"),
        ],
        "--weights": [("icons --from-scratch=false", "the shipped weights icons are of resnet34"), ("w.pt", "choose one")],
        "--model-args": [('{"in_chans":1}', "model_args has in_chans, which is not for it to say")],
        "--from-scratch": [("=maybe", "--from-scratch must be true or false (got maybe)")],
    },
    "meta-train": {
        "--config": [
            (NOT_THERE, "nowhere cannot be read (No such file or directory)"),
            ("file", "file must hold settings, as in `generations: 100` (got 'x')"),
        ],
        "--out": [(IN_A_FILE, "--out must be a folder that can be written (got file/x: Not a directory)")],
        "--split": [(NOT_THERE, "the split nowhere needs data"), ("file --data images --from-scratch", "file is no class split")],
        "--data": [
            ("images", "data is images, and the split icons is embedded"),
            (f"{NOT_THERE} --split split.json --from-scratch", "nowhere is not a folder"),
        ],
        "--side": [
            ("31", "side is 31, and the images of icons have 32 pixels"),
            ("-1 --split split.json --data images", "side must be at least 1 pixel (got -1)"),
        ],
        "--channels": [("2", "channels must be 1 (grey) or 3 (RGB) (got 2)")],
        "--augment": [("=maybe", "--augment must be true or false (got maybe)")],
        "--skip-broken": [("=maybe", "--skip-broken must be true or false (got maybe)")],
        "--cache": [(f"{IN_A_FILE} {' '.join(OWN)} --task.classes 1 --task.batch_size 1 --task.evaluation_size 1", "the cache file/x/")],
        "--model": [("resnet43", "model is 'resnet43', which timm")],
        "--width": [("0 --from-scratch", "width must be at least 1 (got 0)")],
        "--weights": [(NOT_THERE, "the weights nowhere are not a file"), ("glyphs --model resnet18", "the shipped weights glyphs are of")],
        "--model-args": [
            ('{"nothing":1} --from-scratch', "resnet34 does not take it: "),
            ('{"in_chans":1} --from-scratch', "model_args has in_chans, which is not for it to say"),
            ('{"channels":[8,16,32,64]} --model resnet26', "pretrained weights are of timm's own network"),
        ],
        "--from-scratch": [("=maybe", "--from-scratch must be true or false (got maybe)")],
        "--name": [("a/b", "name must have no slash, since a file is called after it (got 'a/b')")],
        "--generations": [
            ("0", "generations must be at least 1 (got 0)"),
            ("1 --search both", "generations and gradient.share must leave evolution at least one generation ... (got 1 and 0.5, which"),
            ("9 --search both --gradient.share 0.95", "at least one generation with search both (got 9 and 0.95, which is 9 to descend)"),
        ],
        "--optimizer": [("adam", "optimizer must be one of l3rs, velo ... (got 'adam')")],
        "--start": [
            ("[nowhere]", "nowhere is not a file; a learned schedule is one of"),
            ("[file]", "file cannot be read as safetensors"),
            ("[start,start]", "start must be one schedule, for l3rs (got start, start)"),
            ("[start]", "specialist must be False with the start start, which knows no layer by name (got True)"),
            ("[icons-resnet34-paper] --model resnet50 --from-scratch", "start must fit the network (got icons-resnet34-paper: "),
            (
                "[start] --specialist false --schedule.lr0 0.1",
                "schedule.lr0 must be that of the start start, 0.02, or left out (got 0.1)",
            ),
            ("[nowhere] --optimizer velo", "nowhere is not a file; the meta-parameters are published as"),
            ("[file] --optimizer velo", "file: there is int, not names and arrays"),
        ],
        "--lr": [
            ("0.1", "lr is a setting of other optimizers: l3rs has no learning rate (got 0.1)"),
            ("0 --optimizer velo", "lr must be positive and finite (got 0.0)"),
            (".inf --optimizer velo", "lr must be positive and finite (got inf)"),
        ],
        "--specialist": [("false", "specialist is False, with schedule.embedding 16")],
        "--steps": [
            ("[0,3]", "steps must be two whole numbers of at least 1, the smaller first (got [0, 3])"),
            ("[3,1]", "the smaller first (got [3, 1])"),
            ("[3]", "--steps must be 2 values (got 3)"),
        ],
        "--steps-distribution": [("normal", "steps_distribution must be one of uniform, log-uniform (got 'normal')")],
        "--meta-batch": [("0", "meta_batch must be at least 1 (got 0)")],
        "--objective": [("best", "objective must be one of final, log, mean, error (got 'best')")],
        "--search": [("descent", "search must be one of nes, gradient, both (got 'descent')")],
        "--refresh": [("=maybe", "--refresh must be true or false (got maybe)")],
        "--head": [("zero", "head must be one of random, start (got 'zero')")],
        "--head-batches": [
            ("0", "head_batches must be at least 1 (got 0)"),
            ("5", "head_batches has no effect with head random: leave it out (got 5)"),
        ],
        "--gradient.lr": [("0", "lr must be positive and finite (got 0.0)")],
        "--gradient.clip": [(".inf", "clip must be positive and finite (got inf)")],
        "--gradient.checkpoint-from": [("0", "checkpoint_from must be at least 1 (got 0)")],
        "--gradient.share": [
            ("1", "share must be above 0 and below 1 (got 1.0)"),
            ("0.9 --search gradient", "gradient.share has no effect with search gradient: leave it out (got 0.9)"),
        ],
        "--gradient.insignificant": [("1", "insignificant must be at least 0 and below 1 (got 1.0)")],
        "--penalty": [("0", "penalty must be positive and finite (got 0.0)"), (".nan", "penalty must be positive and finite (got nan)")],
        "--precision": [("8", "precision must be one of float32, bfloat16 (got '8')")],
        "--validate-every": [("0", "validate_every must be at least 1 (got 0)")],
        "--validation-steps": [
            ("[]", "validation_steps must be one or more numbers of at least 1 (got [])"),
            ("[0]", "numbers of at least 1 (got [0])"),
        ],
        "--validation-tasks": [("0", "validation_tasks must be at least 1 (got 0)")],
        "--finalists": [("0", "finalists must be at least 1 (got 0)")],
        "--final-tasks": [("0", "final_tasks must be at least 1 (got 0)")],
        "--workers": [("-1", "workers must be at least 0 (got -1)")],
        "--ray-address": [],  # what is no cluster is found when it is joined: test_a_cluster_that_is_not_there
        "--gpus-per-actor": [
            ("-1", "gpus_per_actor must be at least 0 (got -1.0)"),
            (".nan", "gpus_per_actor must be at least 0 (got nan)"),
        ],
        "--device": [
            ("tpu", "device must be one of cpu, cuda (got 'tpu')"),
            ("cuda --gpus-per-actor 0.5", "device cuda is one process on one GPU: give neither ray_address nor gpus_per_actor"),
        ],
        "--schedule.directions": [
            ("[]", "directions must name at least one (got none)"),
            ("[adamm]", "no direction is called 'adamm'"),
            ("[sgd,sgd]", "once (got sgd, sgd)"),
        ],
        "--schedule.ema-factors": [
            ("[1.0]", "each of ema_factors must be at least 0 and below 1 (got 1.0)"),
            ("[.nan]", "below 1 (got nan)"),
        ],
        "--schedule.time-points": [("1", "time_points must be at least 2, one for 0 and one for 1 (got 1)"), ("9999", "at most 4096")],
        "--schedule.time-slope": [
            ("0", "time_slope must be positive and finite (got 0.0)"),
            (".nan", "time_slope must be positive and finite (got nan)"),
        ],
        "--schedule.time-scales": [
            ("[0]", "time_scales must be one or more numbers of steps, positive and finite (got [0.0])"),
            ("[]", "positive and finite (got [])"),
        ],
        "--schedule.controller": [("x", "controller must be one of shared, layerwise, global (got 'x')")],
        "--schedule.embedding": [("-1", "embedding at least 0 (got [32, 32] and -1)"), ("9999", "at most 4096")],
        "--schedule.hidden": [
            ("[0,8]", "hidden must be two widths of at least 1, and embedding at least 0 (got [0, 8] and"),
            ("[9999,8]", "at most 4096"),
            ("[8]", "--schedule.hidden must be 2 values (got 8)"),
        ],
        "--schedule.signals": [
            ("[x]", "each of signals must be one of log_weight_norm, log_grad_norm, loss, log_relative_grad (got 'x')"),
            ("[loss,loss]", "signals must name each one once (got loss, loss)"),
        ],
        "--schedule.descriptors": [("=maybe", "--schedule.descriptors must be true or false (got maybe)")],
        "--schedule.direction-norms": [("x", "direction_norms must be one of all, scale-free (got 'x')")],
        "--schedule.head-logits": [("0", "head_logits must be positive and finite (got 0.0)")],
        "--schedule.feature-rms": [("0", "feature_rms must be positive and finite (got 0.0)")],
        "--schedule.feature-rms-cap": [(".inf", "feature_rms_cap must be positive and finite (got inf)")],
        "--schedule.unit": [("x", "unit must be one of rms, l2, relative, size (got 'x')")],
        "--schedule.lr0": [("0", "lr0 must be positive and finite (got 0.0)"), (".nan", "lr0 must be positive and finite (got nan)")],
        "--schedule.relative-floor": [
            ("-1", "relative_floor must be finite and at least 0 (got -1.0)"),
            (".inf", "relative_floor must be finite and at least 0 (got inf)"),
        ],
        "--schedule.norm-scale": [("0", "norm_scale must be positive and finite (got 0.0)")],
        "--schedule.norm-floor": [("-1", "norm_floor must be positive and finite (got -1.0)")],
        "--schedule.loss-scale": [("0", "loss_scale must be positive and finite (got 0.0)")],
        "--schedule.initial-mix": [(".nan", "initial_mix must be finite (got nan)")],
        "--schedule.initial-decay": [(".inf", "initial_decay must be finite (got inf)")],
        "--schedule.initial-horizon": [("=-.inf", "initial_horizon must be finite (got -inf)")],
        "--schedule.initial-head": [("0", "initial_head must be positive and finite (got 0.0)")],
        "--nes.population": [
            ("3", "population must be even and at least 2, since candidates come in pairs (got 3)"),
            ("0", "population must be even ... (got 0)"),
        ],
        "--nes.sigma": [
            ("0", "sigma must be positive (got 0.0)"),
            (".inf", "sigma must be finite (got inf)"),
            ("5 --search gradient", "nes.sigma has no effect with search gradient: leave it out (got 5.0)"),
        ],
        "--nes.hidden-noise": [("0", "hidden_noise must be positive (got 0.0)")],
        "--nes.sigma-half-life": [
            ("-1", "sigma_half_life must be positive (got -1.0)"),
            (".nan", "sigma_half_life must be positive (got nan)"),
        ],
        "--nes.lr": [("0", "lr must be positive (got 0.0)"), (".inf", "lr must be finite (got inf)")],
        "--nes.lr-half-life": [("0", "lr_half_life must be positive (got 0.0)")],
        "--nes.optimizer": [("x", "optimizer must be one of adam, sgd (got 'x')")],
        "--nes.seed": [
            ("-1", "seed must be at least 0 and below 2^32 (got -1)"),
            ("4294967296", "seed must be at least 0 and below 2^32 (got 4294967296)"),
        ],
        "--task.classes": [("0", "classes must be at least 1 (got 0)"), ("101", "meta-train of icons has 100 classes, and a task has 101")],
        "--task.batch-size": [
            ("0", "batch_size must be at least 1 (got 0)"),
            ("99999", "which batches of 99999"),
            ("1", "task.batch_size must be at least 2 for resnet34 at 32 px (got 1: "),
        ],
        "--task.evaluation-size": [("0", "evaluation_size must be at least 1 (got 0)"), ("99999", "which batches of 99999")],
        "--zoo.file": [
            (f"{NOT_THERE} --specialist false --schedule.embedding 0", "the zoo nowhere cannot be read: No such file or directory"),
            ("file --specialist false --schedule.embedding 0", "file is no zoo: it must map names of networks to what they are"),
            ("file", "specialist must be false with a zoo"),
        ],
        "--zoo.weights": [
            (f"{NOT_THERE} {ZOO}", "the weights nowhere/none.safetensors are not a file"),
        ],
        "--zoo.classes": [("[1,5]", "classes must be two whole numbers of at least 2, the smaller first (got [1, 5])")],
        "--zoo.batch-size": [("[8,4]", "batch_size must be two whole numbers of at least 2, the smaller first (got [8, 4])")],
        "--zoo.evaluation-size": [("[0,4]", "evaluation_size must be two whole numbers of at least 1, the smaller first (got [0, 4])")],
        "--zoo.random-heads": [("1.5", "random_heads must be a share between 0 and 1 (got 1.5)")],
        "--zoo.frozen": [(".nan", "frozen must be a share between 0 and 1 (got nan)")],
    },
    "info": {
        "schedule": [(NOT_THERE, "nowhere is not a file"), ("file", "cannot be read as safetensors"), ("empty", "is a folder without")]
    },
    "list": {},
}
BOTH = ("finetune", "finetune --data")  # one parser
ALLOWED = {"bool": "true or false", "float": "a number", "int": "a whole number"}


def options(command: str) -> Iterator[tuple[str, str]]:
    """Each option of a command, or what it is called where it is none, and its type."""
    for action in parser_of(command.split()[0])._actions:
        name = action.option_strings[0] if action.option_strings else action.dest
        if name not in ("-h", "--print-config"):
            typehint = getattr(action, "_typehint", None) or action.type or str
            kind = "bool" if isinstance(action, ActionYesNo) else next((kind for kind in ALLOWED if kind in str(typehint)), "str")
            if command not in BOTH or name in CASES[command]:
                yield name, kind


TYPED = [(command, name, kind) for command in CASES for name, kind in options(command) if kind != "str"]
GIVEN = [(command, name, value, said) for command, of in CASES.items() for name, cases in of.items() for value, said in cases]


@pytest.fixture(scope="module", autouse=True)
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder with two classes of images, a split of them, a file, and nothing else; where no work may begin."""
    root = tmp_path_factory.mktemp("place")
    write_tree(root / "images", {"ant": 4, "bee": 4, "cat": 4})
    (root / "file").write_text("x")
    (root / "zoo.yaml").write_text("one: {split: icons, model: resnet18, weights: none.safetensors, held_out: false}")
    (root / "empty").mkdir()
    (root / "run").mkdir()
    transform = Transform(16, 18, 3, "bilinear", (0.5,) * 3, (0.25,) * 3)
    classifier = Classifier("resnet18", 2, ("ant", "bee", "cat"), transform)
    save(classifier, classifier.network().state_dict(), root / "run" / "model.safetensors")
    classes = dict.fromkeys(PURPOSES, ()) | {"meta-train": ("ant",), "meta-validation": ("bee",)}
    ClassSplit("folder", 0, classes).write(root / "split.json")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(root)
        for module, work in (
            (l3rs.meta.train, "run"),
            (l3rs.finetuning.compare, "finetune"),
            (l3rs.own_images.run, "Training"),
            (l3rs.data.cache, "_decode_all"),
        ):
            patch.setattr(module, work, None)
        patch.setattr(dispatch, "parser_of", parser_of)
        yield root


def there(root: Path) -> list[tuple[str, int]]:
    return sorted((str(Path(at) / name), (Path(at) / name).stat().st_mtime_ns) for at, _, names in os.walk(root) for name in names)


def refused(command: str, words: list[str], place: Path, capsys: pytest.CaptureFixture[str]) -> str:
    """The line on stderr of a command that must fail, and write nothing."""
    before = there(place)
    with pytest.raises(SystemExit) as stop:
        main([*NEEDED[command], *words])
    out, err = capsys.readouterr()
    assert stop.value.code == 2
    lines = err.strip().splitlines()
    assert len(lines) == 1, lines
    assert lines[0].startswith("l3rs: error: ")
    assert "Traceback" not in out + err
    assert there(place) == before
    return lines[0]


def test_every_option_has_its_cases() -> None:
    both = {name for command in BOTH for name in CASES[command]}
    assert CASES.keys() == {*COMMANDS, *BOTH}
    for command in CASES:
        walked = dict(options(command))
        assert (both if command in BOTH else CASES[command].keys()) == {
            action.option_strings[0] if action.option_strings else action.dest
            for action in parser_of(command.split()[0])._actions
            if not {"-h", "--print-config"} & {*action.option_strings}
        }
        without = {name for name, cases in CASES[command].items() if not cases}
        assert without <= {"--ray-address"}, [walked[name] for name in without]
    assert len(TYPED) + len(GIVEN) > 200


@pytest.mark.parametrize("command", CASES)
def test_a_value_of_a_wrong_type_says_which_is_right(command: str, place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for _, name, kind in (row for row in TYPED if row[0] == command):
        pairs = ("--steps", "--schedule.hidden", "--zoo.classes", "--zoo.batch-size", "--zoo.evaluation-size")
        pair = command == "meta-train" and name in pairs
        said = refused(command, [name, "ten", *["ten"] * pair], place, capsys)
        assert said == f"l3rs: error: {name.replace('_', '-')} must be {ALLOWED[kind]} (got ten)"
    refused(command, ["--no-such-option", "1"], place, capsys)


@pytest.mark.parametrize("command", [c for c, of in CASES.items() if of])
def test_a_value_that_cannot_be_says_what_can(command: str, place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for _, name, value, said in (row for row in GIVEN if row[0] == command):
        first, *more = value.split() or [""]
        words = [name, *([first] if first or name == "--model" else [])] if name.startswith("-") and not first.startswith("=") else [first]
        words = [f"{name}{first}"] if first.startswith("=") else words
        line = refused(command, [*words, *more], place, capsys)
        assert re.search(re.escape(said).replace(re.escape(" ... "), ".* "), line), f"{command} {name} {value}: {line}"


def test_a_cluster_that_is_not_there(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main(["meta-train", "--out", "cluster", "--ray-address", "127.0.0.1:1"])
    assert stop.value.code == 2
    assert "ray_address must be an address that answers (got 127.0.0.1:1: " in capsys.readouterr().err


@pytest.mark.parametrize("words", [["finetun"], ["--steps", "3"], [""], ["list", "more"], ["info", "one", "two"]])
def test_what_is_no_command(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main(words)
    assert stop.value.code == 2
    assert len(capsys.readouterr().err.strip().splitlines()) == 1
