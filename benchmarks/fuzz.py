"""Random files and command lines: each is read, or refused in one line.

    python benchmarks/fuzz.py --cases 100000                          # of all kinds, about half an hour
    python benchmarks/fuzz.py --kind dataset --cases 1 --seed 1234    # one of them again
    python benchmarks/fuzz.py --guided 3600                           # needs atheris

Real inputs are changed, a part or a few bytes at a time, and written with checksums that fit. Whatever is then
no UserError of one line, or of a command no exit code 0, 1 or 2 with one line, is a finding, as are a crash and a
minute without an end. With --guided, atheris keeps the inputs that reach code which none before them did.
"""

import argparse
import contextlib
import copy
import io
import json
import mmap
import os
import random
import resource
import shutil
import signal
import struct
import sys
import tempfile
import time
import traceback
import zipfile
import zlib
from pathlib import Path
from unittest import mock

GUIDED = "--guided" in sys.argv
if GUIDED:
    import atheris
with (
    atheris.instrument_imports(include=["keras_ae", "PIL"]) if GUIDED else contextlib.nullcontext()
):
    import click
    import numpy as np
    from click.testing import CliRunner
    from kae import main as program
    from PIL import Image

    from keras_ae import CVAE, checkpoints, data, fitting, resuming
    from keras_ae.data import cache, disk, reading
    from keras_ae.errors import UserError
    from keras_ae.settings import Settings

# Kinds of input, with the share of each in the cases; some cost ten times as much as others.
SHARES = {"model": 7, "run": 16, "dataset": 19, "cache": 18, "config": 38, "command": 2}
READERS = ("model", "run", "dataset")  # of files of strangers
SECONDS, MEMORY = 60, 4 << 30  # that a case may take
SHAPE = (6, 5, 1)
TINY = {"backbone": "mlp", "hidden": (2,), "latent_dim": 2, "limit": 9, "batch_size": 4, "epochs": 1}  # fmt: skip
ODD = [None, True, False, 0, 1, -1, 2, 3, 70, 0.5, -1e-3, 2**31, 2**63, 10**40, 1e308, float("nan"), float("inf"), "", "a",
       "0", "mlp", "conv", "auto", "int8", "a\nb", "\x1b[2J", "\ud800", "a" * 300, "../x", "/dev/zero", "1.0.0",
       "keras_ae>CVAE", "keras_ae>ClassMixture", [], {}, [[]], [1], ["1", "1"], {"a": 1}]  # fmt: skip
IN_TEXT = ["[" * 20_000, '{"a":' * 20_000, "9" * 5000, "1e999", '"\\ud800"', "\ufeff", "nan", "\0"]
IN_BYTES = [b"nan", b"inf", b"-1", b"1e308", b"99999999999", b",", b"\n", b'"', b"\0", b"\0" * 8, b"\xff" * 4, b"\xff" * 8]  # fmt: skip
PATHS = ["good.keras", "junk.keras", "picture.png", "empty", "junk", "file", "file/x", "no/such", "/dev/null/x", ".", "", "ae",
         "vae", "cvae", "gan", "toy", "mnist", "./data/toy", "../pictures", "x.png", "x.npy", "x.jpg", "file/x.png", "-", "--",
         "-h", "a" * 300, "\udcff", "é\u202e", "\x1b[2J", "a\nb"]  # fmt: skip
NUMBERS = ["-3", "-1", "0", "1", "2", "3", "7", "40", "nan", "inf", "-inf", "1e308", "1e-320", "0.5", "1,2", ",", "0x10", "1_0", "٣",
           "4,x", "auto", str(2**31), str(2**32), str(10**15), str(10**30)]  # fmt: skip
FEW = ["-1", "0", "1", "2", "3", "x", str(10**40)]  # where a large number would take its time
SMALL = ["epochs", "number", "limit", "samples", "steps", "frames", "early_stopping"]
COSTLY = [
    "evaluate",
    "report",
    "explore",
    "export",
    "scatter",
    "score",
    "sweep",
]  # where all is well
BAD = ["junk", "no/such", "", "file", "junk.keras", "--x"]  # models, given to those
SHARED = mmap.mmap(-1, 16)  # with the processes that the cases run in


