"""The demo's report: what was run, what came out, and how to go on."""

from __future__ import annotations

import os
import platform

from softcpt.app.demo import Demo
from softcpt.engine.runs import versions
from softcpt.report.blocks import Commands, Facts, Page, Section, Text
from softcpt.report.pictures import data_uri
from softcpt.report.results import spread
from softcpt.report.sections import (
    choose_samples,
    confusion_section,
    samples_gallery,
    scores_section,
    shots_words,
    tasks_section,
)

NEXT_STEPS = (
    "softcpt check    my_suite --backbone ViT-B-16/openai --shots 8",
    "softcpt train    my_suite --backbone ViT-B-16/openai --shots 8 --output runs/first",
    "softcpt evaluate runs/first",
)
"""On one's own images, in folders ``my_suite/<task>/<class>/<image>``."""

MEANING = (
    "The pictures are drawn, the backbone is small, and every training is short: the scores show how the "
    "methods work side by side, not what a large CLIP makes of photographs, nor which method is better in "
    "general."
)


def demo_page(demo: Demo, command: str) -> Page:
    """The whole report.

    Args:
        demo: what came out.
        command: the line that was typed.
    """
    results, suite = demo.results, demo.made.suite
    tasks = results.tasks[suite]
    most = demo.plan.shots[-1]
    best = results.best(suite=suite, shots=most)
    rows = results.of(suite=suite, method=best, shots=most)
    first = rows[0]
    return Page(
        title="softcpt demo: one prompt learner for several tasks",
        lead=_lead(demo, best),
        sections=[
            scores_section(results, suite),
            tasks_section(results, suite, most),
            confusion_section(rows, tasks),
            Section(
                "Samples",
                [
                    Text(
                        [
                            f"Test pictures and what {first.label} ({shots_words(first.shots)}, seed "
                            f"{first.seed}) makes of them: of each task one right and one wrong prediction, "
                            "chosen by chance, with the likeliest classes and their probabilities."
                        ]
                    ),
                    samples_gallery(
                        choose_samples(first, tasks), tasks, lambda image: data_uri(demo.made.folder / image)
                    ),
                ],
            ),
            Section("What was run", [Facts(_facts(demo, command)), Text([MEANING])]),
            Section(
                "Now your own images",
                [
                    Text(
                        [
                            "Put them into folders my_suite/<task>/<class>/<image>; ten images of a class "
                            "are enough to begin. Check them, train, and see the scores:"
                        ]
                    ),
                    Commands(NEXT_STEPS),
                    Text(
                        [
                            "ViT-B-16/openai is fetched once, some 600 MB. With --backbone "
                            f"{demo.plan.backbone} nothing is fetched, and less is to be expected."
                        ]
                    ),
                ],
            ),
        ],
    )


def _lead(demo: Demo, best: str) -> str:
    results, suite, most = demo.results, demo.made.suite, demo.plan.shots[-1]
    score = spread(row.score for row in results.of(suite=suite, method=best, shots=most))
    plain = spread(row.score for row in results.of(suite=suite, method="zero-shot", shots=most))
    n_test = sum(task.n_images for task in results.tasks[suite])
    return (
        f"{len(demo.made.classes)} related tasks with {sum(demo.made.classes.values())} classes on "
        f"{demo.made.n_images:,} drawn pictures. With {most} training pictures per class the best of "
        f"{len(results.methods)} methods, {results.methods[best]}, gets {100 * score.mean:.1f} % of {n_test} "
        "test pictures right, averaged over the tasks; the same frozen CLIP with hand-written prompts "
        f"{100 * plain.mean:.1f} %."
    )


def _facts(demo: Demo, command: str) -> list[tuple[str, str]]:
    plan, made, found = demo.plan, demo.made, versions()
    names = demo.results.methods
    rates = ", ".join(f"{names[method]} {rate:g}" for method, rate in plan.rates.items())
    epochs = f"{plan.epochs} epoch{'s' if plan.epochs > 1 else ''}"
    packages = ", ".join(f"{name} {found[name]}" for name in found if name != "platform")
    return [
        ("Command", command),
        ("Time", f"{demo.seconds:.0f} s with {demo.threads} thread{'s' if demo.threads > 1 else ''}"),
        ("Backbone", demo.backbone.description),
        ("Its digest", demo.backbone.digest),
        ("Suite", f"{made.suite}, seed {made.seed}: {', '.join(made.classes)}"),
        ("Its digest", made.digest),
        (
            "Pictures",
            f"{plan.images_per_class} a class, {made.size_px} px; half to train on, 3 in 10 to test",
        ),
        ("Shots", ", ".join(map(str, plan.shots))),
        ("Seeds", ", ".join(map(str, plan.seeds)) + "; each draws its own training pictures"),
        ("Training", f"{epochs} (the methods' own number is 50), {plan.views} views of a picture"),
        ("Rates", f"{rates}; chosen on other pictures"),
        ("Machine", f"{platform.machine()}, {os.cpu_count()} cores, {found['platform']}"),
        ("Versions", packages),
    ]
