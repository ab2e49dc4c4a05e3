"""Decoded images on disk: decoded once, then mapped into memory, so that a task's batches cost no JPEG decoding.

A cache is a folder:

- `plan.json` names the images and the decoder;
- `pixels.u8` holds all images one after the other;
- `chunks.txt` has a line for each finished chunk of images, with the SHA-256 of its pixels: a stopped build resumes after the last one;
- `index.csv` lists the images;
- `done.json`, written last, holds the SHA-256 of `index.csv` and of `chunks.txt`.
"""

from __future__ import annotations

import csv
import hashlib
import io
import json
import multiprocessing
import os
import shutil
import signal
from collections.abc import Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from filelock import FileLock
from torch import Tensor
from tqdm import tqdm

from l3rs.data.decode import BrokenImage, Decoder
from l3rs.data.trees import ImageTree, tell_passed_over
from l3rs.files import write_atomically
from l3rs.processes import cores, unseen
from l3rs.text import csv_cell, from_csv_cell, printable

CHUNK = 256  # images; a build that is killed loses its last chunk
START_UP = 16  # chunks that one process decodes in the time that others take to start
FORMAT = 2  # 1 did not heed EXIF orientations


class CacheError(ValueError):
    """A cache cannot be made or used; the message says why, and names the cure."""


def size_in_bytes(images: int, decoder: Decoder) -> int:
    """The disk space of this many images."""
    return images * decoder.channels * decoder.side**2


