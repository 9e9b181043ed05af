"""One training step and one inference batch: our network against timm's and transformers', on the same pictures.

Each network has random weights of the same shape, plain AdamW (fused, as each library's trainer uses it on this
device), cross-entropy, and no dropout. Contenders take turns within one process, so that a busy machine slows all of
them alike; the figure is the median of the ratios. The rate of the arithmetic (operations of timm's network, counted by
torch) is held against the machine's matrix products, which take their turns too. Ours takes part as recipes train it by
default, with all activations kept, and with blocks recomputed. Memory is that of a process of its own: what its tensors
take at most in a step, as torch's profiler sees them come and go, and the resident peak above what the process holds
after its imports, which has the allocator's holes in it; ratios are to the full step of the peer that takes least.

On a machine that others use, --clock cpu with one thread (OMP_NUM_THREADS=1) counts the processor's time instead of the
wall's.

Run: python benchmarks/step.py [--case small:224:16 ...] [--mode full|last_n|linear_probe|lora] [--output step.json]
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from allocation import most_allocated
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from vit_finetune import create_model
from vit_finetune.common.files import write_json
from vit_finetune.config.training import TrainConfig
from vit_finetune.tuning import add_lora, apply_tuning

NAMES = {
    "tiny": "vit_tiny_patch16_224",
    "small": "vit_small_patch14_dinov2",
    "base": "vit_base_patch16_224",
}
SHAPES = {"tiny": (192, 12, 3, 16), "small": (384, 12, 6, 14), "base": (768, 12, 12, 16)}
MODES = {"full": {}, "linear_probe": {}, "last_n": {"num_blocks": 3}, "lora": {}}
NUM_CLASSES = 10
WORKER = "--worker"


class Case(NamedTuple):
    """A network at a picture size, with a batch."""

    size: str
    img_size: int
    batch: int
    mode: str = "full"
    precision: str = "fp32"

    def images(self) -> Tensor:
        """Return pixels [B, 3, H, W]."""
        return torch.randn(self.batch, 3, self.img_size, self.img_size)


def ours(case: Case, *, grad_checkpointing: Any = TrainConfig.model_fields["grad_checkpointing"].default) -> nn.Module:
    """Build ours, recomputing what recipes let it."""
    model = create_model(NAMES[case.size], img_size=case.img_size, num_classes=NUM_CLASSES)
    if case.mode == "lora":
        add_lora(model)
    apply_tuning(model, case.mode, **MODES[case.mode])
    model.set_grad_checkpointing(grad_checkpointing)
    return model


def timms(case: Case) -> nn.Module:
    """Build timm's, with the same parameters training (names are equal); peft puts its adapters in."""
    import timm

    model: nn.Module = timm.create_model(NAMES[case.size], img_size=case.img_size, num_classes=NUM_CLASSES)
    if case.mode == "lora":
        from peft import LoraConfig, inject_adapter_in_model

        layers = [name for name, layer in model.named_modules() if isinstance(layer, nn.Linear) and "blocks" in name]
        inject_adapter_in_model(LoraConfig(r=16, lora_alpha=16, target_modules=layers), model)
    trained = {name for name, parameter in ours(case).named_parameters() if parameter.requires_grad}
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name in trained)
    return model


def transformers_own(case: Case) -> nn.Module:
    """Build transformers', in full training only: other modes would need other names."""
    from transformers import Dinov2Config, Dinov2ForImageClassification, ViTConfig, ViTForImageClassification

    width, depth, heads, patch = SHAPES[case.size]
    shape: dict[str, Any] = {
        "hidden_size": width,
        "num_hidden_layers": depth,
        "num_attention_heads": heads,
        "image_size": case.img_size,
        "patch_size": patch,
        "num_labels": NUM_CLASSES,
    }
    if case.size == "small":
        return Dinov2ForImageClassification(Dinov2Config(**shape))
    return ViTForImageClassification(ViTConfig(intermediate_size=4 * width, **shape))


PEERS: Mapping[str, Callable[[Case], nn.Module]] = {"timm": timms, "transformers": transformers_own}
BUILDERS: Mapping[str, Callable[[Case], nn.Module]] = {
    "ours": ours,
    "ours, all kept": partial(ours, grad_checkpointing=False),
    "ours, blocks": partial(ours, grad_checkpointing="blocks"),
    **PEERS,
}


