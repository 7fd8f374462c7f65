"""The per-class protocol and single Hessian products, side by side with the peers in one run.

    python -m analyses.benchmarks.peers --data-dir DIR --checkpoint FILE --out CSV

A ResNet-20 that somebody else trained, real CIFAR-10 test images, ten classes, float32. For each number of images per
class: lambda_min, lambda_max, trace and density of every class by PyHessian (``eigenvalues()``, ``trace()``,
``density(100)``, its removed ``torch.eig`` bridged) and by ``landscape.measure_spectrum``, in turn, with the errors of
both against float64 references; then one product of each library. Peers that are not installed are left out.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import pickle
import platform
import statistics
import time
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from analyses.benchmarks.peer_products import (
    COLUMNS,
    PRODUCTS,
    Batch,
    class_batch,
    compare_products,
    ratio_row,
    row,
    synchronise,
)
from analyses.benchmarks.reference_spectra import ReferenceSpectrum, distance, reference_spectrum
from landscape.loading import load_risk
from landscape.randomness import stream
from landscape.risk import ModelRisk
from landscape.spectrum import SpectrumOptions, measure_spectrum
from landscape.spectrum.bridge import bridged
from landscape.spectrum.pyhessian import trainable_copy

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
QUANTITIES = ("lambda_min", "lambda_max", "trace", "density")
PHASES = ("build", "eigenvalues", "trace", "density")

# ---- the whole protocol -----------------------------------------------------------------------------------------------


def run_pyhessian_protocol(model: nn.Module, batch: Batch, *, is_loader: bool, seed: int) -> tuple[dict, dict, dict]:
    """Return what PyHessian finds for one class, the seconds of each phase, and its products."""
    import pyhessian

    device = batch[1].device
    cuda = device.type == "cuda"
    criterion = nn.CrossEntropyLoss()
    found: dict[str, Any] = {}
    seconds: dict[str, float] = {}
    products: dict[str, int] = {}
    with torch.random.fork_rng(devices=[device] if cuda else []), bridged(torch.float32) as count:
        torch.set_rng_state(stream(seed, "benchmark/pyhessian").get_state())
        synchronise(device)
        start = time.perf_counter()
        data = {"dataloader": [batch]} if is_loader else {"data": batch}
        operator = pyhessian.hessian(model, criterion, cuda=cuda, **data)
        seconds["build"] = time.perf_counter() - start
        calls = {
            "eigenvalues": operator.eigenvalues,
            "trace": operator.trace,
            "density": lambda: operator.density(iter=100, n_v=1),
        }
        for phase, call in calls.items():
            before, start = count[0], time.perf_counter()
            found[phase] = call()
            synchronise(device)
            seconds[phase] = time.perf_counter() - start
            products[phase] = count[0] - before
    for p in model.parameters():
        p.grad = None
    values, weights = (np.array(x, dtype=np.float64) for x in found["density"])
    results = {
        "lambda_min": values.min(),
        "lambda_max": values.max(),
        "power": found["eigenvalues"][0][0],
        "trace": float(np.mean(found["trace"])),
        "values": values,
        "weights": weights,
    }
    return results, seconds, products


def errors_of(found: dict[str, Any], reference: ReferenceSpectrum) -> dict[str, float]:
    """Return relative errors of both ends and the trace, and W1 / range."""
    ends = {name: abs(found[name] / getattr(reference, name) - 1) for name in ("lambda_min", "lambda_max", "trace")}
    return {**ends, "density": distance(found["values"], found["weights"], reference)}


def power_error(found: dict[str, Any], reference: ReferenceSpectrum) -> dict[str, float]:
    """Return the error of a power iteration, which finds the end of larger modulus."""
    ends = reference.lambda_min, reference.lambda_max
    return {"power": abs(found["power"] / max(ends, key=abs) - 1)}


def our_results(dataset: Any, c: int) -> dict[str, Any]:
    lane = dataset.isel(lane=c)
    probes = int(np.isfinite(lane["ritz_value"].values).any(-1).sum())
    return {
        **{name: float(lane[name]) for name in ("lambda_min", "lambda_max", "trace")},
        "values": lane["ritz_value"].values,
        "weights": lane["ritz_weight"].values / probes,
    }


def references(
    risk: ModelRisk, images: int, classes: list[int], *, dtype: str, folder: Path | None
) -> list[ReferenceSpectrum]:
    """Measure the references of some classes, or read those of an earlier run from ``folder``.

    In float64 the function under study is another one where rounding switches a ReLU; with ``float32`` products the
    reference belongs to the operator that both sides multiply with, and only the algorithms differ.
    """
    num_classes = len(risk.class_names)
    found = []
    for c in classes:
        path = folder / f"reference-{dtype}-{images}-{c}.pickle" if folder else None
        if path is not None and path.is_file():
            found.append(pickle.loads(path.read_bytes()))
            continue
        row = torch.eye(num_classes, dtype=torch.float64)[c]
        found.append(reference_spectrum(risk, row, name=f"{images}/{c}", dtype=getattr(torch, dtype)))
        if path is not None:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(pickle.dumps(found[-1]))
        r = found[-1]
        print(f"  reference ({dtype}) {images} images, class {c}: {r.lambda_min:.6g} {r.lambda_max:.6g}, trace {r.trace:.6g} "
              f"(estimate {r.trace_gap:.1f} standard errors away), {r.num_products} products", flush=True)  # fmt: skip
    return found


def compare_protocols(
    risk: ModelRisk,
    images: int,
    options: SpectrumOptions,
    *,
    classes: list[int],
    repeats: int,
    modes: list[str],
    expected: dict[int, ReferenceSpectrum],
) -> list[dict]:
    """Return rows: wall time of the ten-class protocol, and the errors of each quantity, root mean square over the classes
    that have a reference."""
    model = trainable_copy(risk)
    batches = [class_batch(risk, c) for c in classes]
    lanes = [risk.class_names[c] for c in classes]
    measure_spectrum(risk, lanes[:1], options=options)  # the first call pays for imports and allocations
    run_pyhessian_protocol(model, (batches[0][0][:2], batches[0][1][:2]), is_loader=False, seed=0)
    ours_seconds: list[float] = []
    ours_errors: list[dict[str, float]] = []
    num_ours = 0.0
    theirs: dict[str, dict[str, Any]] = {m: {"totals": [], "phases": [], "products": [], "errors": []} for m in modes}
    for repeat in range(repeats):
        synchronise(risk.device)
        start = time.perf_counter()
        dataset = measure_spectrum(risk, lanes, options=options, seed=repeat)
        synchronise(risk.device)
        ours_seconds.append(time.perf_counter() - start)
        num_ours = float(dataset["num_hvps"].sum())
        ours_errors += [errors_of(our_results(dataset, k), expected[c]) for k, c in enumerate(classes) if c in expected]
        print(f"  ours, {images} images: {ours_seconds[-1]:.2f} s, {num_ours:.0f} products", flush=True)
        for mode in modes:
            phases, products = dict.fromkeys(PHASES, 0.0), dict.fromkeys(PHASES[1:], 0)
            for c in range(len(classes)):
                found, seconds, spent = run_pyhessian_protocol(
                    model, batches[c], is_loader=mode == "loader", seed=100 * repeat + c
                )
                if c in expected:
                    theirs[mode]["errors"].append(errors_of(found, expected[c]) | power_error(found, expected[c]))
                phases = {key: phases[key] + seconds[key] for key in phases}
                products = {key: products[key] + spent.get(key, 0) for key in products}
            theirs[mode]["totals"].append(sum(phases.values()))
            theirs[mode]["phases"].append(phases)
            theirs[mode]["products"].append(products)
            print(f"  PyHessian ({mode}): {sum(phases.values()):.2f} s, "
                  f"{ {k: round(v, 2) for k, v in phases.items()} }, products {products}", flush=True)  # fmt: skip
    rows = []
    for mode, kept in theirs.items():
        middle = {key: statistics.median(p[key] for p in kept["phases"]) for key in PHASES}
        note = "PyHessian: " + ", ".join(f"{key} {value:.2f} s" for key, value in middle.items())
        note += f"; products {kept['products'][-1] if mode == 'single' else 'as single'}; ours {num_ours:.0f} products"
        rows.append(ratio_row("protocol seconds", images, f"pyhessian {mode}", kept["totals"], ours_seconds, note))
        for quantity in QUANTITIES:
            rows.append(error_row(images, f"pyhessian {mode}", quantity, kept["errors"], ours_errors, quantity))
        rows.append(error_row(images, f"pyhessian {mode}", "power", kept["errors"], ours_errors, "lambda_max"))
    worst = max(max(r.residuals) / r.range for r in expected.values())
    rows[-1]["note"] += (
        f"; references of classes {sorted(expected)}: residual / range <= {worst:.1e}, trace exact, "
        f"{min(r.num_products for r in expected.values())} products or more"
    )
    return rows


def rms(values: list[float]) -> float:
    return float(np.sqrt(np.mean(np.square(values))))


def error_row(images: int, peer: str, quantity: str, theirs: list[dict], ours: list[dict], ours_quantity: str) -> dict:
    a, b = rms([e[quantity] for e in theirs]), rms([e[ours_quantity] for e in ours])
    worst = f"largest: theirs {max(e[quantity] for e in theirs):.2e}, ours {max(e[ours_quantity] for e in ours):.2e}"
    return row(
        "relative error, rms over classes", images, peer, quantity, a, b, (a / b, np.nan, np.nan), len(theirs), worst
    )


# ---- the run ----------------------------------------------------------------------------------------------------------


def environment(device: torch.device) -> dict[str, str]:
    found = {"python": platform.python_version(), "threads": str(torch.get_num_threads()), "cpus": str(os.cpu_count())}
    found["device"] = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.machine()
    for package in ("landscape-longtail", "torch", *PRODUCTS):
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            found[package] = ""
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-dir", required=True)
    parser.add_argument("--checkpoint", required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--images", type=int, nargs="+", default=[5, 50])
    parser.add_argument("--classes", type=int, nargs="+", default=list(range(10)), help="fewer for a trial")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--product-repeats", type=int, default=15)
    parser.add_argument("--modes", nargs="*", default=["single", "loader"], choices=["single", "loader"])
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--ours", type=json.loads, default={}, help='SpectrumOptions as JSON, {"num_steps": 20}')
    parser.add_argument("--reference-dtype", default="float64", choices=["float32", "float64"], help="of its products")
    parser.add_argument(
        "--reference-classes", type=int, nargs="+", help="those whose errors are measured; default: all"
    )
    parser.add_argument("--references", type=Path, help="folder that keeps the references")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    options = SpectrumOptions(**args.ours)
    rows = []
    for images in args.images:
        risk = load_risk(
            args.checkpoint, model="resnet20", dataset="cifar10", data_dir=args.data_dir, split="test",
            max_per_class=images, mean=MEAN, std=STD, device=args.device,
        )  # fmt: skip
        rows += compare_products(risk, images, repeats=args.product_repeats, classes=args.classes)
        if args.modes:
            chosen = args.reference_classes or args.classes
            found = references(risk, images, chosen, dtype=args.reference_dtype, folder=args.references)
            rows += compare_protocols(
                risk,
                images,
                options,
                classes=args.classes,
                repeats=args.repeats,
                modes=args.modes,
                expected=dict(zip(chosen, found)),
            )
        args.out.parent.mkdir(parents=True, exist_ok=True)
        with open(args.out, "w", newline="") as file:  # after every size: a long run that is cut keeps what it has
            extra = {**environment(risk.device), "options": json.dumps(args.ours), "reference": args.reference_dtype}
            writer = csv.DictWriter(file, [*COLUMNS, *extra])
            writer.writeheader()
            writer.writerows({**line, **extra} for line in rows)
    for line in rows:
        print(*(line[key] for key in COLUMNS), sep=" | ")


if __name__ == "__main__":
    main()
