"""What DDP, ZeRO-1 and FSDP keep in memory and send, on 1 to 4 processes of this machine: a table and a figure.

    python bench/sharding.py [--recipe vit-digits] [--output results/sharding]

Writes <output>.png and <output>.json.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from pathlib import Path

import tyro

from ddp_workbook.analysis.memory import STATE_COPIES, kept_bytes, sent_bytes, step_bytes
from ddp_workbook.analysis.plots_memory import memory_by_ranks
from ddp_workbook.analysis.plots_style import write_png
from ddp_workbook.measurement.step_memory import measure_sharding
from ddp_workbook.recipes import get_recipe
from ddp_workbook.records.files import save_text
from ddp_workbook.specs import MODELS

COUNTS = (1, 2, 3, 4)


@dataclass(frozen=True)
class Options:
    recipe: str = "vit-digits"
    output: Path = Path("results/sharding")


def main(options: Options) -> None:
    """Measure, print a line in bytes for each way of sharding and number of processes, and write both files."""
    config = replace(get_recipe(options.recipe), batch_size=8, device="cpu")
    measured = measure_sharding(config, COUNTS)
    parameters, copies = measured["none", 1][0].parameters, STATE_COPIES[config.optimizer]
    for (shard, ranks), of_ranks in measured.items():
        kept = [one.parameters + one.gradients + one.optimizer for one in of_ranks]
        line = f"{shard:>9} on {ranks}: keeps {min(kept):,} to {max(kept):,}"
        line += f" (predicted {kept_bytes(shard, ranks, parameters, copies).total:,.0f})"
        if ranks > 1:
            collectives, sent = of_ranks[0].traffic.collectives, [one.traffic.sent for one in of_ranks]
            line += f"; sends {sent} (ring {step_bytes(shard, ranks, parameters):,.0f}, "
            line += f"these collectives by Gloo {sent_bytes(collectives, ranks, 'gloo'):,.0f})"
        print(line)
    title = f"{MODELS[config.model].label} with {config.optimizer}"
    write_png(memory_by_ranks(title, measured, parameters, copies), Path(f"{options.output}.png"))
    content = {f"{shard}, {ranks}": [one.model_dump() for one in of] for (shard, ranks), of in measured.items()}
    save_text(json.dumps(content, indent=1) + "\n", Path(f"{options.output}.json"))


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))