class Contender:
    """A network with its optimizer and a batch.

    Args:
        library: key of BUILDERS.
        case: what is computed.
    """

    def __init__(self, library: str, case: Case) -> None:
        torch.manual_seed(0)
        self.model, self.case = BUILDERS[library](case), case
        trained = [parameter for parameter in self.model.parameters() if parameter.requires_grad]
        self.optimizer = torch.optim.AdamW(trained, lr=1e-5, fused=True)
        self.images, self.labels = case.images(), torch.randint(NUM_CLASSES, (case.batch,))

    def _cast(self) -> AbstractContextManager[Any]:
        return torch.autocast("cpu", torch.bfloat16) if self.case.precision == "bf16" else nullcontext()

    def _logits(self) -> Tensor:
        out = self.model(self.images)
        return out if isinstance(out, Tensor) else out.logits

    def backward(self) -> None:
        """Go forward and backward."""
        self.model.train()
        with self._cast():
            loss = nn.functional.cross_entropy(self._logits().float(), self.labels)
        loss.backward()

    def step(self) -> None:
        """Do one training step."""
        self.backward()
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)

    @torch.inference_mode()
    def infer(self) -> None:
        """Do one batch without gradients."""
        self.model.eval()
        with self._cast():
            self._logits()


def flops(work: Callable[[], None]) -> int:
    """Return the floating-point operations of matrix products in some work."""
    with FlopCounterMode(display=False) as counter:
        work()
    return counter.get_total_flops()


def seconds_of(work: Callable[[], None], clock: Callable[[], float]) -> float:
    """Return the seconds of some work."""
    started = clock()
    work()
    return clock() - started


