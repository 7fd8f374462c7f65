"""What a ViT-B/16 with deep prompts takes: peak memory of one training step of each kind, and of a spectrum.

    python -m analyses.benchmarks.vit_memory --out CSV [--batch-size 8] [--recompute] [--jobs gnm,...] [--device cpu]

Random weights, 224 x 224 pixels, four classes, prompts and cosine classifier trained (95,232 of 86 million parameters), float32.
Every job runs in a process of its own, whose peak resident memory (and, on a GPU, peak allocation) is read at its end:

- *import*: torch and this package; *build*: the network beside them;
- *plain*, *gnm*, *sam*: one step of the optimizer, after one that is not timed, GNM-PT's and VPT's prompts in turn;
- *spectrum*: ``landscape spectrum CKPT --params prompts+head`` of a checkpoint, as the command line runs it: a class of four
  images and all eight, with the operator's proof, certificates in float64 and a density, few steps each.

Every job has to stay below 12 GiB. Steps of training keep one batch's activations; a spectrum keeps graphs of second
derivatives, 0.2 GiB an image, up to the budget of a risk, and works through the other images one at a time. Rows are
appended. Half an hour on a busy core.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import platform
import resource
import subprocess
import sys
import tempfile
import time
from importlib import metadata
from pathlib import Path

import numpy as np
import torch
from torch.nn import functional

from landscape.checkpoint import write_checkpoint
from landscape.data import load_dataset
from landscape.models import build_model
from landscape.optimizers import build_optimizer
from landscape.randomness import numpy_stream, stream

GIB = 1 << 30
LIMIT = 12.0  # GiB, what every job has to stay below
NUM_CLASSES, SIDE = 4, 224
COUNTS = (4, 2, 1, 1)  # training images of each class
STEPS = {"plain": "sgd", "gnm": "gnm", "sam": "sam"}
SPECTRUM = ("--max-steps", "4", "--num-probes", "1", "--num-steps", "2", "--lanes", "0,all")
COLUMNS = (
    "job",
    "model",
    "batch",
    "recompute",
    "seconds",
    "peak_gib",
    "gpu_gib",
    "device",
    "threads",
    "torch",
    "machine",
)


def network(name: str, *, recompute: bool = False) -> torch.nn.Module:
    """Return the network with a cosine classifier, as GNM-PT trains it."""
    task = {"num_classes": NUM_CLASSES, "in_channels": 3, "image_size": SIDE}
    return build_model(name, head="cosine", recompute=recompute, **task)


def take_steps(name: str, optimizer: str, batch_size: int, device: str, *, recompute: bool) -> float:
    """Take two steps, return the seconds of the second."""
    model = network(name, recompute=recompute).to(device).train()
    frozen = {n: p.detach().clone() for n, p in model.named_parameters() if not p.requires_grad and "blocks.0." in n}
    images = torch.randn(batch_size, 3, SIDE, SIDE, generator=stream(0, "vit/images")).to(device)
    labels = (torch.arange(batch_size) % NUM_CLASSES).to(device)
    stepper = build_optimizer(optimizer, model.parameters(), base_options={"lr": 0.01, "momentum": 0.9})
    stepper.start_epoch(1, 70)
    before = model.prompts.detach().clone()
    for _ in range(2):
        start = time.perf_counter()
        loss = stepper.step(lambda: functional.cross_entropy(model(images), labels, reduction="none"), labels)
        assert bool(loss.isfinite())
        seconds = time.perf_counter() - start
    assert all(p.grad is None for p in model.parameters())
    assert all(torch.equal(p, frozen[n]) for n, p in model.named_parameters() if n in frozen)
    assert not torch.equal(model.prompts, before)
    return seconds


def write_problem(folder: Path, name: str) -> Path:
    """Write images and a checkpoint of random weights; return the checkpoint."""
    draws = numpy_stream(0, "vit/pixels")
    labels = np.repeat(np.arange(NUM_CLASSES), COUNTS)
    content = {"labels": labels, "test_labels": np.arange(NUM_CLASSES)}
    for prefix, own in (("", labels), ("test_", np.arange(NUM_CLASSES))):
        content[f"{prefix}images"] = draws.integers(0, 256, (len(own), SIDE, SIDE, 3), dtype=np.uint8)
    np.savez(folder / "images.npz", **content)
    data = load_dataset("arrays", data_dir=folder / "images.npz")
    record = {"model": name, "head": "cosine", "model_options": {}, "loss": "ce", "loss_options": {}}
    record |= {"class_counts": list(data.train_counts), "data": data.recipe, "optimizer": "none"}
    return write_checkpoint(folder / f"{name}.safetensors", network(name).state_dict(), record)


def take_spectrum(name: str, device: str) -> float:
    """Run the command; return its seconds."""
    from landscape.cli.entry import app

    with tempfile.TemporaryDirectory() as folder:
        checkpoint = write_problem(Path(folder), name)
        start = time.perf_counter()
        options = ["--params", "prompts+head", "--device", device, "--out", f"{folder}/spectrum.nc", *SPECTRUM]
        app(["spectrum", str(checkpoint), *options], standalone_mode=False)
        return time.perf_counter() - start


def run_job(job: str, name: str, batch_size: int, device: str, *, recompute: bool) -> dict[str, object]:
    """Do a job in this process and return what it took."""
    seconds = 0.0
    if job == "build":
        network(name).to(device)
    elif job == "spectrum":
        seconds = take_spectrum(name, device)
    elif job in STEPS:
        seconds = take_steps(name, STEPS[job], batch_size, device, recompute=recompute)
    unit = 1 if sys.platform == "darwin" else 1024
    on_gpu = torch.cuda.max_memory_allocated() / GIB if device.startswith("cuda") else float("nan")
    return {
        "seconds": f"{seconds:.1f}",
        "peak_gib": f"{resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / GIB:.2f}",
        "gpu_gib": f"{on_gpu:.2f}",
    }


def main() -> None:
    """Run every job in a process of its own and write the rows."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--jobs", default="import,build,plain,gnm,sam,spectrum")
    parser.add_argument("--models", default="vit-b16-gnm,vit-b16-vpt")
    parser.add_argument("--recompute", action="store_true", help="Compute blocks again instead of keeping them.")
    parser.add_argument("--job", nargs=2, metavar=("JOB", "MODEL"), help="do one job here and print its row")
    given = parser.parse_args()
    if given.job:
        print(json.dumps(run_job(*given.job, given.batch_size, given.device, recompute=given.recompute)))
        return
    is_new = not given.out.exists()
    with open(given.out, "a", newline="") as file:
        table = csv.DictWriter(file, COLUMNS, lineterminator="\n")
        if is_new:
            table.writeheader()
        for name in given.models.split(","):
            for job in given.jobs.split(","):
                command = [sys.executable, "-m", "analyses.benchmarks.vit_memory", "--job", job, name]
                command += ["--batch-size", str(given.batch_size), "--device", given.device]
                command += ["--recompute"] if given.recompute else []
                done = subprocess.run(command, capture_output=True, text=True, check=False)
                assert done.returncode == 0, done.stderr[-2000:]
                row = json.loads(done.stdout.splitlines()[-1])
                row |= {
                    "job": job,
                    "model": name,
                    "batch": given.batch_size if job in STEPS else "",
                    "recompute": given.recompute,
                }
                row |= {"device": given.device, "threads": os.environ.get("OMP_NUM_THREADS", "default")}
                row |= {"torch": metadata.version("torch"), "machine": platform.machine()}
                table.writerow(row)
                file.flush()
                print(row)
                assert float(row["peak_gib"]) < LIMIT, row


if __name__ == "__main__":
    main()
