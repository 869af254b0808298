"""Compares the time of a training epoch with that of hand-written loops, as ratios. Prints tables.

    python benchmarks/training.py --quick
    python benchmarks/training.py

A ratio is the time of this library's `fit` (with progress bar, metrics and annealing) divided by the time of the
baseline: below 1, this library is faster. All contenders of a row run in one process, in turns. Each row is run in
several processes, because the places of the weights in memory favour one contender by up to 3 % throughout a process.
A cell is the median of the ratios of all rounds, with the quartiles. With one thread (the default), times are processor
times, which other programs on the machine disturb less. With more threads, they are clock times.

The baselines have the same networks, losses, initial learning rate and batches, shuffled again in each epoch:

    plain      PyTorch loop as in PyTorch's examples: float32 tensors in memory, Adam, loss.item()
    fused      the loop of a careful engineer: uint8 tensors, Adam(fused=True), no .item()
    stock      Keras `fit` of stock layers, stock step and stock Adam, with add_loss for the KL term
    tutorial   DataLoader over a Dataset that transforms each image (with its own code for torchvision's
               ToTensor, so that torchvision is not needed), otherwise like plain
    pythae     the trainer of pythae (pip install --no-deps pythae pydantic cloudpickle) on the same
               network and loss; AE and VAE only, if it is installed
    scan       raw jax: an epoch is one `lax.scan` over the batches

On torch they run in one process with keras_ae, so they also profit from its malloc setting. On a CPU, XLA
runs convolutions in a loop several times slower, so there `scan` is not a goal for conv.
"""

import argparse
import contextlib
import io
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

LATENTS, RATE = 16, 1e-3


def ours(kind, backbone, batch, images, labels):
    """A function that trains one epoch."""
    import keras
    from kae.console import keep_memory

    import keras_ae
    from keras_ae.callbacks import StartEpoch
    from keras_ae.checkpoints import Progress
    from keras_ae.feed import Feed
    from keras_ae.fitting import steps_per_execution

    conditional = kind == "cvae"
    model = {"ae": keras_ae.AE, "vae": keras_ae.VAE, "cvae": keras_ae.CVAE}[kind](
        latent_dim=LATENTS, backbone=backbone
    )
    model.compile(keras_ae.Adam(RATE), steps_per_execution=steps_per_execution(batch))
    feed = Feed(images, labels if conditional else None, batch, 0)
    source = feed.batches()
    keep_memory()
    callbacks = [StartEpoch(feed, 0, Progress([]), print)] + (
        [keras_ae.KLAnnealing()] if kind != "ae" else []
    )

    def epoch():
        with contextlib.redirect_stdout(io.StringIO()):  # the progress bar is drawn, but not shown
            model.fit(source, shuffle=False, verbose=1, callbacks=callbacks)

    epoch.model, epoch.keras = model, keras
    return epoch