def products(case: Case) -> tuple[Callable[[], None], int]:
    """Return matrix products as those of the network's MLPs, and how many operations they are."""
    width, _, _, patch = SHAPES[case.size]
    tokens = case.batch * ((case.img_size // patch) ** 2 + 1)
    dtype = torch.bfloat16 if case.precision == "bf16" else torch.float32
    a, b = torch.randn(tokens, width, dtype=dtype), torch.randn(width, 4 * width, dtype=dtype)
    out = a @ b
    repeats = max(1, int(2e9 // (8 * tokens * width * width)))

    def work() -> None:
        for _ in range(repeats):
            torch.mm(a, b, out=out)

    return work, repeats * 8 * tokens * width * width


def libraries_of(case: Case, wanted: Collection[str]) -> list[str]:
    """Return who takes part of those that are wanted; timm does, being what others are held against."""
    able = [library for library in BUILDERS if case.mode == "full" or library != "transformers"]
    return [library for library in able if library in wanted or library == "timm"]


def measure(case: Case, wanted: Collection[str], rounds: int, clock: Callable[[], float]) -> dict[str, Any]:
    """Time contenders in turns, beginning with another one in each round, and their memory apart."""
    contenders = {library: Contender(library, case) for library in libraries_of(case, wanted)}
    work, count = products(case)
    turns: dict[str, Callable[[], None]] = {f"{name} step": one.step for name, one in contenders.items()}
    turns |= {f"{name} inference": one.infer for name, one in contenders.items() if "," not in name}
    turns["products"] = work
    for turn in turns.values():
        turn()
    times: dict[str, list[float]] = {name: [] for name in turns}
    names = list(turns)
    for first in range(rounds):
        for place in range(len(names)):
            name = names[(first + place) % len(names)]
            times[name].append(seconds_of(turns[name], clock))
    median = {name: statistics.median(values) for name, values in times.items()}
    peak = count / median["products"]
    operations = {"step": flops(contenders["timm"].backward), "inference": flops(contenders["timm"].infer)}
    rows: dict[str, dict[str, float]] = {}
    for name, seconds in median.items():
        library, _, kind = name.rpartition(" ")
        if library:
            rate = operations[kind] / seconds
            rows[name] = {
                "seconds": seconds,
                "images_per_second": case.batch / seconds,
                "gflops": rate / 1e9,
                "of_peak": rate / peak,
                "speed_over_timm": statistics.median(
                    theirs / mine for theirs, mine in zip(times[f"timm {kind}"], times[name], strict=True)
                ),
            }
    for library, found in peaks(case, list(contenders)).items():
        rows[f"{library} step"] |= found
    return {"case": case._asdict(), "peak_gflops": peak / 1e9, "rows": rows}


def peaks(case: Case, libraries: Sequence[str]) -> dict[str, dict[str, float]]:
    """Return what each takes for a step, in MB and as a share of the leanest peer's full step."""
    found = {library: memory(library, case) for library in libraries}
    whole = found if case.mode == "full" else {}
    full = [whole[peer] if peer in whole else memory(peer, case._replace(mode="full")) for peer in PEERS]
    rows: dict[str, dict[str, float]] = {library: {} for library in libraries}
    for kind in ("tensors", "resident"):
        for library, taken in found.items():
            share = taken[kind] / min(other[kind] for other in full)
            rows[library] |= {f"{kind}_mb": taken[kind] / 2**20, f"{kind}_of_full": share}
    return rows


def memory(library: str, case: Case) -> dict[str, int]:
    """Return the peaks of a process that trains three steps, in bytes: of its tensors, and resident beyond imports."""
    command = [sys.executable, __file__, WORKER, library, json.dumps(case)]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    tensors, resident = map(int, done.stdout.split()[-2:])
    return {"tensors": tensors, "resident": resident}


def high_water() -> int:
    """Return the most memory that this process has held, in bytes; getrusage would count the parent's, too."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
    return int(line.split()[1]) * 1024


def tensors_at_most(contender: Contender) -> int:
    """Return the most bytes that tensors take during a step: weights, optimizer states, and what comes and goes."""
    states = [value for state in contender.optimizer.state.values() for value in state.values()]
    held = sum(tensor.nbytes for tensor in (*contender.model.parameters(), *states))
    return most_allocated(contender.step, held=held)


def work_alone(library: str, case: Case) -> None:
    """Print those peaks: what `memory` starts. A first step of a tiny network loads what is loaded on first use."""
    Contender(library, Case("tiny", 32, 1, case.mode, case.precision)).step()
    before = high_water()
    contender = Contender(library, case)
    for _ in range(3):
        contender.step()
    resident = high_water() - before
    print(tensors_at_most(contender), resident)


def told(result: Mapping[str, Any]) -> list[str]:
    """Return a case as lines of a table."""
    case = Case(**result["case"])
    lines = [
        f"{case.size} at {case.img_size} px, batch {case.batch}, {case.mode}, {case.precision}; matrix products "
        f"{result['peak_gflops']:.0f} GFLOP/s"
    ]
    for name, row in result["rows"].items():
        memory_told = "".join(
            f"  {kind} {row[f'{kind}_mb']:.0f} MB ({row[f'{kind}_of_full']:.2f})"
            for kind in ("tensors", "resident")
            if f"{kind}_mb" in row
        )
        lines.append(
            f"  {name:<24} {row['images_per_second']:8.1f} images/s  {row['gflops']:6.0f} GFLOP/s "
            f"({row['of_peak']:4.0%})  {row['speed_over_timm']:.2f} x timm{memory_told}"
        )
    return lines


def case_of(text: str, *, mode: str, precision: str) -> Case:
    """Read SIZE:PIXELS:BATCH."""
    size, pixels, batch = text.split(":")
    if size not in SHAPES:
        raise SystemExit(f"{size} is not one of {', '.join(SHAPES)}")
    return Case(size, int(pixels), int(batch), mode, precision)


def main() -> None:
    """Measure every case, print it, write all figures."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--case", nargs="+", metavar="SIZE:PIXELS:BATCH")
    parser.add_argument("--mode", choices=list(MODES), default="full")
    parser.add_argument("--precision", choices=("fp32", "bf16"), default="fp32")
    parser.add_argument("--library", nargs="+", choices=list(BUILDERS), default=list(BUILDERS))
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--clock", choices=("wall", "cpu"), default="wall")
    parser.add_argument("--output", type=Path, default=Path("step.json"))
    arguments = parser.parse_args()
    given = arguments.case or ["tiny:224:16", "small:98:32", "small:224:16", "base:224:4"]
    read = partial(case_of, mode=arguments.mode, precision=arguments.precision)
    clock = time.process_time if arguments.clock == "cpu" else time.perf_counter
    results = []
    for case in map(read, given):
        results.append(measure(case, arguments.library, arguments.rounds, clock))
        print("\n".join(told(results[-1])), flush=True)
    setting = {"threads": torch.get_num_threads(), "torch": torch.__version__, "clock": arguments.clock}
    write_json(arguments.output, {**setting, "cases": results})


if __name__ == "__main__":
    if sys.argv[1:2] == [WORKER]:
        work_alone(sys.argv[2], Case(*json.loads(sys.argv[3])))
    else:
        main()