def build(tree: ImageTree, decoder: Decoder, folder: Path, skip_broken: bool = False, workers: int = 0, progress: bool = True) -> None:
    """Decodes all images of `tree` into `folder`; it resumes a stopped build, and leaves a finished one alone.

    Args:
        tree: the images.
        decoder: for all of them.
        folder: of the cache; made if needed. Builds of two processes take turns.
        skip_broken: leaves out and counts broken images; without it they are an error, once all have been tried.
        workers: processes that decode; 0 takes one for each core.
        progress: whether to show a progress bar.

    Raises:
        CacheError: the disk is too small or cannot be written, the folder holds a cache of other images, a process was killed, or, unless
            `skip_broken`, images are broken.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with FileLock(folder / "lock"):
            _build(tree, decoder, folder, skip_broken, workers or cores(), progress)
    except BrokenProcessPool as error:
        raise CacheError(f"a decoding process was killed, maybe for want of memory; {folder} keeps what is done: start again") from error
    except OSError as error:
        raise CacheError(f"the cache {folder} cannot be written ({error.strerror}); give another folder") from error


def _build(tree: ImageTree, decoder: Decoder, folder: Path, skip_broken: bool, workers: int, progress: bool) -> None:
    plan = {"format": FORMAT, "images": len(tree.files), "decoder": asdict(decoder), "tree": fingerprint(tree)}
    _check_plan(folder, plan, progress)
    if not (folder / "done.json").exists():
        tell_passed_over(tree.root, tree.passed_over)
        needed = size_in_bytes(len(tree.files), decoder)
        pixels = folder / "pixels.u8"
        there = pixels.stat().st_blocks * 512 if pixels.exists() else 0  # the file is sparse: this is what it takes by now
        free = shutil.disk_usage(folder).free
        if needed - there > free:
            raise CacheError(
                f"decoding {len(tree.files)} images to {decoder.side} px takes {size_in_words(needed - there)} of disk, and {folder} has "
                f"{size_in_words(free)} left; give fewer pixels, or a folder on a larger disk"
            )
        write_atomically(folder / "plan.json", _as_json(plan))
        broken = _decode_all(tree, decoder, folder, workers, progress)
        _write_index(tree, broken, folder)
    _check_files(folder)
    broken_rows = [row for row in _read_index(folder).itertuples() if row.broken]
    if broken_rows and not skip_broken:
        shown = "\n".join(f"  {row.broken}" for row in broken_rows[:10])
        more = f"\n  and {len(broken_rows) - 10} more, in {folder / 'index.csv'}" if len(broken_rows) > 10 else ""
        raise CacheError(
            f"{len(broken_rows)} of {len(tree.files)} images cannot be decoded; --skip-broken leaves them out, or, once they are mended, "
            f"remove {folder} to make it again\n{shown}{more}"
        )
    if broken_rows and progress:
        more = f"{folder / 'index.csv'} says which and why"
        tqdm.write(printable(f"{len(broken_rows)} of {len(tree.files)} images cannot be decoded and are left out; {more}"))


def _check_plan(folder: Path, plan: dict[str, object], progress: bool) -> None:
    """Raises CacheError if the folder holds another cache. It removes a cache of an earlier version, to be made anew."""
    file = folder / "plan.json"
    if file.exists():
        before = json.loads(file.read_text())
        if before.get("format", FORMAT) < FORMAT:
            for name in ("done.json", "index.csv", "chunks.txt", "pixels.u8", "plan.json"):  # never done.json without the others
                (folder / name).unlink(missing_ok=True)
            if progress:
                tqdm.write(printable(f"{folder} was made by an earlier version of l3rs; it is made anew"))
            return
        different = [key for key in plan if before.get(key) != json.loads(json.dumps(plan[key]))]
        if different:
            raise CacheError(f"{folder} was made of other images, or otherwise ({', '.join(different)} differ); remove it to make it again")


def _decode_all(tree: ImageTree, decoder: Decoder, folder: Path, workers: int, progress: bool) -> dict[int, str]:
    """Decodes the missing chunks; returns the error of each broken image, by its place."""
    chunks = [range(a, min(a + CHUNK, len(tree.files))) for a in range(0, len(tree.files), CHUNK)]
    log = folder / "chunks.txt"
    done = log.read_text().split("\n")[:-1] if log.exists() else []  # drops a last line that was cut off
    log.write_text("".join(f"{line}\n" for line in done))
    file = folder / "pixels.u8"
    file.touch()
    os.truncate(file, size_in_bytes(len(tree.files), decoder))
    broken: dict[int, str] = {}
    for line in done:
        broken |= {int(i): why for i, why in json.loads(line.split(" ", 1)[1])}
    bar = tqdm(total=len(tree.files), initial=sum(map(len, chunks[: len(done)])), desc="decoding", unit="image", disable=not progress)
    with bar, file.open("r+b") as pixels, log.open("a") as lines:
        for chunk, (block, wrong) in zip(chunks[len(done) :], _decoded(tree, decoder, chunks[len(done) :], workers), strict=True):
            pixels.seek(size_in_bytes(chunk.start, decoder))
            pixels.write(block)
            pixels.flush()
            os.fsync(pixels.fileno())
            lines.write(f"{hashlib.sha256(block).hexdigest()} {json.dumps(wrong)}\n")  # only now that the pixels are on the disk
            lines.flush()
            broken |= dict(wrong)
            bar.update(len(chunk))
    return broken


def _decoded(tree: ImageTree, decoder: Decoder, chunks: list[range], workers: int) -> Iterator[tuple[bytes, list[tuple[int, str]]]]:
    """Yields the chunks in order: their pixels, and the errors of broken images."""
    jobs = [(tree.root, [tree.files[i] for i in chunk], chunk.start, decoder) for chunk in chunks]
    if workers == 1 or len(jobs) <= START_UP:
        yield from map(_decode_chunk, jobs)
        return
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(min(workers, len(jobs)), spawn, torch.set_num_threads, (1,)) as pool:
        # Few in flight, so that decoded chunks do not pile up in memory if the disk is slow.
        with unseen(signal.SIGINT):
            ahead = [pool.submit(_decode_chunk, job) for job in jobs[: 2 * workers]]
        for i in range(len(jobs)):
            yield ahead.pop(0).result()
            if i + 2 * workers < len(jobs):
                ahead.append(pool.submit(_decode_chunk, jobs[i + 2 * workers]))


def _decode_chunk(job: tuple[Path, list[str], int, Decoder]) -> tuple[bytes, list[tuple[int, str]]]:
    root, files, start, decoder = job
    block = np.zeros((len(files), decoder.channels, decoder.side, decoder.side), np.uint8)
    wrong = []
    for i, file in enumerate(files):
        try:
            block[i] = decoder(root / file)
        except BrokenImage as error:
            wrong.append((start + i, str(error)))
    return block.tobytes(), wrong


def _write_index(tree: ImageTree, broken: dict[int, str], folder: Path) -> None:
    table = io.StringIO()
    writer = csv.writer(table, lineterminator="\n")
    writer.writerow(["file", "class", "validation", "broken"])
    for i, (file, label, side) in enumerate(zip(tree.files, tree.labels.tolist(), tree.validation.tolist(), strict=True)):
        writer.writerow([csv_cell(file), csv_cell(tree.classes[label]), int(side), csv_cell(broken.get(i, ""))])
    data = table.getvalue().encode(errors="surrogateescape")  # names of files need not be UTF-8
    (folder / "index.csv").write_bytes(data)
    sums = {"index.csv": hashlib.sha256(data).hexdigest(), "chunks.txt": _sum_of(folder / "chunks.txt")}
    write_atomically(folder / "done.json", _as_json(sums))


def _as_json(content: Mapping[str, object]) -> bytes:
    return (json.dumps(content, indent=1) + "\n").encode()


def _read_index(folder: Path) -> pd.DataFrame:
    table = pd.read_csv(folder / "index.csv", dtype=object, keep_default_na=False, lineterminator="\n", encoding_errors="surrogateescape")
    plain = {name: np.array([from_csv_cell(cell) for cell in table[name]], object) for name in ("file", "class", "broken")}
    return table.assign(**{name: pd.Series(cells, table.index, object) for name, cells in plain.items()})


def _sum_of(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def open_cache(folder: Path, classes: tuple[str, ...], verify: bool = False) -> tuple[Tensor, Tensor, Tensor]:
    """Maps a finished cache into memory.

    Args:
        folder: of the cache.
        classes: in the order of their numbers.
        verify: reads everything, and compares the SHA-256 of each chunk.

    Returns:
        Pixels, uint8 (N, channels, side, side); labels, int64 (N,), -1 for broken images; validation, bool (N,).

    Raises:
        CacheError: it is not finished, a file has another size or hash, or it has other classes.
    """
    if not (folder / "done.json").exists():
        raise CacheError(f"{folder} is no finished cache; build it first")
    _check_files(folder, verify)
    plan, file = json.loads((folder / "plan.json").read_text()), folder / "pixels.u8"
    if plan["format"] != FORMAT:
        raise CacheError(f"{folder} is of version {plan['format']} of the format, and this version of l3rs reads {FORMAT}; build it again")
    decoder = Decoder(**plan["decoder"])
    index = _read_index(folder)
    unknown = sorted(set(index["class"]) - set(classes))
    if unknown:
        raise CacheError(f"{folder} has images of class {unknown[0]!r}, which was not asked for; remove it to make it again")
    # Copy-on-write: nothing is ever written, but torch wants memory that could be.
    mapped = np.memmap(file, np.uint8, "c", shape=(plan["images"], decoder.channels, decoder.side, decoder.side))
    number = {c: i for i, c in enumerate(classes)}
    labels = index["class"].map(number).where(index["broken"] == "", -1).to_numpy(np.int64)
    return torch.from_numpy(mapped), torch.from_numpy(labels.copy()), torch.from_numpy((index["validation"] == "1").to_numpy(bool).copy())


def _check_files(folder: Path, verify: bool = False) -> None:
    """Raises CacheError if a file of a finished cache has changed; only `verify` reads all pixels."""
    wrong = _wrong_file(folder, verify)
    if wrong is not None:
        raise CacheError(f"{folder / wrong} is not as it was made; remove {folder} to make it again")


def _wrong_file(folder: Path, verify: bool) -> str | None:
    for name in ("plan.json", "index.csv", "chunks.txt", "pixels.u8"):
        if not (folder / name).exists():
            return name
    plan, sums = (json.loads((folder / name).read_text()) for name in ("plan.json", "done.json"))
    for name, sha in sums.items():
        if _sum_of(folder / name) != sha:
            return str(name)
    decoder, file = Decoder(**plan["decoder"]), folder / "pixels.u8"
    if file.stat().st_size != size_in_bytes(plan["images"], decoder):
        return file.name
    if verify:
        with file.open("rb") as pixels:
            for line in (folder / "chunks.txt").read_text().splitlines():
                if hashlib.sha256(pixels.read(size_in_bytes(CHUNK, decoder))).hexdigest() != line.split(" ", 1)[0]:
                    return file.name
    return None


def fingerprint(tree: ImageTree) -> str:
    """SHA-256 of the files' names, sizes, classes and sides, which tells if an image was added, removed or replaced by one of
    another size in bytes. Times do not count: a copy of a folder has others."""
    sha = hashlib.sha256()
    for file, label, side in zip(tree.files, tree.labels.tolist(), tree.validation.tolist(), strict=True):
        try:
            size = (tree.root / file).stat().st_size
        except (OSError, ValueError):  # missing, unreadable, or an impossible name: decoding will say which
            size = -1
        sha.update(f"{file}\0{tree.classes[label]}\0{int(side)}\0{size}\n".encode(errors="surrogateescape"))
    return sha.hexdigest()


def size_in_words(size: float) -> str:
    """Formats a number of bytes for people."""
    for unit in ("B", "kB", "MB"):
        if size < 1000:
            return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1000
    return f"{size:.1f} GB" if size < 1000 else f"{size / 1000:.1f} TB"
