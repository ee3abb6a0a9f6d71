"""The fast text encoder computes what the plain one does, features and gradients, whatever the prompts."""

import gc
import threading
import weakref
from functools import cache

import pytest
import torch
from text_cases import (
    OWNERS,
    SUITES,
    TOWERS,
    build_backbone,
    build_case,
    drawn,
    encode_alone,
    encode_shared,
    full_length,
    logits_of,
    loss_of,
    off,
    run,
    tower,
)
from torch import nn

from softcpt.clip import text_shared
from softcpt.clip.arena import Arena
from softcpt.clip.text_folded import why_not_folded
from softcpt.clip.text_shared import SharedTextEncoder, shared_encoder
from softcpt.clip.tokens import put_context

POSITIONS = ("end", "middle", "front")
FOLDED = [kind for kind in TOWERS if kind != "blocks of another kind"]
EXACT = 1e-11


@pytest.fixture(autouse=True)
def small_pieces(monkeypatch):
    """Arenas of many small slabs, which are filled with NaN in no time."""
    monkeypatch.setattr(Arena, "PIECE", 1 << 12)


@pytest.fixture(params=[True, False], ids=["lists", "windows"])
def encoder(request):
    return SharedTextEncoder(tower(), max_rows=60, compiled=request.param)


@cache
def expected(suite="ragged", position="end", owners="task", n_context=4):
    """The plain encoder's features and gradient, computed once for all tests."""
    return run(encode_alone, tower(), build_case(suite, position, owners, n_context))


def check(encoder, *case):
    """Features and gradient of a case are the plain encoder's."""
    ours = run(encode_shared, encoder, build_case(*case))
    for found, reference in zip(ours, expected(*case), strict=True):
        assert off(found, reference) < EXACT
    return ours


def same(ours, reference):
    return all(torch.equal(a, b) for a, b in zip(ours, reference, strict=True))


@pytest.mark.parametrize("compiled", [True, False], ids=["lists", "windows"])
@pytest.mark.parametrize(
    ("n_context", "max_rows"),
    [(1, 4096), (4, 4096), (4, 24), (16, 60)],
    ids=["1", "4", "4 in many chunks", "16 in some chunks"],
)
@pytest.mark.parametrize("owners", OWNERS)
@pytest.mark.parametrize("position", POSITIONS)
@pytest.mark.parametrize("suite", SUITES)
def test_features_and_gradients_are_the_plain_encoders(
    suite, position, owners, n_context, max_rows, compiled
):
    encoder = SharedTextEncoder(tower(), max_rows=max_rows, compiled=compiled)
    check(encoder, suite, position, owners, n_context)
    encoder.poison()
    if n_context != 1:
        check(encoder, suite, position, owners, n_context)


@pytest.mark.parametrize("compiled", [True, False], ids=["lists", "windows"])
@pytest.mark.parametrize("max_rows", [4096, 20])
@pytest.mark.parametrize("suite", SUITES)
def test_prompts_without_context(suite, max_rows, compiled):
    case = build_case(suite, n_context=0)
    encoder = SharedTextEncoder(tower(), max_rows=max_rows, compiled=compiled)
    reference = encode_alone(tower(), case, case.context)
    for _ in range(2):
        features, gradient = run(encode_shared, encoder, case)
        assert off(features, reference) < EXACT
        assert gradient.shape == case.context.shape
        encoder.poison()


@pytest.mark.parametrize("position", POSITIONS)
def test_all_77_positions_of_the_published_way_change_nothing(encoder, position):
    case = build_case("prefixes", position, "class")
    prompts, text = full_length(case.prompts), tower()
    context = case.context.clone().requires_grad_()
    rows = put_context(text.embed(prompts.ids), prompts.slot, context[case.owner])
    features = text.encode(rows, prompts.end, full_length=True)
    loss_of(features).backward()
    ours, gradient = run(encode_shared, encoder, case._replace(prompts=prompts))
    assert off(ours, features) < EXACT
    assert off(gradient, context.grad) < EXACT


