"""The recipe of ``mini``: captions say what is true, and a few steps go through to a backbone that loads."""

from __future__ import annotations

import io
import socket
import tarfile
from dataclasses import replace
from importlib import resources
from pathlib import Path

import numpy as np
import open_clip
import pytest
import torch
from PIL import Image
from torch.nn.functional import normalize

from recipes.pretrain_mini.batches import Batches, Material, main_colours, pair_caption
from recipes.pretrain_mini.captions import Subject, Words, read_subjects, take_apart
from recipes.pretrain_mini.card import blanks_said, write_card
from recipes.pretrain_mini.changes import COLOURS, KINDS, apply_changes, crop_and_flip, draw_changes
from recipes.pretrain_mini.data import read_photos
from recipes.pretrain_mini.evaluate import encode_prompts
from recipes.pretrain_mini.export import export, raw_norms, settle_norms
from recipes.pretrain_mini.glyphs import caption_glyph
from recipes.pretrain_mini.labels import LabelHead, frequent_labels
from recipes.pretrain_mini.leaks import difference_hash, find_pairs
from recipes.pretrain_mini.losses import contrastive_loss, true_pairs
from recipes.pretrain_mini.model import model_config
from recipes.pretrain_mini.peers import Peers
from recipes.pretrain_mini.train import Run, Settings, draw_blanks, draw_captioned, rate_at, train
from recipes.pretrain_mini.vocabulary import cut_vocabulary, words_of
from softcpt.clip.backbone import load_backbone
from softcpt.clip.bpe import BpeTokenizer, read_vocabulary
from softcpt.clip.open_clip import default_vocabulary