def edited(draw, value):
    """A JSON value with one of its parts replaced, removed, doubled or renamed."""
    if isinstance(value, dict | list) and value and draw.random() < 0.85:
        value = copy.copy(value)
        how = draw.random()
        key = draw.choice(list(value) if isinstance(value, dict) else range(len(value)))
        if how < 0.1:
            del value[key]
        elif how < 0.2 and isinstance(value, list):
            value.insert(key, value[key])
        elif how < 0.2:
            value[draw.choice(["", "a", "name", "format", "\x1b", key + "s"])] = draw.choice(ODD)
        elif how < 0.3:
            value[key] = value[draw.choice(list(value)) if isinstance(value, dict) else -1]
        else:
            value[key] = edited(draw, value[key])
        return value
    if type(value) in (int, float) and draw.random() < 0.5:
        return draw.choice([value + 1, value - 1, -value, value * 1000, float(value), str(value)])
    if isinstance(value, str) and value and draw.random() < 0.5:
        place = draw.randrange(len(value))
        return value[:place] + draw.choice(["", "x", "/", "1", "é", "\n"]) + value[place + 1 :]
    return draw.choice(ODD)


def damaged(draw, content):
    """Bytes with some of them changed, cut out, doubled, zeroed or put in; more often near the start."""
    content = bytearray(content or b"\0")
    for _ in range(draw.choice([1, 1, 2, 4])):
        place, length = int(len(content) * draw.random() ** 2), draw.choice([1, 1, 1, 2, 8, 100])
        part, how = content[place : place + length], draw.randrange(6)
        if how == 0 and len(content) > length:
            part = b""
        elif how == 1:
            part = part + part
        elif how == 2:
            part = bytes(len(part))
        elif how == 3:
            part = draw.choice(IN_BYTES)
        else:
            part = bytes([draw.randrange(256)]) + part[1:]
        content[place : place + length] = part
    return bytes(content[: draw.randrange(len(content))] if draw.random() < 0.03 else content)


def changed(draw, files):
    """The files of an input, {name: bytes}, with one of them changed."""
    weights = [4 if name.endswith((".json", ".toml", ".txt", ".csv")) else 1 for name in files]
    name = draw.choices(list(files), weights)[0]
    content = files[name]
    if draw.random() < 0.02 and len(files) > 1:
        return {key: value for key, value in files.items() if key != name}
    if name.endswith(".json") and draw.random() < 0.9:
        with contextlib.suppress(ValueError, RecursionError):
            text = json.dumps(edited(draw, json.loads(content)))
            if draw.random() < 0.03:
                place = draw.randrange(len(text))
                text = text[:place] + draw.choice(IN_TEXT) + text[place + 1 :]
            return {**files, name: text.encode(errors="surrogatepass")}
    return {**files, name: damaged(draw, content)}


def assembled(files):
    """The files as they lie on disk: what is called "archive!member" becomes part of one."""
    whole, parts = {}, {}
    for name, content in files.items():
        path, _, member = name.partition("!")
        if member:
            parts.setdefault(path, {})[member] = content
        else:
            whole[path] = content
    for path, members in parts.items():
        if "tfrecord" in path:
            whole[path] = b"".join(map(framed, members.values()))
            continue
        file = io.BytesIO()
        with zipfile.ZipFile(file, "w") as archive:
            for member, content in members.items():
                if member == "about.json":
                    array = io.BytesIO()
                    np.save(array, np.array(content.decode(errors="replace")))
                    member, content = "about.npy", array.getvalue()
                archive.writestr(member, content)
        whole[path] = file.getvalue()
    return whole


def framed(record):
    """A record of a TFRecord file."""
    length = struct.pack("<Q", len(record))
    first, last = (struct.pack("<I", reading.masked_crc32c([part])[0]) for part in (length, record))
    return length + first + record + last


def told(function, *arguments):
    """What a function of the library returns, None for an error that it tells in a line."""
    try:
        return function(*arguments)
    except UserError as error:
        assert str(error) and "\n" not in str(error), "an error of several lines"
        return None