@pytest.mark.parametrize("compiled", [True, False], ids=["lists", "windows"])
@pytest.mark.parametrize("case", [("ragged", "end", "class"), ("many classes", "end", "task"),
                                  ("prefixes", "front", "one")])  # fmt: skip
@pytest.mark.parametrize(("kind", "layers"), [("gelu", 1), ("gelu", 2), *((kind, 3) for kind in FOLDED)])
def test_towers_of_every_kind(kind, layers, case, compiled):
    text, case = tower(kind, layers), build_case(*case)
    features, gradient = run(encode_alone, text, case)
    ours, own_gradient = run(encode_shared, SharedTextEncoder(text, max_rows=150, compiled=compiled), case)
    assert off(ours, features) < EXACT
    assert off(own_gradient, gradient) < EXACT


@pytest.mark.parametrize("compiled", [True, False], ids=["lists", "windows"])
@pytest.mark.parametrize("owners", OWNERS)
@pytest.mark.parametrize("position", POSITIONS)
@pytest.mark.parametrize("suite", ["ragged", "many classes"])
def test_fp32_is_as_exact_as_the_plain_encoders(suite, position, owners, compiled):
    """Held to fp64: within a few roundings, or twice what the plain encoder is off in fp32 itself."""
    case = build_case(suite, position, owners, dtype=torch.float32)
    exact = case._replace(context=case.context.double())
    text, reference = tower(dtype=torch.float32), run(encode_alone, tower(), exact)
    plain = run(encode_alone, text, case)
    ours = run(encode_shared, SharedTextEncoder(text, max_rows=100, compiled=compiled), case)
    assert ours[0].dtype == ours[1].dtype == torch.float32
    logits = [logits_of(found[0].double()) for found in (ours, plain, reference)]
    assert off(logits[0], logits[2]) < max(2e-6, 2 * off(logits[1], logits[2]))
    assert off(ours[1], reference[1]) < max(5e-6, 2 * off(plain[1], reference[1]))


SELECTIONS = {
    "one": [3],
    "backwards": [4, 3, 2, 1, 0],
    "with repeats": [2, 0, 2, 4, 0, 2],
    "of one task": [1, 0],
}


@pytest.mark.parametrize("selected", SELECTIONS.values(), ids=SELECTIONS)
@pytest.mark.parametrize("position", POSITIONS)
def test_selected_prompts(encoder, position, selected):
    case, selected = build_case("ragged", position), torch.tensor(selected)
    features, gradient = run(encode_alone, tower(), case, selected)
    for _ in range(2):
        ours, own_gradient = run(encode_shared, encoder, case, selected)
        assert off(ours, features) < EXACT
        assert off(own_gradient, gradient) < EXACT
        check(encoder, "ragged", position)
        encoder.poison()


def test_no_prompt_selected(encoder):
    case, nothing = build_case(), torch.zeros(0, dtype=torch.long)
    assert encode_shared(encoder, case, case.context, nothing).shape == (0, 24)


def test_plans_of_different_sizes_take_turns(encoder):
    cases = [("many classes",), ("one class", "front"), ("ragged", "middle", "class"), ("one task",)]
    for _ in range(3):
        for case in cases:
            check(encoder, *case)
            encoder.poison()


def test_poison_reaches_what_is_used_again(encoder):
    """Else the tests that poison would show nothing."""
    case = build_case()
    run(encode_shared, encoder, case)
    assert encoder._idle
    encoder.poison()
    room = max(encoder._idle, key=lambda arena: arena.n_bytes).take(4, dtype=torch.float64)
    assert bool(room.isnan().all())