def stock(kind, backbone, batch, images, labels):
    """The same networks, made of Keras' own layers and trained with Keras' own step."""
    import keras
    from keras import layers, ops

    def normalized(x):
        return layers.Activation("silu")(layers.BatchNormalization(momentum=0.9)(x))

    image, label = keras.Input((28, 28, 1)), keras.Input((10,))
    code = keras.Input((LATENTS,))
    extra = [label] if kind == "cvae" else []
    x, z = image, layers.Concatenate()([code, *extra]) if extra else code
    if backbone == "conv":
        for f in (32, 64):
            x = normalized(layers.Conv2D(f, 3, 2, "same", use_bias=False)(x))
        x = layers.Flatten()(x)
        x = layers.Dense(256, "silu")(layers.Concatenate()([x, *extra]) if extra else x)
        z = layers.Dense(3136, use_bias=False)(layers.Dense(256, "silu")(z))
        z = normalized(layers.Reshape((7, 7, 64))(z))
        z = normalized(layers.Conv2DTranspose(32, 4, 2, "same", use_bias=False)(z))
        z = layers.Conv2DTranspose(1, 4, 2, "same", activation="sigmoid")(z)
    else:
        x = layers.Flatten()(x)
        x = layers.Concatenate()([x, *extra]) if extra else x
        for width in (512, 256):
            x, z = layers.Dense(width, "silu")(x), layers.Dense(768 - width, "silu")(z)
        z = layers.Reshape((28, 28, 1))(layers.Dense(784, "sigmoid")(z))
    heads = [layers.Dense(LATENTS)(x) for _ in range(1 if kind == "ae" else 2)]
    encoder, decoder = keras.Model([image, *extra], heads), keras.Model([code, *extra], z)

    class Stock(keras.Model):
        def __init__(self):
            super().__init__()
            self.encoder, self.decoder = encoder, decoder
            self.seeds = keras.random.SeedGenerator(0)

        def call(self, inputs):
            given = list(inputs) if kind == "cvae" else [inputs]
            heads = self.encoder(given)
            if kind == "ae":
                return self.decoder(heads if isinstance(heads, list) else [heads])
            mean, log_var = heads
            kl = 0.5 * ops.sum(ops.square(mean) + ops.exp(log_var) - 1.0 - log_var, axis=-1)
            self.add_loss(ops.mean(kl))
            noise = keras.random.normal(ops.shape(mean), seed=self.seeds)
            return self.decoder([mean + ops.exp(0.5 * log_var) * noise, *given[1:]])

    model = Stock()
    model.compile(
        keras.optimizers.Adam(RATE),
        lambda x, y: ops.sum(ops.abs(ops.subtract(x, y)), axis=(1, 2, 3)),
    )
    x = images.astype("float32") / 255
    inputs = (x, keras.utils.to_categorical(labels, 10)) if kind == "cvae" else x

    def epoch():
        with contextlib.redirect_stdout(io.StringIO()):
            model.fit(inputs, x, batch_size=batch, verbose=1)

    return epoch


