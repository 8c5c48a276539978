"""Rebuild the safety model organism from one seed; its files are written only if every behaviour bar holds.

safe-sail train-organism --out safe_sail/organism/assets
safe-sail train-organism --compare 1 --compare 2      # also trains these seeds, for their figures alone
safe-sail train-organism --variant helpful            # this variant alone, from the start that stands in the folder
safe-sail train-organism --size large --device cuda --out large     # base, aligned and backdoored at 8 M parameters
"""

import sys
import time
from pathlib import Path
from typing import Annotated, Literal

import torch
import typer

from safe_sail.errors import BadSettings
from safe_sail.organism.family import family_record, train_family
from safe_sail.organism.load import ASSETS
from safe_sail.organism.rebuild import rebuild_organism, renew_parts
from safe_sail.organism.recipes import CHAIN, LARGE, LARGE_CHAIN, RECIPES, OrganismShape
from scripts.options import Device, Seed

SHIPPED_SEED = 0
REPORT_STEPS = 50


def train_organism(
    seed: Seed = SHIPPED_SEED,
    out: Annotated[Path, typer.Option(help="Folder of the organism; replaced as a whole.")] = ASSETS,
    compare: Annotated[list[int] | None, typer.Option(help="Another seed whose figures the record shows too.")] = None,
    replant: Annotated[list[int] | None, typer.Option(help="A seed of other planted units to show figures of.")] = None,
    variant: Annotated[list[str] | None, typer.Option(help="Make this variant alone anew; the rest stays.")] = None,
    saes: Annotated[list[str] | None, typer.Option(help="Make this variant's SAEs alone anew.")] = None,
    size: Annotated[
        Literal["shipped", "large"], typer.Option(help="large: the chain of variants at 8 M parameters, without SAEs.")
    ] = "shipped",
    device: Device = "cpu",
    threads: Annotated[int, typer.Option(min=1, help="CPU threads; the shipped files were made with one.")] = 1,
) -> None:
    """Rebuild the model organism and check its behaviour before anything is written."""
    if size == "large" and (variant or saes or replant or out == ASSETS):
        raise BadSettings(
            "--size large makes a folder of its own: give it with --out, and neither --variant, --saes nor --replant."
        )
    torch.set_num_threads(threads)
    begin = time.monotonic()

    def report(name: str, step: int, loss: float) -> None:
        if step % REPORT_STEPS == 0:
            print(f"{time.monotonic() - begin:6.0f} s  {name}  step {step}  loss {loss:.3f}", file=sys.stderr)

    replanted = replant or ()
    if variant or saes:
        record = renew_parts(
            out, seed=seed, variants=variant or (), sae_variants=saes or (), replant=replanted, device=device,
            progress=report,
        )  # fmt: skip
    else:
        shape, chain = (LARGE, LARGE_CHAIN) if size == "large" else (OrganismShape(), CHAIN)
        others = [
            family_record(train_family(other, shape=shape, recipes=chain, device=device, progress=report))
            for other in compare or ()
        ]
        record = rebuild_organism(
            out, seed=seed, shape=shape, recipes=chain if size == "large" else RECIPES, with_saes=size == "shipped",
            other_records=others, replant=replanted, device=device, progress=report,
        )  # fmt: skip

    for name, each in record["variants"].items():
        for figure, rate in each["held_out"]["rates"].items():
            print(f"{name:16} {figure:22} {rate['share']:.3f}  [{rate['low']:.3f}, {rate['high']:.3f}]  n={rate['n']}")
        if "recovery" in each:
            found = each["recovery"]
            print(f"{name:16} {found['n_found']} of {found['n_planted']} planted neurons change most")
    for slug, sae in record["saes"].items():
        print(
            f"{slug}  L0 {sae['l0']:.1f}  explained variance {sae['explained_variance']:.3f}  "
            f"CE recovered {sae['ce_recovered']:.3f}  "
            f"dead {sae['dead_share']:.2f}  concept F1 {sae['concept_f1_mean']:.3f}"
        )
    print(f"organism of seed {seed} in {out}, {record['seconds']:.0f} s")