@pytest.mark.parametrize("position", POSITIONS)
@pytest.mark.parametrize("layers", [1, 3])
def test_without_tables_of_constants(monkeypatch, position, layers):
    case = build_case("prefixes", position)
    features, gradient = run(encode_alone, tower(layers=layers), case)
    with_tables, without = (SharedTextEncoder(tower(layers=layers), max_rows=60) for _ in range(2))
    rows = []
    for encoder, room in ((with_tables, text_shared.TABLE_BYTES), (without, 0)):
        monkeypatch.setattr(text_shared, "TABLE_BYTES", room)
        for _ in range(2):
            ours, own_gradient = run(encode_shared, encoder, case)
            assert off(ours, features) < EXACT
            assert off(own_gradient, gradient) < EXACT
            encoder.poison()
        chunks = encoder.plan(case.prompts, case.owner).chunks
        assert {chunk.token_table is not None for chunk in chunks} == {room > 0}
        assert {chunk.constants is not None for chunk in chunks} == {room > 0 and position == "front"}
        rows.append(sum(chunk.n_rows for chunk in chunks))
    assert (rows[0] < rows[1]) is (position == "front")


def test_more_names_before_their_context_than_a_chunk_holds():
    case = ("many classes", "front", "class")
    encoder = SharedTextEncoder(tower(), max_rows=15)
    check(encoder, *case)
    prompts, _, owner = build_case(*case)
    constants = encoder.plan(prompts, owner).chunks[0].constants
    assert constants.qkv.shape[1] == len(constants.last) > 15


def forwards(monkeypatch):
    """Counts the chunks that go forward."""
    calls = []
    true = text_shared.forward

    def counting(*args, **options):
        calls.append(options["save"])
        return true(*args, **options)

    monkeypatch.setattr(text_shared, "forward", counting)
    return calls


@pytest.mark.parametrize("case", [("many classes", "end", "task"), ("prefixes", "front", "class")])
def test_what_was_not_kept_is_computed_again_to_the_same_bits(monkeypatch, case):
    prompts, _, owner = build_case(*case)
    whole = SharedTextEncoder(tower(), max_rows=10)
    chunks = whole.plan(prompts, owner).chunks
    sizes = [text_shared.saved_bytes(whole.folded, chunk) for chunk in chunks]
    assert len(chunks) > 3
    calls = forwards(monkeypatch)
    kept = check(whole, *case)
    assert calls == [True] * len(chunks)
    for room, n_saved in ((0, 0), (sizes[0] + sizes[1], 2)):
        encoder = SharedTextEncoder(tower(), max_rows=10, saved_bytes=room)
        assert len(encoder.plan(prompts, owner).chunks) == len(chunks)
        for _ in range(2):
            calls.clear()
            assert same(check(encoder, *case), kept)
            assert calls.count(False) >= 1
            if room == 0:
                assert calls == [False] * len(chunks) + [True] * len(chunks)
            else:
                assert calls[: n_saved + 1] == [True] * n_saved + [False]
            encoder.poison()


def test_a_call_may_keep_less_than_its_encoder(encoder, monkeypatch):
    case = build_case("many classes")
    kept = check(encoder, "many classes")
    calls = forwards(monkeypatch)
    context = case.context.clone().requires_grad_()
    features = encoder.encode(case.prompts, context, case.owner, saved_bytes=0)
    assert not any(calls)
    loss_of(features).backward()
    assert same((features, context.grad), kept)


def test_steps_of_the_same_sizes_take_no_more_memory():
    encoder = SharedTextEncoder(tower(), max_rows=60)
    cases = [build_case("one class"), build_case("many classes"), build_case("ragged")]
    held = []
    for _ in range(8):
        contexts = [case.context.clone().requires_grad_() for case in cases]
        features = [
            encode_shared(encoder, case, context) for case, context in zip(cases, contexts, strict=True)
        ]
        sum(loss_of(one) for one in features).backward()
        held.append(encoder.n_bytes)
    assert held[0] > 0
    assert held[-1] == held[4]