def run(arguments):
    """`kae` in this process; what always holds is checked."""
    done = CliRunner().invoke(program.cli, arguments, catch_exceptions=False)
    assert done.exit_code in (0, 1, 2), f"exit code {done.exit_code}"
    assert "Traceback" not in done.output, done.output
    if done.exit_code:
        assert done.stdout == "" or "Usage" in done.stdout, f"stdout of an error: {done.stdout}"
        lines = done.stderr.rstrip().split("\n")
        errors = [line for line in lines if line.startswith("Error: ")]
        assert len(errors) == 1 and lines[-1] == errors[0], f"not one line: {done.stderr}"


def files_in(folder, archive=None, only=""):
    """The files in a folder, {name: bytes}, with the members of an archive in its place."""
    paths = sorted(path for path in folder.rglob("*") if path.is_file())
    files = {path.relative_to(folder).as_posix(): path.read_bytes() for path in paths}
    if archive:
        with zipfile.ZipFile(io.BytesIO(files.pop(archive))) as file:
            files |= {f"{archive}!{name}": file.read(name) for name in file.namelist()}
    return {name: content for name, content in files.items() if only in name}


class Fuzz:
    """What the cases are made from, in a folder of their own.

    Attributes:
        bases: {kind: [{name: bytes}, …]}, the real inputs of each kind.
        work: where commands run; put back before the next one.
        case: the folder that an input is written to.
    """

    def __init__(self, folder):
        self.work, self.before, self.case = folder / "work", folder / "before", folder / "case"
        self.caches = {"dataset": folder / "pictures/class 0/0.png/none", "cache": folder / "entry"}
        os.environ.update(KAE_DATA_DIR=str(self.work / "data"), KAE_CACHE=str(folder / "cache"))
        os.environ.update(http_proxy="http://127.0.0.1:9", https_proxy="http://127.0.0.1:9")
        self.bases = {}
        pictures = np.random.default_rng(0).integers(0, 256, (24, *SHAPE[:2]), np.uint8)
        for i, picture in enumerate(pictures):
            path = folder / "pictures" / f"class {i % 2}" / f"{i}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(picture).save(path)
        self.make_datasets(data.import_folder("toy", folder / "pictures", self.work / "data"))
        self.make_models(folder / "run")
        (self.work / "empty").mkdir()
        (self.work / "junk").mkdir()
        (self.work / "junk" / "run.json").write_text("[1")
        (self.work / "junk.keras").write_bytes(b"PK\x03\x04junk")
        (self.work / "file").write_text("a file")
        shutil.copy(self.work / "good.keras", self.work / "junk" / "model.keras")
        shutil.copy(path, self.work / "picture.png")
        shutil.copytree(self.work, self.before)
        self.state = self.state_of_work()
        os.chdir(self.work)

    def make_datasets(self, toy):
        base = files_in(toy.path)
        mnist = self.work / "data" / "mnist" / toy.version  # small, of the name that is the default
        mnist.mkdir(parents=True)
        info = base["dataset_info.json"]
        for name, content in base.items():
            content = info.replace(b'"toy"', b'"mnist"') if content == info else content
            (mnist / name.replace("toy", "mnist")).write_bytes(content)
        files = {name: content for name, content in base.items() if "array_record" not in name}
        files["dataset_info.json"] = info.replace(b'"array_record"', b'"tfrecord"')
        for split in toy.splits:
            for i, record in enumerate(reading._array_records(disk.shards(toy, split))):
                files[f"toy-{split}.tfrecord-00000-of-00001!{i}"] = record
        self.bases["dataset"] = [base, files]
        with self.cache_of("cache"):
            self.images = data.load("toy", "train").images
            self.entry = cache.own_folder("arrays")
        self.bases["cache"] = [files_in(self.entry)]

    def make_models(self, run):
        self.bases["model"] = []
        for name in ("vae", "cvae"):
            settings, folder = Settings(name, "toy", **TINY), self.work / "checkpoints" / name
            fitting.fit(settings, folder, verbose=0, report=lambda line: None)
            shutil.copy(folder / "model.keras", self.work / "good.keras")
            self.bases["model"].append(files_in(folder, "model.keras", only="!"))
        shutil.copytree(folder, run)
        settings = json.dumps(settings.to_dict()).encode()
        toml = b'backbone = "mlp"\nhidden = [4, 2]\nepochs = 3\nkl-weight = 0.5\naugment = "flip"\n'
        self.bases["config"] = [{"x.json": settings}, {"x.toml": toml}]
        self.network = CVAE(SHAPE, 2, "mlp", (2,), num_classes=2)
        self.network.compile("adam")
        self.network.optimizer.build(self.network.trainable_variables)
        means = [np.float32(1)] * len(self.network.metrics_variables)
        rows = checkpoints.read_history(run)
        checkpoints.write_backup(run, self.network, checkpoints.Progress(rows, 1, 2, 0.5, means))
        record = {**checkpoints.read_run(run), "finished": False, "from": {"run": "vae"}}
        checkpoints.write_run(run, record)
        checkpoints.write_source(run, "../work/data/toy")
        files = files_in(run, "backup/state.npz")
        about = np.load(io.BytesIO(files.pop("backup/state.npz!about.npy")))
        files["backup/state.npz!about.json"] = str(about).encode()
        self.bases["run"] = [files_in(folder), files]

    def state_of_work(self):
        stats = {path: path.lstat() for path in self.work.rglob("*")}
        return {path: (stat.st_ino, stat.st_mtime_ns, stat.st_size) for path, stat in stats.items()}

    @contextlib.contextmanager
    def cache_of(self, kind):
        """Within it, KAE_CACHE is that of a kind: for datasets none that can be made."""
        before = os.environ["KAE_CACHE"]
        os.environ["KAE_CACHE"] = str(self.caches.get(kind, before))
        try:
            yield
        finally:
            os.environ["KAE_CACHE"] = before

    def finding(self, kind, seed):
        """What is wrong in the case of a seed, a traceback; None for nothing."""
        draw = random.Random(f"{kind} {seed}")
        files = {} if kind == "command" else draw.choice(self.bases[kind])
        for _ in range(draw.choice([1, 1, 2, 3]) if files else 0):
            files = changed(draw, files)
        return self.finding_in(kind, files, draw)

    def finding_in(self, kind, files, draw):
        """The same of files, of which one is damaged now and then as it is written."""
        files = assembled(files)
        if files and draw.random() < 0.15:
            name = draw.choice(list(files))
            files[name] = damaged(draw, files[name])
        folder = self.entry if kind == "cache" else self.case
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(mode=0o700)
        try:
            for name, content in files.items():
                (folder / name).parent.mkdir(parents=True, exist_ok=True)
                (folder / name).write_bytes(content)
            with self.cache_of(kind):
                getattr(self, f"read_{kind}")(draw)
        except Exception:
            return traceback.format_exc()
        return None

    def read_model(self, draw):
        model = told(checkpoints.load_model, self.case / "model.keras")
        if model is not None:
            labels = [0, 0] if model.num_classes else None
            images = model.decode(np.zeros((2, model.latent_dim), "float32"), labels)
            assert images.shape == (2, *model.image_shape)

    def read_run(self, draw):
        for reader in (checkpoints.read_run, checkpoints.read_history, checkpoints.files_of, checkpoints.read_source,
                       checkpoints.can_resume, resuming.stored_settings, checkpoints.read_epochs):  # fmt: skip
            told(reader, self.case)
        told(checkpoints.strangers, self.case, 2)
        done = told(checkpoints.read_backup, self.case, self.network)
        assert done is None or (done.epochs >= 0 and done.batches >= 0)
        case = str(self.case)
        if draw.random() < 0.2:
            run(draw.choice([["info", case], ["info", case, "--json"], ["compare", case, "vae", "--all"],
                             ["reconstruct", case, "--data-dir", "file/x"]]))  # fmt: skip
        elif draw.random() < 0.05:
            with mock.patch.object(
                fitting.Run, "train_epochs", side_effect=UserError("as it goes on")
            ):
                run(["fit", "cvae", "--resume", "--quiet", "--out", case])

    def read_dataset(self, draw):
        name = f"{self.case}/"
        splits = told(data.load_splits, name)
        for split in splits or ():
            images, labels = split.images, split.labels
            assert images.dtype == np.uint8 and images.shape[1:] == splits[0].images.shape[1:]
            if labels is not None:
                assert len(labels) == len(images)
                assert labels.min() >= 0 and labels.max() < len(split.class_names)
        if draw.random() < 0.2:
            told(data.verify, name)
            run(["data", draw.choice(["list", "verify"]), *([name] if draw.random() < 0.5 else [])])

    def read_cache(self, draw):
        loaded = data.load("toy", "train")
        assert np.array_equal(loaded.images, self.images)
        assert loaded.labels is None or loaded.labels.max() < len(loaded.class_names)

    def read_config(self, draw):
        path = next(self.case.iterdir(), self.case / "x.toml")
        run(["fit", "cvae", "--config", str(path), "--resume", "--force"])  # which ends there

    def read_command(self, draw):
        if self.state_of_work() != self.state:
            shutil.rmtree(self.work)
            shutil.copytree(self.before, self.work)
            os.chdir(self.work)
            self.state = self.state_of_work()
        run(command_line(draw))