CAPTIONS = (
    "a small photo of a ladybug, a type of beetle.|a ladybug.",
    "an aerial photo of a river.|aerial image: river.",
    "two dogs run on grass.|dogs are running.",
)
PROMPTS = ["a photo of a ladybug.", "a river"]


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twelve pictures of noise with captions, in two shards."""
    folder = tmp_path_factory.mktemp("corpus")
    rng = np.random.default_rng(0)
    rows = ["file\tshard\tsource\tcaptions"]
    for shard in range(2):
        with tarfile.open(folder / f"shard-{shard:03}.tar.gz", "w:gz") as archive:
            for k in range(6):
                file = io.BytesIO()
                pixels = rng.integers(0, 256, (64, 64, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(file, "webp", lossless=True)
                member = tarfile.TarInfo(f"{6 * shard + k:06}.webp")
                member.size = len(file.getvalue())
                archive.addfile(member, io.BytesIO(file.getvalue()))
                source = ("tin", "rsicd", "f8kb")[k % 3]
                rows.append(f"{member.name}\tshard-{shard:03}.tar.gz\t{source}\t{CAPTIONS[k % 3]}")
    (folder / "captions.tsv").write_text("\n".join(rows) + "\n", "utf-8")
    return folder


@pytest.fixture(scope="module")
def material(corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Material:
    photos = read_photos(corpus, tmp_path_factory.mktemp("cache"))
    return Material(photos, read_subjects(photos))


def test_pictures_of_evaluation_suites_are_never_trained_on(material: Material) -> None:
    kept = replace(material, photos=material.photos._replace(usable=np.array([0, 3, 4])))
    batches = Batches(kept, size=32, seed=0)
    drawn = {int(i) for step in range(5) for i in batches._photo_indices(step, 20)}
    assert drawn == {0, 3, 4}


def small_run(**settings: object) -> Run:
    merges = cut_vocabulary(words_of("|".join(CAPTIONS).split("|")))
    config = model_config(512 + len(merges) + 2, width=8, layers=(1, 1, 1, 1), text_width=64, text_layers=2)
    labels = {"ladybug": 1.0, "river": 2.0, "word dogs": 0.5}
    return Run(Settings(hours=1.0, batch_size=16, **settings), merges, config, labels)  # type: ignore[arg-type]


# -- captions ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("caption", "parts"),
    [
        ("a small photo of a ladybug, a type of beetle.", ("a ladybug", "beetle")),
        ("beetle: ladybug.", ("ladybug", "beetle")),
        ("a beetle photo: ladybug.", ("ladybug", "beetle")),
        ("ladybug (beetle)", ("ladybug", "beetle")),
        ("there is a ladybug in the picture.", ("a ladybug", "")),
        ("aerial image: river.", ("river", "")),
        ("a bridge seen from above.", ("a bridge", "")),
        ("people doing mushing", ("mushing", "")),
    ],
)
def test_templates_are_taken_off_captions(caption: str, parts: tuple[str, str]) -> None:
    assert take_apart(caption) == parts


def test_what_a_corpus_says_of_a_name_anywhere_holds_everywhere(material: Material) -> None:
    beetle, river, dogs = material.subjects[:3]
    assert {"ladybug", "beetle"} <= beetle.facts
    assert beetle.phrases == ("a ladybug",)
    assert river.domain == "aerial"
    assert "two dogs run on grass" in dogs.facts


def test_every_caption_is_true_of_its_own_picture(material: Material) -> None:
    batches = Batches(material, size=64, seed=1)
    for step in range(5):
        batch = batches[step]
        for caption, has in zip(batch.captions, batch.has, strict=True):
            assert caption.needs <= has, caption


def test_changes_are_mentioned_before_or_behind_the_name() -> None:
    subject = Subject(("a dog",), facts=frozenset({"dog"}))
    words = Words(np.random.default_rng(0))
    for kind in KINDS:
        texts = [words.describe(subject, [kind.words]).text for _ in range(20)]
        assert all("a dog" in text for text in texts)
        assert all(any(said in text for said in kind.words.adjectives + kind.words.tails) for text in texts)


def test_pair_in_the_other_order_is_another_fact() -> None:
    dog, cat = (Subject((f"a {name}",), facts=frozenset({name})) for name in ("dog", "cat"))
    words = Words(np.random.default_rng(0))
    one, has_one = pair_caption(dog, cat, words, beside=True)
    other, has_other = pair_caption(cat, dog, words, beside=True)
    assert true_pairs([has_one, has_other], [one.needs, other.needs]).tolist() == [
        [True, False],
        [False, True],
    ]


def test_signs_are_described_truly() -> None:
    words = Words(np.random.default_rng(0))
    facts = frozenset({"letter b", "capital letter", "bold"})
    for _ in range(50):
        caption, has = caption_glyph(facts, "orange", "photo", words)
        assert caption.needs <= has
        assert "b" in caption.text.lower()
        assert "an the" not in caption.text


# -- pixels --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", range(len(KINDS)), ids=lambda k: KINDS[k].words.fact)
def test_every_change_keeps_size_and_range_and_changes_something(kind: int) -> None:
    before = torch.rand(3, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    after = apply_changes(before.clone(), [[kind]] * 3, torch.Generator().manual_seed(1))
    assert after.shape == before.shape
    assert 0 <= float(after.min()) <= float(after.max()) <= 1
    assert float((after - before).abs().mean()) > 0.02


def test_only_listed_pictures_are_changed() -> None:
    before = torch.rand(3, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    after = apply_changes(before.clone(), [[], [0], []], torch.Generator())
    assert [bool((a == b).all()) for a, b in zip(after, before, strict=True)] == [True, False, True]


def test_changes_of_one_group_are_never_made_together() -> None:
    rng = np.random.default_rng(0)
    for _ in range(200):
        groups = [KINDS[k].group for k in draw_changes(3, rng)]
        assert len(groups) == len(set(groups))


def test_crops_stay_inside_the_picture() -> None:
    ramp = torch.linspace(0, 1, 64).expand(50, 3, 64, 64)
    cropped = crop_and_flip(ramp, torch.Generator().manual_seed(0))
    steps = cropped.diff(dim=3)
    assert bool(
        ((steps >= -1e-6).flatten(1).all(1) | (steps <= 1e-6).flatten(1).all(1)).all()
    )  # no mirrored edge


def test_plain_colours_are_named() -> None:
    plain = torch.tensor(list(COLOURS.values())).view(-1, 3, 1, 1).expand(-1, 3, 64, 64)
    assert main_colours(plain) == list(COLOURS)
    assert main_colours(torch.rand(1, 3, 64, 64)) == [""]


# -- loss, schedule, vocabulary ------------------------------------------------------------------------


def test_loss_is_cross_entropy_where_only_own_captions_are_true() -> None:
    images, texts = (normalize(torch.randn(5, 8, generator=torch.Generator().manual_seed(k))) for k in (0, 1))
    expected = sum(
        torch.nn.functional.cross_entropy(logits, torch.arange(5))
        for logits in (7 * images @ texts.T, 7 * texts @ images.T)
    )
    loss = contrastive_loss(images, texts, torch.tensor(7.0), torch.eye(5, dtype=torch.bool))
    torch.testing.assert_close(loss, expected / 2)


def test_pictures_without_a_true_caption_only_compete() -> None:
    images, texts = (normalize(torch.randn(n, 8, generator=torch.Generator().manual_seed(n))) for n in (5, 3))
    is_true = torch.eye(5, 3, dtype=torch.bool)
    loss = contrastive_loss(images, texts, torch.tensor(7.0), is_true)
    logits = 7 * images @ texts.T
    rows = torch.nn.functional.cross_entropy(logits[:3], torch.arange(3))
    columns = torch.nn.functional.cross_entropy(logits.T, torch.arange(3))
    torch.testing.assert_close(loss, (rows + columns) / 2)


def test_labels_are_frequent_facts_and_their_words_rare_ones_count_more() -> None:
    pictures = [["a red fox"]] * 2 + [["red"]] * 3 + [["owl"]] * 95
    labels = frequent_labels(pictures, least=2)
    assert set(labels) == {"a red fox", "word fox", "word red", "red"}
    head = LabelHead(list(labels), list(labels.values()), 8)
    target = head.targets([["a red fox", "unknown"], ["unknown"]])
    share = dict(zip(labels, target[0].tolist(), strict=True))
    assert sum(share.values()) == pytest.approx(1)
    assert share["word fox"] > share["word red"] > share["red"] == 0
    assert not target[1].any()


def test_twins_and_pairs_get_captions_first() -> None:
    hard = [True, False] * 10
    chosen = draw_captioned(hard, 14, torch.Generator().manual_seed(0))
    assert len(set(chosen)) == 14
    assert {i for i in range(20) if hard[i]} <= set(chosen)


def test_hashes_find_the_same_picture_and_tell_others_apart() -> None:
    rng = np.random.default_rng(0)
    one, other = (
        Image.fromarray(rng.integers(0, 256, (8, 8, 3), dtype=np.uint8)).resize((64, 64)) for _ in "ab"
    )
    again = Image.fromarray(np.asarray(one) // 2 + 20)  # darker
    hashes = np.array([difference_hash(image) for image in (one, other)], dtype=np.uint64)
    assert find_pairs(np.array([difference_hash(again)], dtype=np.uint64), hashes) == [(0, 0)]


def test_rate_rises_stays_and_falls_to_zero() -> None:
    settings = Settings(hours=1, rate=1.0, warm_up=0.1, fall=0.5)
    assert [round(rate_at(p, settings), 6) for p in (0, 0.05, 0.1, 0.5, 0.75, 1)] == [0, 0.5, 1, 1, 0.5, 0]


def test_cut_vocabulary_spells_its_words_as_clip_does() -> None:
    words = ["photo", "ladybug", "geländer", "x", "7"]
    cut, whole = BpeTokenizer(cut_vocabulary(words)), read_vocabulary(default_vocabulary())
    assert cut.vocab_size < 600
    for word in ("photo", "ladybug", "x", "7"):
        assert len(cut.encode(word)) == len(whole.encode(word))
    assert cut.encode("geländer")  # from bytes, if need be


def test_blanks_never_make_a_caption_too_long() -> None:
    captions = [[0] * n for n in range(2, 61)] * 4
    blanks = draw_blanks(captions, 1.0, torch.Generator().manual_seed(0))
    assert all(0 <= k <= 16 and k + len(ids) <= 60 for k, ids in zip(blanks, captions, strict=True))
    assert max(blanks) == 16


# -- the whole way -------------------------------------------------------------------------------------


def test_a_stopped_run_goes_on_as_if_it_had_not_stopped(material: Material, tmp_path: Path) -> None:
    batches = Batches(material, size=16, seed=0)
    whole, first = small_run(warm_up=0.0), small_run(warm_up=0.0)
    losses = [whole.train_step(batches[step]) for step in range(3)]
    assert [first.train_step(batches[step]) for step in range(2)] == losses[:2]
    first.save(tmp_path / "last.pt")
    again = Run.load(tmp_path / "last.pt")
    assert again.train_step(batches[2]) == pytest.approx(losses[2], rel=1e-5)


def _one_of_two(rank: int, port: int, rows: torch.Tensor, folder: Path) -> None:
    """A process of the test below: a toy loss of the whole batch, from half of it."""
    torch.set_num_threads(1)
    peers, weight = Peers(rank, 2, port), torch.nn.Parameter(torch.arange(6.0).view(3, 2))
    own = rows[3 * rank : 3 * rank + 3]
    everything = peers.gather(own @ weight)
    everything.square().sum().exp().log().backward()
    peers.sum_gradients([weight])
    sets = peers.gather_sets([{f"row {rank}", "ä"}])
    agreed = peers.agree(float(7 + rank), stop=rank == 1)
    torch.save([everything.detach(), weight.grad, [sorted(s) for s in sets], agreed], folder / f"{rank}.pt")


def test_two_processes_make_the_gradient_of_the_whole_batch(tmp_path: Path) -> None:
    rows = 0.1 * torch.randn(6, 3, generator=torch.Generator().manual_seed(0))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    torch.multiprocessing.spawn(_one_of_two, (port, rows, tmp_path), 2)
    weight = torch.nn.Parameter(torch.arange(6.0).view(3, 2))
    (rows @ weight).square().sum().exp().log().backward()
    for rank in (0, 1):
        made, gradient, sets, agreed = torch.load(tmp_path / f"{rank}.pt", weights_only=True)
        torch.testing.assert_close(made, rows @ weight.detach())
        torch.testing.assert_close(gradient, weight.grad)
        assert sets == [["row 0", "ä"], ["row 1", "ä"]]
        assert agreed == (7.0, True)


def test_a_few_steps_export_a_backbone_that_both_libraries_read(material: Material, tmp_path: Path) -> None:
    run = small_run()
    train(run, Batches(material, size=16, seed=0), tmp_path, save_every_s=60, steps=3, peers=Peers())
    folder = tmp_path / "mini"
    export(Run.load(tmp_path / "last.pt"), folder, PROMPTS, logit_scale=50.0)
    facts = dict(
        n_photos=12,
        n_scenes=0,
        n_fonts=0,
        held_out="none",
        share_changed=30,
        n_seeds=1,
        leaks="none.",
        notes="",
    )
    write_card(folder, run, tmp_path / "log.jsonl", facts, {"general": {"zero-shot": 1.0}})

    ours = load_backbone(folder)
    assert ours.logit_scale == pytest.approx(50, rel=1e-3)
    theirs = open_clip.create_model(f"local-dir:{folder}", precision="fp32").eval()
    tokenize = open_clip.SimpleTokenizer(str(folder / "bpe.txt.gz"), context_length=77)
    pictures = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        torch.testing.assert_close(ours.encode_images(pictures), theirs.encode_image(pictures))
        expected = theirs.encode_text(tokenize(PROMPTS), normalize=True)
    torch.testing.assert_close(encode_prompts(ours, PROMPTS), expected, atol=1e-5, rtol=1e-4)

    card = (folder / "MODEL_CARD.md").read_text("utf-8")
    assert ours.digest in card
    assert "$" not in card
    assert blanks_said(run.settings.blanks) in card
    assert (folder / "WEIGHTS_LICENSE.md").exists()


def test_the_card_of_the_package_says_what_its_recipe_would() -> None:
    packaged = resources.files("softcpt") / "backbones" / "mini" / "MODEL_CARD.md"
    assert blanks_said(0) in packaged.read_text("utf-8")
    assert "25 % of the captions" in blanks_said(0.25)


def test_exported_text_features_have_the_mean_norm_10(tmp_path: Path) -> None:
    run = small_run()
    export(run, tmp_path, PROMPTS)
    factor = 10 / float(raw_norms(run, PROMPTS).mean())
    stored = load_backbone(tmp_path).text.projection
    assert stored is not None
    torch.testing.assert_close(stored, factor * run.model.text_projection.detach(), atol=2e-3, rtol=2e-3)


def test_settled_norms_are_those_of_the_photographs(material: Material) -> None:
    run = small_run()
    seen: list[torch.Tensor] = []
    run.model.visual.bn1.register_forward_pre_hook(lambda _, args: seen.append(args[0].detach()))
    settle_norms(run, material.photos.pixels, batches=2, size=12)
    torch.testing.assert_close(
        run.model.visual.bn1.running_mean, seen[0].mean((0, 2, 3)), atol=1e-4, rtol=1e-4
    )
    assert not run.model.training


def test_size_of_words_changes_no_text_feature(tmp_path: Path) -> None:
    run = small_run()
    export(run, tmp_path / "a", PROMPTS)
    export(run, tmp_path / "b", PROMPTS, word_size=0.05)
    plain, scaled = load_backbone(tmp_path / "a"), load_backbone(tmp_path / "b")
    size = scaled.text.token_embedding.weight.square().mean().sqrt()
    assert float(size) == pytest.approx(0.05, rel=1e-3)
    torch.testing.assert_close(
        encode_prompts(plain, PROMPTS), encode_prompts(scaled, PROMPTS), atol=5e-3, rtol=0
    )