def test_two_forward_passes_before_a_backward(encoder):
    first, second = build_case("ragged"), build_case("many classes", "front", "class")
    contexts = [case.context.clone().requires_grad_() for case in (first, second)]
    features = [
        encode_shared(encoder, case, context) for case, context in zip((first, second), contexts, strict=True)
    ]
    again = encode_shared(encoder, first, 2 * contexts[0])
    for one in reversed(features):
        loss_of(one).backward()
    assert off(contexts[0].grad, expected("ragged")[1]) < EXACT
    assert off(contexts[1].grad, expected("many classes", "front", "class")[1]) < EXACT
    contexts[0].grad = None
    loss_of(again).backward()
    doubled = first._replace(context=2 * first.context)
    assert off(contexts[0].grad, 2 * run(encode_alone, tower(), doubled)[1]) < EXACT


def test_a_result_used_twice(encoder):
    case = build_case()
    context = case.context.clone().requires_grad_()
    features = encode_shared(encoder, case, context)
    (loss_of(features) + loss_of(3 * features) + features.square().sum()).backward()
    reference = case.context.clone().requires_grad_()
    features = encode_alone(tower(), case, reference)
    (loss_of(features) + loss_of(3 * features) + features.square().sum()).backward()
    assert off(context.grad, reference.grad) < EXACT


def test_a_second_backward(encoder):
    case = build_case()
    context = case.context.clone().requires_grad_()
    loss = loss_of(encode_shared(encoder, case, context))
    (first,) = torch.autograd.grad(loss, context, retain_graph=True)
    check(encoder, "many classes")  # takes and spoils the memory that was given back
    encoder.poison()
    (second,) = torch.autograd.grad(loss, context, retain_graph=True)
    (third,) = torch.autograd.grad(loss, context)
    assert torch.equal(first, second)
    assert torch.equal(first, third)
    assert off(first, expected()[1]) < EXACT
    with pytest.raises(RuntimeError, match="second time"):
        torch.autograd.grad(loss, context)


def test_gradients_of_gradients_are_refused(encoder):
    case = build_case()
    context = case.context.clone().requires_grad_()
    loss = loss_of(encode_shared(encoder, case, context))
    (gradient,) = torch.autograd.grad(loss, context, create_graph=True)
    assert off(gradient, expected()[1]) < EXACT
    with pytest.raises(RuntimeError, match="once_differentiable"):
        gradient.square().sum().backward()


def test_a_result_that_is_dropped_leaves_nothing_behind(encoder, monkeypatch):
    borrowed, case = [], build_case()

    def borrow(n_bytes, true=encoder.borrow):
        arena = true(n_bytes)
        borrowed.append(weakref.ref(arena))
        return arena

    monkeypatch.setattr(encoder, "borrow", borrow)
    context = case.context.clone().requires_grad_()
    features = encode_shared(encoder, case, context)
    encoder.poison()
    assert borrowed[0]() is not None
    del features
    assert borrowed[0]() is None
    check(encoder)