def command_line(draw):
    """The words of a command, with arguments and options that it has, and values that it may have."""
    words = [draw.choice([*program.COMMANDS, "fit", "sample", "info", "reconstruct", "data", "x"])]
    command, name = program.cli.get_command(None, words[0]), words[0]
    if isinstance(command, click.Group):
        words.append(draw.choice([*command.commands, "x"]))
        command = command.commands.get(words[-1])
    parameters = [] if command is None else command.params
    options = [p for p in parameters if isinstance(p, click.Option)]
    for parameter in parameters:
        if isinstance(parameter, click.Argument) and draw.random() < 0.95:
            for _ in range(draw.randrange(3) if parameter.nargs == -1 else 1):
                words.append(draw.choice(BAD) if name in COSTLY else value_of(draw, parameter))
    if name in ("fit", "sweep"):
        for key, value in {"dataset": "toy", **TINY, "hidden": "2"}.items():
            words += [f"--{key.replace('_', '-')}", str(value)]
    for option in draw.sample(options, min(len(options), draw.choice([0, 1, 2, 3, 4]))):
        words += [draw.choice(option.opts), *([] if option.is_flag else [value_of(draw, option)])]
    return words + (["--data-dir", "file/x"] if name == "sweep" else [])


def value_of(draw, parameter):
    """A word for an argument or an option, most often one of its kind."""
    choices = getattr(parameter.type, "choices", ())
    if parameter.name in SMALL:
        return draw.choice(FEW)
    if choices and draw.random() < 0.8:
        return draw.choice(list(choices))
    if parameter.name == "model" and draw.random() < 0.6:
        return draw.choice(["vae", "cvae", "good.keras"])
    path = isinstance(parameter.type, click.Path) or parameter.name in ("model", "dataset")
    return draw.choice(PATHS if path or draw.random() < 0.2 else NUMBERS)