def torch_loops(kind, backbone, batch, images, labels):
    """The hand-written loops: {name: a function that trains one epoch}."""
    import torch
    from torch import nn
    from torch.nn import functional

    extra = 10 if kind == "cvae" else 0
    device = "cuda" if torch.cuda.is_available() else "cpu"

    class Network(nn.Module):
        def __init__(self):
            super().__init__()
            conv, silu = backbone == "conv", nn.SiLU
            self.before = nn.Sequential(
                nn.Conv2d(1, 32, 3, 2, 1, bias=False), nn.BatchNorm2d(32), silu(),
                nn.Conv2d(32, 64, 3, 2, 1, bias=False), nn.BatchNorm2d(64), silu(), nn.Flatten(),
            ) if conv else nn.Flatten()  # fmt: skip
            widths = (3136, 256) if conv else (784, 512, 256)
            self.encoder = nn.Sequential()
            for i, (a, b) in enumerate(zip(widths, widths[1:])):
                self.encoder.extend([nn.Linear(a + (0 if i else extra), b), silu()])
            self.heads = nn.ModuleList(nn.Linear(256, LATENTS) for _ in range(1 + (kind != "ae")))
            self.decoder = nn.Sequential(nn.Linear(LATENTS + extra, 256), silu())
            if conv:
                self.decoder.extend([
                    nn.Linear(256, 3136, bias=False), nn.Unflatten(1, (64, 7, 7)),
                    nn.BatchNorm2d(64), silu(), nn.ConvTranspose2d(64, 32, 4, 2, 1, bias=False),
                    nn.BatchNorm2d(32), silu(), nn.ConvTranspose2d(32, 1, 4, 2, 1), nn.Sigmoid(),
                ])  # fmt: skip
            else:
                self.decoder.extend([
                    nn.Linear(256, 512), silu(), nn.Linear(512, 784), nn.Sigmoid(),
                    nn.Unflatten(1, (1, 28, 28)),
                ])  # fmt: skip

        def forward(self, x, label):
            h = self.before(x)
            if extra:
                label = functional.one_hot(label, 10).float()
                h = torch.cat([h, label], 1)
            heads = [head(h2) for h2 in [self.encoder(h)] for head in self.heads]
            z = heads[0]
            if kind != "ae":
                z = z + torch.exp(0.5 * heads[1]) * torch.randn_like(z)
            return self.decoder(torch.cat([z, label], 1) if extra else z), heads

    def loss_of(network, x, label):
        rebuilt, heads = network(x, label)
        loss = (rebuilt - x).abs().sum((1, 2, 3))
        if kind != "ae":
            mean, log_var = heads
            loss = loss + 0.5 * (mean**2 + log_var.exp() - 1 - log_var).sum(1)
        return loss.mean()

    pixels = torch.from_numpy(images.transpose(0, 3, 1, 2).copy())
    classes = torch.from_numpy(labels).long()

    class Transformed(torch.utils.data.Dataset):
        def __len__(self):
            return len(images)

        def __getitem__(self, i):
            image = torch.from_numpy(images[i]).permute(2, 0, 1).contiguous()
            return image.to(torch.float32).div(255), int(labels[i])

    def make(fused, batches, item):
        network = Network().to(device)
        optimizer = torch.optim.Adam(network.parameters(), RATE, fused=fused)

        def epoch():
            total = 0.0
            for x, label in batches():
                optimizer.zero_grad()
                loss = loss_of(network, x.to(device), label.to(device))
                loss.backward()
                optimizer.step()
                total += (loss.item() if item else loss.detach()) * len(x)
            return float(total) / len(images)

        return epoch

    def shuffled(x, labels, scale):
        for rows in torch.randperm(len(x), device=x.device).split(batch):
            yield x[rows].float().div_(255) if scale else x[rows], labels[rows]

    def pythae():
        """A function that trains an epoch with pythae's trainer, without its evaluation and checkpoints;
        None without pythae."""
        try:
            from pythae.data.datasets import BaseDataset
            from pythae.models import VAE, VAEConfig
            from pythae.models.base.base_utils import ModelOutput
            from pythae.models.nn import BaseDecoder, BaseEncoder
            from pythae.trainers import BaseTrainer, BaseTrainerConfig
        except ImportError:
            return None

        class Model(VAE):
            def __init__(self):
                config = VAEConfig(input_dim=(1, 28, 28), latent_dim=LATENTS)
                super().__init__(config, BaseEncoder(), BaseDecoder())
                self.network = Network()

            def forward(self, inputs, **kwargs):
                return ModelOutput(loss=loss_of(self.network, inputs["data"], inputs["labels"]))

        trainer = BaseTrainer(
            Model(),
            BaseDataset(floats, classes),
            training_config=BaseTrainerConfig(
                tempfile.mkdtemp(), batch, learning_rate=RATE, no_cuda=device == "cpu"
            ),
        )
        trainer.set_optimizer()
        trainer._setup_callbacks()
        return lambda: trainer.train_step(1)

    floats = pixels.float() / 255
    loader = torch.utils.data.DataLoader(Transformed(), batch, shuffle=True)
    there = pixels.to(device), classes.to(device)
    loops = {
        "fused": make(True, lambda: shuffled(*there, True), False),
        "plain": make(None, lambda: shuffled(floats, classes, False), True),
        "tutorial": make(None, lambda: loader, True),
    }
    if kind != "cvae" and (epoch := pythae()):
        loops["pythae"] = epoch
    return loops