def test_a_context_changed_before_the_backward_is_refused(encoder):
    case = build_case()
    context = case.context.clone().requires_grad_()
    features = encode_shared(encoder, case, context)
    with torch.no_grad():
        context.add_(1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss_of(features).backward()
    check(encoder)


def test_a_context_on_another_device_is_refused(encoder):
    case = build_case()
    with pytest.raises(RuntimeError, match=r"context is on meta, the text tower on cpu"):
        encode_shared(encoder, case, case.context.to("meta"))


def test_a_context_in_another_precision_is_converted(encoder):
    case = build_case(dtype=torch.float32)
    ours, gradient = run(encode_shared, encoder, case)
    exact = run(encode_alone, tower(), case._replace(context=case.context.double()))
    assert off(ours, exact[0]) < EXACT
    assert gradient.dtype == torch.float32
    assert off(gradient, exact[1]) < 1e-6


def test_a_context_that_is_no_leaf_and_not_contiguous(encoder):
    case = build_case("ragged", "end", "class")
    stored = case.context.transpose(0, 2).contiguous().requires_grad_()
    loss_of(encode_shared(encoder, case, stored.transpose(0, 2))).backward()
    assert off(stored.grad.transpose(0, 2), expected("ragged", "end", "class")[1]) < EXACT


def test_gradients_are_differences():
    case = build_case("ragged", "middle")
    encoder = SharedTextEncoder(tower(), max_rows=20)
    _, gradient = run(encode_shared, encoder, case)
    step = 1e-5
    for task, slot in ((0, 3), (1, 0)):
        direction = torch.zeros_like(case.context)
        direction[task, slot] = drawn(64, seed=9)
        ahead, behind = (
            loss_of(encode_shared(encoder, case, case.context + sign * step * direction)) for sign in (1, -1)
        )
        slope = float((ahead - behind) / (2 * step))
        assert slope == pytest.approx(float((gradient * direction).sum()), rel=1e-7)


@pytest.mark.parametrize("compiled", [True, False], ids=["lists", "windows"])
@pytest.mark.parametrize("position", POSITIONS)
@pytest.mark.parametrize("max_rows", [4096, 20])
def test_what_a_loss_does_not_see_gets_a_gradient_of_exactly_zero(position, max_rows, compiled):
    encoder = SharedTextEncoder(tower(), max_rows=max_rows, compiled=compiled)
    for suite, owners in (("ragged", "class"), ("many classes", "task"), ("ragged", "task")):
        case = build_case(suite, position, owners)
        unseen = case.owner == 1
        for _ in range(2):
            context = case.context.clone().requires_grad_()
            features = encode_shared(encoder, case, context)
            (features * drawn(*features.shape) * ~unseen[:, None]).sum().backward()
            assert not context.grad[1].any()
            assert context.grad[0].abs().max() > 0
            encoder.poison()


def test_contexts_that_nobody_takes(encoder):
    case = build_case("ragged", "end", "task")
    more = torch.cat([drawn(2, 4, 64, seed=8), case.context, drawn(1, 4, 64, seed=9)])
    context = more.requires_grad_()
    features = encoder.encode(case.prompts, context, case.owner + 2)
    loss_of(features).backward()
    assert off(features, expected()[0]) < EXACT
    assert off(context.grad[2:4], expected()[1]) < EXACT
    assert not context.grad[[0, 1, 4]].any()


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
@pytest.mark.parametrize("position", POSITIONS)
def test_training_after_evaluation(mode, position):
    """Tables and plans made where no gradients are wanted serve where they are."""
    encoder = SharedTextEncoder(tower(), max_rows=60)
    case = build_case("ragged", position)
    with mode():
        features = encode_shared(encoder, case, case.context)
    assert not features.requires_grad
    assert off(features.clone(), expected("ragged", position)[0]) < EXACT
    check(encoder, "ragged", position)
    with mode():
        assert off(encode_shared(encoder, case, case.context).clone(), features.clone()) == 0


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_an_encoder_made_in_evaluation_serves_training(mode):
    text = build_backbone().text
    case = build_case()
    with mode():
        encoder = shared_encoder(text)
        encode_shared(encoder, case, case.context)
    assert shared_encoder(text) is encoder
    check(encoder)


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_evaluation_keeps_nothing_for_a_backward(encoder, monkeypatch, mode):
    case, calls = build_case("many classes"), forwards(monkeypatch)
    context = case.context.clone().requires_grad_()
    with mode():
        encode_shared(encoder, case, context)
    assert calls
    assert not any(calls)


@pytest.mark.parametrize("saved_bytes", [0, 1 << 30])
def test_threads(saved_bytes):
    encoder = SharedTextEncoder(tower(), max_rows=60, saved_bytes=saved_bytes)
    cases = [("ragged", "end", "task"), ("prefixes", "front", "class")]
    for case in cases:
        expected(*case)
    faults = []
    ready = threading.Barrier(len(cases))

    def work(case):
        try:
            ready.wait(timeout=60)
            for _ in range(8):
                check(encoder, *case)
        except Exception as fault:
            faults.append(fault)

    threads = [threading.Thread(target=work, args=(case,)) for case in cases]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not faults, faults[0]


def check_now(text, **options):
    """The encoder of a tower as it is now computes what the tower does now."""
    encoder, case = shared_encoder(text), build_case(**options)
    for found, reference in zip(
        run(encode_shared, encoder, case), run(encode_alone, text, case), strict=True
    ):
        assert off(found, reference) < (EXACT if text.dtype == torch.float64 else 1e-5)
    assert shared_encoder(text) is encoder
    return encoder


def test_attention_is_compiled_where_that_can_be(monkeypatch):
    case = build_case("ragged", "end", "task", 4)

    def kind(**how):
        plan = SharedTextEncoder(tower(), **how).plan(case.prompts, case.owner)
        return {type(chunk.attention).__name__ for chunk in plan.chunks}

    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    assert kind() == {"Windows"}
    monkeypatch.setattr(torch, "get_num_threads", lambda: 1)
    assert kind() == {"Lists"}
    assert kind(compiled=False) == {"Windows"}
    assert kind(narrow=torch.bfloat16) == {"Windows"}
    with pytest.raises(ValueError, match="bfloat16"):
        kind(narrow=torch.bfloat16, compiled=True)
    monkeypatch.setattr(text_shared, "find_spec", lambda name: None)
    assert kind() == {"Windows"}


def test_an_encoder_belongs_to_one_state_of_the_weights():
    text = build_backbone().text
    first = check_now(text)
    for change in (
        text.transformer.resblocks[1].ln_2.weight,
        text.transformer.resblocks[0].attn.in_proj_bias,
        text.token_embedding.weight,
        text.positional_embedding,
        text.projection,
    ):
        with torch.no_grad():
            change.mul_(1.3)
        second = check_now(text)
        assert second is not first
        first = second
    weights = {name: 0.9 * tensor for name, tensor in text.state_dict().items()}
    text.load_state_dict(weights)
    assert check_now(text) is not first
    text.load_state_dict({name: 1.1 * tensor for name, tensor in weights.items()}, assign=True)
    check_now(text)


def test_an_encoder_belongs_to_one_precision():
    text = build_backbone().text
    exact = check_now(text)
    text.to(torch.float32)
    single = check_now(text, dtype=torch.float32)
    assert single is not exact
    assert single.folded.wide == single.folded.narrow == torch.float32
    text.to(torch.float64)
    assert check_now(text).folded.narrow == torch.float64


def test_a_tower_that_is_gone_takes_its_encoder_along():
    text = build_backbone().text
    case = build_case()
    encoder = shared_encoder(text)
    run(encode_shared, encoder, case)
    kept = weakref.ref(encoder)
    del encoder, text
    gc.collect()
    assert kept() is None


def half(encode, which, case):
    """As training does it: the encoder under autocast, the loss in fp32, the backward outside."""
    context = case.context.clone().requires_grad_()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        features = encode(which, case, context)
    loss_of(features.float()).backward()
    return features.detach(), context.grad


CASES_IN_BF16 = [
    ("ragged", "end", "task"),
    ("ragged", "front", "class"),
    ("prefixes", "middle", "one"),
    ("many classes", "end", "task"),
]


@pytest.mark.parametrize("case", CASES_IN_BF16)
@pytest.mark.parametrize("saved_bytes", [0, 1 << 30])
def test_bf16_under_autocast_is_as_exact_as_the_plain_encoders(case, saved_bytes):
    """Both round products to 8 bits, each at its own places: either is off by about 1 % from fp32.

    Twice the plain encoder's own distance leaves room for the luck of a single largest number; an error of
    the method is far beyond.
    """
    text, case = tower(dtype=torch.float32), build_case(*case, dtype=torch.float32)
    reference = run(encode_alone, text, case)
    plain = half(encode_alone, text, case)
    encoder = SharedTextEncoder(text, torch.bfloat16, max_rows=150, saved_bytes=saved_bytes)
    for _ in range(2):
        ours = half(encode_shared, encoder, case)
        assert ours[0].dtype == torch.float32
        for found, other, exact in zip(ours, plain, reference, strict=True):
            assert 1e-4 < off(found, exact) < max(2 * off(other, exact), 0.01)
            assert off(other, exact) < 0.03
        encoder.poison()


def test_autocast_has_an_encoder_of_its_own():
    text = build_backbone(dtype=torch.float32).text
    single = shared_encoder(text)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        narrow = shared_encoder(text)
        assert narrow.folded.narrow == torch.bfloat16
        assert narrow.folded.wide == torch.float32
        assert shared_encoder(text) is narrow
    assert shared_encoder(text) is single
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert shared_encoder(tower()).folded.narrow == torch.float64


@pytest.mark.parametrize("case", CASES_IN_BF16)
def test_a_tower_in_bf16(case):
    """Held to the same rounded weights in fp32; tolerance as under autocast."""
    text = build_backbone(dtype=torch.bfloat16).text
    case = build_case(*case, dtype=torch.float32)
    ours = run(encode_shared, shared_encoder(text), case)
    exact = run(encode_alone, text.float(), case)
    for found, reference in zip(ours, exact, strict=True):
        assert off(found, reference) < 0.03


def test_other_blocks_go_through_the_plain_encoder_which_is_told_once(caplog):
    text = build_backbone("blocks of another kind").text
    assert shared_encoder(text) is None
    assert shared_encoder(text) is None
    (record,) = caplog.records
    assert record.levelname == "WARNING"
    assert "plain encoder" in record.getMessage()
    assert "block 0: CustomResidualAttentionBlock has parts of its own: ln_attn" in record.getMessage()


class Doubled(nn.Module):
    def forward(self, x):
        return 2 * x


def _other_activation(blocks):
    blocks[1].mlp.gelu = nn.ReLU()


def _other_norm(blocks):
    blocks[2].ln_2 = nn.Identity()


def _norm_without_weights(blocks):
    blocks[0].ln_1 = nn.LayerNorm(64, elementwise_affine=False)


def _other_scale(blocks):
    blocks[0].ls_1 = Doubled()


def _keys_of_its_own(blocks):
    blocks[1].attn = nn.MultiheadAttention(64, 2, add_bias_kv=True)


def _keys_of_another_size(blocks):
    blocks[1].attn = nn.MultiheadAttention(64, 2, kdim=32)


def _a_zero_key(blocks):
    blocks[1].attn = nn.MultiheadAttention(64, 2, add_zero_attn=True)


def _other_attention(blocks):
    blocks[1].attn = nn.Linear(64, 64)


def _deeper_mlp(blocks):
    blocks[0].mlp.append(nn.Linear(64, 64))


def _other_number_of_heads(blocks):
    blocks[1].attn = nn.MultiheadAttention(64, 4)


def _mixed_activations(blocks):
    blocks[2].mlp.gelu = nn.GELU()


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (_other_activation, "block 1: its activation is ReLU"),
        (_other_norm, "block 2: ln_2 is Identity"),
        (_norm_without_weights, "block 0: ln_1 is LayerNorm"),
        (_other_scale, "block 0: ls_1 is Doubled"),
        (_keys_of_its_own, "block 1: its attention has keys of its own"),
        (_a_zero_key, "block 1: its attention has keys of its own"),
        (_keys_of_another_size, "block 1: its attention is MultiheadAttention"),
        (_other_attention, "block 1: its attention is Linear"),
        (_deeper_mlp, "block 0: its MLP has the parts c_fc, gelu, c_proj, 3"),
        (_other_number_of_heads, "its blocks differ in kind"),
        (_mixed_activations, "its blocks differ in kind"),
    ],
)
def test_what_cannot_be_folded_is_named(change, reason):
    text = build_backbone().text
    assert why_not_folded(text) is None
    change(text.transformer.resblocks)
    assert why_not_folded(text) == reason


def test_a_tower_that_is_no_stack_of_blocks_is_named():
    text = build_backbone().text
    text.ln_final = nn.Identity()
    assert why_not_folded(text) == "its last norm is Identity"
    text.transformer = Doubled()
    assert why_not_folded(text) == "Doubled is not a stack of residual blocks"