def limited():
    """Take no more than so much memory from here on."""
    rows = Path("/proc/self/status").read_text().splitlines()
    held = next(int(row.split()[1]) << 10 for row in rows if row.startswith("VmData"))
    resource.setrlimit(resource.RLIMIT_DATA, (held + MEMORY, resource.RLIM_INFINITY))


def say(kind, which, text):
    """Print a finding in a line."""
    lines = [line.strip() for line in text.strip().splitlines()]
    places = [line for line in lines if line.startswith("File ")]
    print(f"FOUND in {kind} {which}: {lines[-1][:300]}; {' '.join(places[-1:])}", flush=True)


def forked(function, *arguments):
    """Call a function in a process of its own. Returns how that ended, 0 for well."""
    process = os.fork()
    if process:
        return os.waitpid(process, 0)[1]
    code = 1
    try:
        function(*arguments)
        code = 0
    finally:
        os._exit(code)


def try_seeds(folder, kind, seeds):
    """The cases of some seeds, with the seed under way and the number of findings in `SHARED`."""
    fuzz = Fuzz(folder)  # here: threads that a process has do not come along when it forks
    limited()
    for seed in seeds:
        signal.alarm(SECONDS)
        _, found = struct.unpack("qq", SHARED[:])
        SHARED[:] = struct.pack("qq", seed, found)
        if text := fuzz.finding(kind, seed):
            SHARED[:] = struct.pack("qq", seed, found + 1)
            say(kind, f"--seed {seed}", text)
            if len(seeds) == 1:
                print(text)