def jax_scan(kind, backbone, batch, images, labels):
    """Returns a function that trains one epoch in raw jax."""
    import jax
    import jax.numpy as jnp
    import numpy as np

    rng = np.random.default_rng(0)
    extra = 10 if kind == "cvae" else 0

    def weight(*shape):
        limit = (6 / (np.prod(shape[:-1]) + shape[-1])) ** 0.5
        return jnp.asarray(rng.uniform(-limit, limit, shape), "float32")

    def dense(a, b):
        return {"w": weight(a, b), "b": jnp.zeros(b)}

    def norm(n):
        return {"gamma": jnp.ones(n), "beta": jnp.zeros(n)}

    p = {"heads": [dense(256, LATENTS) for _ in range(1 + (kind != "ae"))]}
    if backbone == "conv":
        p |= {"c0": weight(3, 3, 1, 32), "n0": norm(32), "c1": weight(3, 3, 32, 64), "n1": norm(64)}
        p |= {"e": [dense(3136 + extra, 256)], "d": [dense(LATENTS + extra, 256)]}
        p |= {"u": weight(256, 3136), "n2": norm(64), "t0": weight(4, 4, 64, 32), "n3": norm(32)}
        p |= {"t1": weight(4, 4, 32, 1), "tb": jnp.zeros(1)}
    else:
        p |= {"e": [dense(784 + extra, 512), dense(512, 256)]}
        p |= {"d": [dense(LATENTS + extra, 256), dense(256, 512)], "out": dense(512, 784)}
    names = ("NHWC", "HWIO", "NHWC")

    def linear(q, x):
        return x @ q["w"] + q["b"]

    def normalized(q, x, averages, key):
        mean, variance = x.mean((0, 1, 2)), x.var((0, 1, 2))
        averages[key] = jax.tree.map(
            lambda old, new: 0.9 * old + 0.1 * new, averages[key], (mean, variance)
        )
        x = (x - mean) * (jax.lax.rsqrt(variance + 1e-3) * q["gamma"]) + q["beta"]
        return jax.nn.silu(x)

    def loss_of(p, averages, x, label, key):
        averages, h = dict(averages), x
        if backbone == "conv":
            for i in "01":
                h = jax.lax.conv_general_dilated(
                    h, p["c" + i], (2, 2), "SAME", dimension_numbers=names
                )
                h = normalized(p["n" + i], h, averages, "n" + i)
        h = h.reshape(len(x), -1)
        label = [jax.nn.one_hot(label, 10)] if extra else []
        h = jnp.concatenate([h, *label], 1)
        for q in p["e"]:
            h = jax.nn.silu(linear(q, h))
        heads = [linear(q, h) for q in p["heads"]]
        z, kl = heads[0], 0.0
        if kind != "ae":
            mean, log_var = heads
            z = mean + jnp.exp(0.5 * log_var) * jax.random.normal(key, mean.shape)
            kl = 0.5 * (mean**2 + jnp.exp(log_var) - 1 - log_var).sum(1)
        h = jnp.concatenate([z, *label], 1)
        for q in p["d"]:
            h = jax.nn.silu(linear(q, h))
        if backbone == "conv":
            h = normalized(p["n2"], (h @ p["u"]).reshape(-1, 7, 7, 64), averages, "n2")
            h = jax.lax.conv_transpose(h, p["t0"], (2, 2), "SAME", dimension_numbers=names)
            h = normalized(p["n3"], h, averages, "n3")
            h = (
                jax.lax.conv_transpose(h, p["t1"], (2, 2), "SAME", dimension_numbers=names)
                + p["tb"]
            )
        else:
            h = linear(p["out"], h).reshape(x.shape)
        loss = (jnp.abs(jax.nn.sigmoid(h) - x).sum((1, 2, 3)) + kl).mean()
        return loss, averages

    def step(state, rows):
        p, m, v, t, averages, key, x, y = state
        key, now = jax.random.split(key)
        (loss, averages), g = jax.value_and_grad(loss_of, has_aux=True)(
            p, averages, x[rows].astype("float32") / 255, y[rows], now
        )
        t = t + 1
        m = jax.tree.map(lambda m, g: 0.9 * m + 0.1 * g, m, g)
        v = jax.tree.map(lambda v, g: 0.999 * v + 0.001 * g * g, v, g)
        rate = RATE * jnp.sqrt(1 - 0.999**t) / (1 - 0.9**t)
        p = jax.tree.map(lambda p, m, v: p - rate * m / (jnp.sqrt(v) + 1e-7), p, m, v)
        return (p, m, v, t, averages, key, x, y), loss

    @jax.jit
    def scan(state, order):
        return jax.lax.scan(step, state, order)

    zeros = jax.tree.map(jnp.zeros_like, p)
    averages = {
        k: (jnp.zeros(len(q["beta"])),) * 2 for k, q in p.items() if k in ("n0", "n1", "n2", "n3")
    }
    # The images are in the state, so that they are not a constant of the compiled epoch.
    state = (
        p,
        zeros,
        zeros,
        0.0,
        averages,
        jax.random.key(0),
        jnp.asarray(images),
        jnp.asarray(labels),
    )

    def epoch():
        nonlocal state
        order = rng.permutation(len(images))[: len(images) // batch * batch].reshape(-1, batch)
        state, losses = scan(state, order)
        return float(losses.mean())

    return epoch


def profile(epoch):
    """Shares of the time of one epoch on torch: {part: share}. The functions of each part are timed."""
    import torch

    from keras_ae.fast.executions_torch import RunningMeans
    from keras_ae.feed import Feed

    spent, within = {}, [0.0]  # within: per call in progress, the seconds of other parts inside it

    def timed(owner, attribute, name):
        original = getattr(owner, attribute)

        def wrapped(*args, **kwargs):
            start = time.process_time()
            within.append(0.0)
            try:
                return original(*args, **kwargs)
            finally:
                seconds = time.process_time() - start
                spent[name] = spent.get(name, 0.0) + seconds - within.pop()
                within[-1] += seconds

        setattr(owner, attribute, wrapped)
        return owner, attribute, original

    model, callbacks = epoch.model, epoch.keras.callbacks.CallbackList
    undo = [
        timed(model, "outputs_of", "network, forwards"),
        timed(model, "compute_loss", "loss, forwards"),
        timed(torch.autograd, "grad", "backwards"),
        timed(model.optimizer, "apply", "optimizer"),
        timed(Feed, "__getitem__", "data"),
        timed(RunningMeans, "add", "metrics"),
        timed(RunningMeans, "results", "metrics"),
        timed(callbacks, "on_train_batch_begin", "callbacks and progress"),
        timed(callbacks, "_on_train_batch_end", "callbacks and progress"),
    ]
    start = time.process_time()
    epoch()
    total = time.process_time() - start
    for owner, attribute, original in undo:
        setattr(owner, attribute, original)
    spent["rest (Keras' loop)"] = total - sum(spent.values())
    return {name: seconds / total for name, seconds in spent.items()}


def worker(arguments):
    """Measures the rows of one backend, and prints one line of JSON for each."""
    import numpy as np

    from keras_ae import data

    backend, threads = arguments.worker, arguments.threads
    if backend == "torch":
        import torch

        torch.set_num_threads(threads)
    clock = time.process_time if threads == 1 else time.perf_counter
    train, _ = data.load_splits("mnist", progress=lambda line: None)
    for backbone in arguments.backbones:
        for kind in arguments.models:
            for batch in arguments.batches:
                images = arguments.images if backbone == "mlp" else arguments.conv_images
                n = batch * max(1, images // batch)
                row = (
                    kind,
                    backbone,
                    batch,
                    np.array(train.images[:n]),
                    np.array(train.labels[:n]),
                )
                contenders = {"ours": ours(*row), "stock": stock(*row)}
                if backend == "torch":
                    contenders |= torch_loops(*row)
                if backend != "torch":  # raw jax is also compared with tensorflow
                    contenders["scan"] = jax_scan(*row)
                for epoch in contenders.values():
                    epoch()  # compiles and fills caches
                seconds = {name: [] for name in contenders}
                for _ in range(arguments.rounds):
                    for name, epoch in contenders.items():
                        start = clock()
                        epoch()
                        seconds[name].append(clock() - start)
                result = {"backend": backend, "model": kind, "backbone": backbone, "batch": batch}
                result |= {"steps": n // batch, "seconds": seconds}
                if backend == "torch" and batch == arguments.batches[0]:
                    result["profile"] = profile(contenders["ours"])
                print(json.dumps(result), flush=True)


def cell(ours, theirs):
    """Formats the median and the quartiles of the ratios."""
    ratios = sorted(a / b for a, b in zip(ours, theirs))
    low, _, high = statistics.quantiles(ratios, n=4)
    return f"{statistics.median(ratios):.2f} ({low:.2f}-{high:.2f})"


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--quick", action="store_true", help="vae, batch 128, 5120 images, one process"
    )
    parser.add_argument("--backends", nargs="+", default=["torch", "jax", "tensorflow"])
    parser.add_argument("--models", nargs="+", default=["ae", "vae", "cvae"])
    parser.add_argument("--backbones", nargs="+", default=["mlp", "conv"])
    parser.add_argument("--batches", nargs="+", type=int, default=[128, 1024])
    parser.add_argument("--images", type=int, default=20480)
    parser.add_argument("--conv-images", type=int, default=5120, help="of the conv rows")
    parser.add_argument("--rounds", type=int, default=3, help="of each process")
    parser.add_argument("--processes", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.quick:
        arguments.models, arguments.batches = ["vae"], [128]
        arguments.images, arguments.conv_images = 5120, 1280
        arguments.rounds, arguments.processes = 5, 1
    if arguments.worker:
        return worker(arguments)
    rows, command = {}, [sys.executable, str(Path(__file__).resolve())]
    for option in ("models", "backbones", "batches", "images", "conv_images", "rounds", "threads"):
        value = getattr(arguments, option)
        command += [
            f"--{option.replace('_', '-')}",
            *map(str, value if isinstance(value, list) else [value]),
        ]
    limits = {"OMP_NUM_THREADS": arguments.threads, "TF_NUM_INTRAOP_THREADS": arguments.threads}
    limits |= {"TF_NUM_INTEROP_THREADS": arguments.threads, "TF_CPP_MIN_LOG_LEVEL": 3}
    if arguments.threads == 1:
        limits["XLA_FLAGS"] = "--xla_cpu_multi_thread_eigen=false"
    for backend in [b for b in arguments.backends for _ in range(arguments.processes)]:
        environment = (
            os.environ | {k: str(v) for k, v in limits.items()} | {"KERAS_BACKEND": backend}
        )
        done = subprocess.run(
            [*command, "--worker", backend], env=environment, stdout=subprocess.PIPE, text=True
        )
        if done.returncode:
            sys.exit(f"The benchmark on {backend} failed.")
        for line in done.stdout.splitlines():
            if line.startswith("{"):
                row = json.loads(line)
                of = tuple(row[key] for key in ("backend", "model", "backbone", "batch"))
                if of not in rows:
                    rows[of] = row
                    continue
                for contender, seconds in row["seconds"].items():
                    rows[of]["seconds"][contender] += seconds
    print(
        f"{arguments.threads} thread(s), {arguments.processes} x {arguments.rounds} rounds of "
        f"{arguments.images} images ({arguments.conv_images} for conv)\n"
    )
    columns = ("fused", "plain", "stock", "tutorial", "pythae", "scan")
    print("| backend | model | backbone | batch | ms a step | " + " | ".join(columns) + " |")
    print("|---" * (5 + len(columns)) + "|")
    for r in rows.values():
        mine, of = r["seconds"]["ours"], (r["model"], r["backbone"], r["batch"])
        cells = [cell(mine, r["seconds"][c]) if c in r["seconds"] else "" for c in columns]
        first = (r["backend"], *of, f"{statistics.median(mine) / r['steps'] * 1e3:.1f}")
        print("| " + " | ".join(map(str, [*first, *cells])) + " |")
    for r in rows.values():
        if "profile" in r:
            print(f"\nAn epoch of {r['model']}, {r['backbone']}, batch {r['batch']}, on torch:\n")
            print("| part | share |\n|---|---|")
            for part, share in sorted(r["profile"].items(), key=lambda item: -item[1]):
                print(f"| {part} | {share:.1%} |")


if __name__ == "__main__":
    main()
