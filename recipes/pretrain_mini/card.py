"""The model card of an exported folder, filled in by the run itself."""

from __future__ import annotations

import argparse
import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from string import Template
from typing import Any

import numpy as np

from recipes.pretrain_mini.batches import CHANGED
from recipes.pretrain_mini.scenes import held_out_tasks, read_scenes
from recipes.pretrain_mini.train import Run
from softcpt.clip.backbone import load_backbone

_HERE = Path(__file__).parent
CARD = "MODEL_CARD.md"
LICENCE = "WEIGHTS_LICENSE.md"


def write_card(
    folder: Path, run: Run, log: Path, facts: Mapping[str, Any], figures: Mapping[str, Mapping[str, float]]
) -> None:
    """Write card and notice beside exported weights.

    Args:
        folder: as ``export`` wrote it.
        run: what was exported.
        log: the run's ``log.jsonl``.
        facts: ``n_photos``, ``n_scenes``, ``n_fonts``, ``held_out``, ``share_changed``, ``n_seeds``,
            ``leaks``, ``notes``.
        figures: suite -> what was measured -> percent, as ``evaluate`` gives it; may be empty.
    """
    lines = [json.loads(line) for line in log.read_text("utf-8").splitlines()] if log.exists() else []
    vision, text = run.model_cfg["vision_cfg"], run.model_cfg["text_cfg"]
    images = run.step * run.settings.batch_size
    weights = folder / "open_clip_model.safetensors"
    backbone = load_backbone(folder)
    values = {
        **facts,
        "layers": "-".join(map(str, vision["layers"])), "width": vision["width"],
        "text_layers": text["layers"], "text_width": text["width"], "embed_dim": run.model_cfg["embed_dim"],
        "n_merges": len(run.merges), "megabytes": f"{weights.stat().st_size / 1e6:.1f}",
        "n_million": f"{sum(p.numel() for p in run.model.parameters()) / 1e6:.1f}",
        "logit_scale": f"{backbone.logit_scale:.1f}", "digest": backbone.digest,
        "word_size": f"{float(backbone.text.token_embedding.weight.square().mean().sqrt()):.3f}",
        "learned_scale": f"{float(run.model.logit_scale.detach().exp()):.1f}",
        "blanks": blanks_said(run.settings.blanks),
        "share_captioned": round(100 * run.settings.captioned),
        "rate": run.settings.rate, "batch_size": run.settings.batch_size, "steps": run.step,
        "images": f"{images:,}", "epochs": f"{images / max(facts['n_photos'], 1):.1f}",
        "hours": f"{run.seconds / 3600:.1f}",
        "losses": ", ".join(str(line["loss"]) for line in lines[-3:]) or "not logged",
        "figures": figure_table(figures) if figures else "Not measured.",
    }  # fmt: skip
    card = Template((_HERE / "MODEL_CARD.template.md").read_text("utf-8")).substitute(values)
    (folder / CARD).write_text(card, encoding="utf-8")
    shutil.copyfile(_HERE / LICENCE, folder / LICENCE)


def blanks_said(share: float) -> str:
    """What the card says of captions with random vectors before them.

    A run may end with another share than it began with; the notes tell what became of them.
    """
    if share == 0:
        return (
            "No caption has random vectors before it in the last part of the training (what became of them "
            "is told below)."
        )
    return (
        f"{100 * share:.0f} % of the captions have up to 16 random vectors before them, as a learned context "
        "has before it has learned."
    )


def figure_table(figures: Mapping[str, Mapping[str, float]]) -> str:
    """A Markdown table: a row for each suite.

    Example:
        >>> print(figure_table({"general": {"zero-shot": 20.0}}))
        | suite | zero-shot |
        |---|---|
        | general | 20.0 |
    """
    columns = list(next(iter(figures.values())))
    rows = [["suite", *columns], ["---"] * (len(columns) + 1)]
    rows += [[name, *(str(row[column]) for column in columns)] for name, row in figures.items()]
    return "\n".join(f"|{'|'.join(row)}|" if row[0] == "---" else f"| {' | '.join(row)} |" for row in rows)


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path, help="as export wrote it")
    parser.add_argument("run", type=Path, help="folder with last.pt and log.jsonl")
    parser.add_argument("cache", type=Path, help="folder of unpacked pictures and drawn scenes")
    parser.add_argument("--figures", type=Path, help="what evaluate printed")
    parser.add_argument(
        "--leaks", default="not checked.", help="what leaks.py and a look at its pairs showed"
    )
    parser.add_argument("--notes", type=Path, help="text that goes below the figures")
    parser.add_argument("--fonts", type=int, default=0, help="how many fonts there were")
    parser.add_argument("--seeds", type=int, default=3, help="of the figures")
    args = parser.parse_args()
    scenes = read_scenes(args.cache)
    facts = {
        "n_photos": len(np.load(args.cache / "photos.npy", mmap_mode="r")),
        "n_scenes": len(scenes.captions) if scenes else 0,
        "n_fonts": args.fonts,
        "held_out": ", ".join(held_out_tasks()) if scenes else "none",
        "share_changed": round(100 * CHANGED),
        "n_seeds": args.seeds,
        "leaks": args.leaks,
        "notes": args.notes.read_text("utf-8") if args.notes else "",
    }
    figures = json.loads(args.figures.read_text("utf-8")) if args.figures else {}
    write_card(args.folder, Run.load(args.run / "last.pt"), args.run / "log.jsonl", facts, figures)


if __name__ == "__main__":
    main()