def guide(folder, kind, seconds, corpus):
    """A run of libFuzzer over a reader, with the number of executions and of findings in `SHARED`.

    An input is the files of a case as JSON; they are changed as in other cases, and kept where that reached
    what nothing before had.
    """
    fuzz = Fuzz(folder)
    limited()
    names, seen = {name for files in fuzz.bases[kind] for name in files}, set()

    def unpacked(content):
        with contextlib.suppress(ValueError, AttributeError, RecursionError):
            files = {name: part.encode("latin-1") for name, part in json.loads(content).items()}
            return {name: part for name, part in files.items() if name in names}
        return {}

    def packed(files):
        return json.dumps({name: part.decode("latin-1") for name, part in files.items()}).encode()

    def change(content, size, seed):
        draw, files = random.Random(seed), unpacked(content)
        for _ in range(draw.choice([1, 1, 2])):
            files = changed(draw, files or draw.choice(fuzz.bases[kind]))
        return after if len(after := packed(files)) <= size else content

    def one(content):
        if not (files := unpacked(content)):
            return
        count, found = struct.unpack("qq", SHARED[:])
        text = fuzz.finding_in(kind, files, random.Random(zlib.crc32(content)))
        where = text and "".join(line for line in text.splitlines() if "File " in line)
        if text and where not in seen:
            seen.add(where)
            found += 1
            (corpus.parent / f"{kind}-{found}.json").write_bytes(content)
            say(kind, f"{kind}-{found}.json", text)
        SHARED[:] = struct.pack("qq", count + 1, found)

    for i, files in enumerate(fuzz.bases[kind]):
        (corpus / str(i)).write_bytes(packed(files))
    options = {"max_total_time": seconds, "max_len": 1 << 20, "timeout": SECONDS, "rss_limit_mb": 0,
               "artifact_prefix": f"{corpus.parent}/"}  # fmt: skip
    command = [sys.argv[0], str(corpus), *(f"-{name}={value}" for name, value in options.items())]
    atheris.Setup(command, one, custom_mutator=change)
    atheris.Fuzz()


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--cases", type=int, default=1000, help="in all, or of the kind")
    parser.add_argument("--kind", choices=SHARES)
    parser.add_argument("--seed", type=int, default=0, help="of the first case")
    parser.add_argument("--guided", type=int, metavar="SECONDS", help="for the readers of files")
    parser.add_argument("--keep", type=Path, help="the folder for what --guided finds")
    chosen = parser.parse_args()
    kinds = [chosen.kind] if chosen.kind else list(READERS if chosen.guided else SHARES)
    found = 0
    with tempfile.TemporaryDirectory() as folder:

        def new():
            return Path(tempfile.mkdtemp(dir=folder))

        for kind in kinds:
            SHARED[:] = struct.pack("qq", start := chosen.seed, 0)
            began, crashes = time.monotonic(), 0
            if chosen.guided:
                SHARED[:] = bytes(16)
                corpus = (chosen.keep or Path(folder)).absolute() / f"corpus-{kind}"
                corpus.mkdir(parents=True, exist_ok=True)
                crashes = forked(guide, new(), kind, chosen.guided // len(kinds), corpus) != 0
                done = struct.unpack("qq", SHARED[:])[0]
            else:
                done = chosen.cases if chosen.kind else chosen.cases * SHARES[kind] // 100
                stop = start + done
                while start < stop:
                    if not (status := forked(try_seeds, new(), kind, range(start, stop))):
                        break
                    start = struct.unpack("qq", SHARED[:])[0] + 1
                    crashes += 1
                    say(kind, f"--seed {start - 1}", f"its process ended by {status}")
            findings = struct.unpack("qq", SHARED[:])[1] + crashes
            found += findings
            facts = {"kind": kind, "cases": done, "findings": findings}
            print(json.dumps({**facts, "seconds": round(time.monotonic() - began)}), flush=True)
    return found > 0


if __name__ == "__main__":
    sys.exit(main())
