"""Plans hold every history once, and let each row see its own history and nothing else."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from text_cases import OWNERS, SUITES, build_case, build_prompts, tokenizer, tower

from softcpt.clip.text_plan import (
    NOTHING,
    START,
    cut_into_chunks,
    grow_forest,
    lay_out,
)
from softcpt.clip.text_shared import SharedTextEncoder
from softcpt.clip.tokens import NamePrompts, place_context

N_TOKENS = 10_000
POSITIONS = ("end", "middle", "front")
SMALL = {"deadline": None, "max_examples": 60}


def codes_of(prompts, owner):
    """What stands behind SOT in each prompt, up to EOT: ids, and (owner, number) for context vectors."""
    ids, slots = prompts.ids.tolist(), prompts.slot.tolist()
    return [
        tuple(
            (int(o), slot) if slot >= 0 else token
            for token, slot in zip(ids[k][1 : end + 1], slots[k][1 : end + 1], strict=True)
        )
        for k, (end, o) in enumerate(zip(prompts.end.tolist(), owner.tolist(), strict=True))
    ]


def forest_of(prompts, owner):
    arrays = (t.numpy() for t in (prompts.ids, prompts.slot, prompts.end, owner))
    return grow_forest(*arrays, prompts.n_context, N_TOKENS)


def code_of(number, n_context):
    number = int(number)
    return number if number < N_TOKENS else divmod(number - N_TOKENS, n_context)


def histories(codes, *, constants):
    """All different beginnings; those without context are left out where they are constants."""
    found = set()
    for prompt in set(codes):
        has_context = any(isinstance(code, tuple) for code in prompt)
        for depth in range(1, len(prompt) + 1):
            is_fixed = has_context and not any(isinstance(code, tuple) for code in prompt[:depth])
            if not (constants and is_fixed):
                found.add(prompt[:depth])
    return found


class Seen:
    """What the rows of a layout see, read from its masks alone."""

    def __init__(self, layout, forest, n_context):
        self.layout, self.n_context = layout, n_context
        self.fixed = [
            (code_of(forest.codes[prompt, depth], n_context), int(depth) + 1)
            for prompt, depth in layout.constants
        ]

    def node(self, number):
        """Code and position of a row or a constant."""
        layout = self.layout
        if number >= layout.n_rows:
            return self.fixed[number - layout.n_rows]
        return code_of(layout.codes[number], self.n_context), int(layout.positions[number])

    def places(self, place):
        """The places that a place sees."""
        layout = self.layout
        segment = next(s for s in layout.segments if s.start <= place < s.end)
        first = place - place % layout.window
        trunk = segment.start + np.flatnonzero(layout.trunk_seen[place])
        assert (trunk < segment.start + segment.trunk).all()
        return [*trunk.tolist(), *(first + np.flatnonzero(layout.band_seen[place])).tolist()]

    def history(self, place):
        """Codes of what a place sees, in order; SOT must be among it, and every position once."""
        held = [int(self.layout.holds[p]) for p in self.places(place)]
        assert NOTHING not in held
        assert held.count(START) == (0 if self.layout.has_trunk else 1)
        return self.in_order([number for number in held if number != START])

    def in_order(self, numbers):
        nodes = sorted((self.node(number) for number in numbers), key=lambda node: node[1])
        assert [position for _, position in nodes] == list(range(1, len(nodes) + 1))
        return tuple(code for code, _ in nodes)


def check_layout(layout, forest, codes, n_context, *, constants):
    """Hold one layout to the prompts it is for; returns the histories of its rows."""
    seen = Seen(layout, forest, n_context)
    rows = [seen.history(place) for place in layout.row_place.tolist()]
    expected = [codes[forest.prompt[c]] for c in layout.prompts]
    assert set(rows) == histories(expected, constants=constants)
    assert len(rows) == len(set(rows))
    for row, history in enumerate(rows):
        assert seen.node(row) == (history[-1], len(history))

    # Where prompts end, and what is told of those ends apart from the masks.
    assert [rows[row] for row in layout.end_row] == expected
    for row, band in zip(layout.end_row, layout.end_band, strict=True):
        place = int(layout.row_place[row])
        in_trunk = int(layout.trunk_seen[place].sum())
        trunk = [int(layout.holds[p]) for p in seen.places(place)[:in_trunk]]
        assert seen.in_order([*trunk, *band[band >= 0].tolist()]) == rows[row]

    check_places(layout)
    return rows


def check_places(layout):
    held = layout.holds[layout.holds >= 0]
    assert sorted(held.tolist()) == list(range(layout.n_rows + len(layout.constants)))
    assert layout.holds[layout.row_place].tolist() == list(range(layout.n_rows))
    assert layout.n_places % layout.window == 0
    starts = np.flatnonzero(layout.holds == START)
    windows = np.arange(0, layout.n_places, layout.window)
    assert starts.tolist() == ([] if layout.has_trunk else windows.tolist())
    # Every place sees something, also the empty ones: a softmax over nothing is NaN.
    assert layout.has_trunk or bool(layout.band_seen.any(axis=1).all())
    # Segments follow each other, and so do their prompts.
    assert layout.segments[0].start == layout.segments[0].first_prompt == 0
    assert layout.segments[-1].end == layout.n_places
    assert layout.segments[-1].end_prompt == len(layout.prompts)
    for segment, following in zip(layout.segments, layout.segments[1:], strict=False):
        assert (segment.end, segment.end_prompt) == (following.start, following.first_prompt)
    for segment in layout.segments:
        trunk = layout.holds[segment.start : segment.start + segment.trunk]
        assert (trunk >= 0).all()
        assert (np.diff(trunk) == 1).all()
        assert segment.start % layout.window == 0
        places = layout.row_place[layout.end_row[segment.first_prompt : segment.end_prompt]]
        assert ((segment.start <= places) & (places < segment.end)).all()


def check_prompts(prompts, owner, *, constants, max_rows):
    """Chunks and layouts of some prompts, held to what the prompts say."""
    forest = forest_of(prompts, owner)
    codes = codes_of(prompts, owner)
    assert [codes[forest.prompt[c]] for c in forest.index] == codes
    assert len(forest.codes) == len(set(codes))
    has_names_first = bool((forest.constants > 0).any())
    constants = constants and has_names_first
    chunks = cut_into_chunks(forest, max_rows, constants=constants)
    assert sorted(np.concatenate(chunks).tolist()) == list(range(len(forest.codes)))
    layouts = [lay_out(forest, chunk, constants=constants) for chunk in chunks]
    for layout in layouts:
        check_layout(layout, forest, codes, prompts.n_context, constants=constants)
    return forest, layouts


@pytest.mark.parametrize(("n_context", "max_rows"), [(0, 4096), (1, 4096), (4, 60), (16, 4096), (16, 12)])
@pytest.mark.parametrize("owners", OWNERS)
@pytest.mark.parametrize("position", POSITIONS)
def test_rows_are_the_different_histories_and_see_their_own(position, owners, n_context, max_rows):
    for suite in SUITES:
        case = build_case(suite, position=position, owners=owners, n_context=n_context)
        for constants in (True, False) if position == "front" else (True,):
            check_prompts(case.prompts, case.owner, constants=constants, max_rows=max_rows)


NAME = st.lists(st.integers(10, 12), min_size=1, max_size=5)
NAMES = st.lists(st.tuples(NAME, st.sampled_from([[1, 2], [2]]), st.integers(0, 2)), min_size=1, max_size=40)


def as_prompts(rows, n_context):
    longest = max(len(ids) for ids, _ in rows)
    ids = torch.tensor([ids + [0] * (longest - len(ids)) for ids, _ in rows])
    slot = torch.tensor([slots + [-1] * (longest - len(slots)) for _, slots in rows])
    end = torch.tensor([len(ids) - 1 for ids, _ in rows])
    return NamePrompts(ids, slot, end, n_context)


@settings(**SMALL)
@given(NAMES, st.integers(0, 5), st.sampled_from(POSITIONS), st.booleans(), st.sampled_from([1, 9, 40, 4096]))
def test_any_names_have_a_sound_plan(names, n_context, position, constants, max_rows):
    """Names that often begin alike, under the contexts of a few owners."""
    rows = [
        place_context([*name, *rest], len(name), n_context=n_context, position=position, sot=0)
        for name, rest, _ in names
    ]
    owners = torch.tensor([owner for *_, owner in names])
    check_prompts(as_prompts(rows, n_context), owners, constants=constants, max_rows=max_rows)


MIXTURE = st.lists(st.tuples(st.integers(10, 11), st.integers(-1, 2)), min_size=1, max_size=7)


@settings(**SMALL)
@given(st.lists(st.tuples(MIXTURE, st.integers(0, 1)), min_size=1, max_size=60), st.sampled_from([9, 4096]))
def test_contexts_may_stand_anywhere(prompts, max_rows):
    """In any order, and more than once."""
    rows = [
        ([0, *(token for token, _ in mixture), 2], [-1, *(slot for _, slot in mixture), -1])
        for mixture, _ in prompts
    ]
    owners = torch.tensor([owner for _, owner in prompts])
    check_prompts(as_prompts(rows, 3), owners, constants=False, max_rows=max_rows)


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("max_rows", [4096, 150])
def test_large_forests_with_trunks(seed, max_rows):
    rng = np.random.default_rng(seed)
    rows = []
    for _ in range(120):
        name = rng.integers(10, 13, size=rng.integers(1, 6)).tolist()
        rows.append(place_context([*name, 1, 2], len(name), n_context=3, position="end", sot=0))
    owners = torch.from_numpy(rng.integers(0, 3, size=120))
    _, layouts = check_prompts(as_prompts(rows, 3), owners, constants=False, max_rows=max_rows)
    assert any(layout.has_trunk for layout in layouts)
    assert max_rows < 4096 or len(layouts[0].segments) == 3


def test_many_rests_behind_one_name_and_context():
    """The name is a constant of the window, the context behind it would be in the trunk."""
    rows = [([0, 5, 0, 0, 10 + k, 11, 2], [-1, -1, 0, 1, -1, -1, -1]) for k in range(40)]
    prompts = as_prompts(rows, 2)
    check_prompts(prompts, torch.zeros(40, dtype=torch.long), constants=True, max_rows=4096)


@pytest.mark.parametrize("max_rows", [4096, 60])
def test_names_that_share_nothing_take_their_context_and_their_own_tokens(max_rows):
    names = ["apple", "cat", "great white shark", "baby", "sea-lion", "dog"]
    lengths = [len(tokenizer().encode(name)) for name in names]
    tasks = torch.tensor([0, 0, 0, 1, 1, 2])
    prompts = build_prompts(names, 16)
    plan = SharedTextEncoder(tower(), max_rows=max_rows).plan(prompts, tasks)
    assert plan.n_rows == 3 * 16 + sum(n + 2 for n in lengths)
    by_class = SharedTextEncoder(tower(), max_rows=max_rows).plan(prompts, torch.arange(6))
    assert by_class.n_rows == sum(16 + n + 2 for n in lengths)


def test_shared_beginnings_of_names_are_rows_once():
    # "baby" is a prefix of the others; the full stop behind it is its own row.
    names = ["baby", "baby lion", "baby lion bear", "lion"]
    ids = {name: tokenizer().encode(name) for name in names}
    assert ids["baby lion bear"] == ids["baby"] + ids["lion"] + tokenizer().encode("bear")
    prompts = build_prompts([*names, "baby", "lion"], 4)
    plan = SharedTextEncoder(tower()).plan(prompts, torch.zeros(6, dtype=torch.long))
    n_baby, n_lion = len(ids["baby"]), len(ids["lion"])
    n_bear = len(ids["baby lion bear"]) - n_baby - n_lion
    assert plan.n_rows == 4 + n_baby + n_lion + n_bear + n_lion + 4 * 2
    assert len(plan.forest.codes) == 4
    assert plan.index[[0, 4]].tolist() == [plan.index[0]] * 2


def test_the_context_of_a_large_task_and_a_word_of_many_names_are_its_trunk():
    names = [f"great {a} {b}" for a in ("cat", "dog") for b in "abcdefghijklmnopqrst"]
    prompts = build_prompts([*names, "apple"], 8)
    forest = forest_of(prompts, torch.zeros(41, dtype=torch.long))
    layout = lay_out(forest, np.arange(41), constants=False)
    assert layout.has_trunk
    (segment,) = layout.segments
    trunk = layout.codes[layout.holds[: segment.trunk]].tolist()
    great = tokenizer().encode("great")
    assert len(great) == 1
    assert trunk[: 8 + len(great)] == [N_TOKENS + slot for slot in range(8)] + great
    # Without it, windows are as small as they may be: three or four places a tree.
    assert layout.window == 16
    # Small tasks keep their context beside their names.
    few = lay_out(forest, np.arange(5), constants=False)
    assert not few.has_trunk


def test_each_task_of_a_chunk_has_its_own_trunk():
    case = build_case("many classes", n_context=4)
    forest = forest_of(case.prompts, case.owner)
    layout = lay_out(forest, np.arange(len(forest.codes)), constants=False)
    assert len(layout.segments) == 3
    for segment in layout.segments:
        trunk = layout.codes[layout.holds[segment.start : segment.start + segment.trunk]]
        owners = {(code - N_TOKENS) // 4 for code in trunk.tolist() if code >= N_TOKENS}
        assert len(owners) <= 1


@pytest.mark.parametrize("constants", [True, False])
@pytest.mark.parametrize("max_rows", [30, 70, 200])
@pytest.mark.parametrize("position", POSITIONS)
def test_chunks_keep_to_their_size_and_large_tasks_are_split(position, max_rows, constants):
    case = build_case("many classes", position=position, n_context=4)
    forest, layouts = check_prompts(case.prompts, case.owner, constants=constants, max_rows=max_rows)
    whole = len(histories(codes_of(case.prompts, case.owner), constants=constants))
    # The parts of a split task are even up to one prompt, and each repeats what its first one shares.
    assert max(layout.n_rows for layout in layouts) < max_rows + forest.lengths.max()
    assert len(layouts) <= 3 * (whole // max_rows + 2)
    holding = {0: set(), 1: set()}
    for number, layout in enumerate(layouts):
        for prompt in forest.prompt[layout.prompts]:
            if (task := int(case.owner[prompt])) in holding:
                holding[task].add(number)
    if max_rows == 30:
        assert all(len(chunks) > 1 for chunks in holding.values())


def test_small_tasks_share_a_chunk_and_are_not_split():
    names = ["apple", "cat", "dog"] * 10
    owner = torch.arange(10).repeat_interleave(3)
    prompts = build_prompts(names, 4)
    forest = forest_of(prompts, owner)
    size = len(histories(codes_of(prompts, owner), constants=False)) // 10
    chunks = cut_into_chunks(forest, 3 * size)
    assert [sorted(set(owner[forest.prompt[chunk]].tolist())) for chunk in chunks] == [
        [0, 1, 2],
        [3, 4, 5],
        [6, 7, 8],
        [9],
    ]
    assert all(lay_out(forest, chunk, constants=False).n_rows <= 3 * size for chunk in chunks)


@pytest.mark.parametrize("max_rows", [4096, 60])
@pytest.mark.parametrize("owners", OWNERS)
@pytest.mark.parametrize("position", POSITIONS)
def test_multiply_adds_are_those_of_the_exact_computation(position, owners, max_rows):
    for suite in ("many classes", "duplicates", "one class"):
        case = build_case(suite, position=position, owners=owners, n_context=4)
        plan = SharedTextEncoder(tower(), max_rows=max_rows).plan(case.prompts, case.owner)
        codes = codes_of(case.prompts, case.owner)
        rows, ends = [], []
        for chunk in plan.chunks:
            own = [codes[plan.forest.prompt[c]] for c in chunk.layout.prompts]
            rows += histories(own, constants=True)
            ends += own
        assert plan.n_rows == len(rows)
        assert sorted(map(str, ends)) == sorted(map(str, set(codes)))
        assert plan.multiply_adds() == count_multiply_adds(rows, ends, layers=3, d=64, embed=24)
        assert all(len(chunk.attention.seen) == chunk.layout.n_seen[0] for chunk in plan.chunks)


def count_multiply_adds(rows, ends, *, layers, d, embed):
    """Of rows and ends given as what each has before it and itself; SOT is a key of all of them."""
    n_tokens = sum(not isinstance(row[-1], tuple) for row in rows)
    pairs, end_pairs = (sum(len(row) + 1 for row in some) for some in (rows, ends))
    linear = len(rows) * 12 * d * d * (layers - 1) - n_tokens * 3 * d * d
    last = len(ends) * (12 * d * d + d * embed)
    heads = d // 32
    forward = linear + 2 * pairs * d * (layers - 1) + last + 2 * end_pairs * heads * d
    backward = linear + 4 * pairs * d * (layers - 1) + last + 4 * end_pairs * heads * d
    return forward, backward


def test_a_tower_of_one_layer_costs_its_ends_alone():
    case = build_case("one class", n_context=4)
    plan = SharedTextEncoder(tower(layers=1)).plan(case.prompts, case.owner)
    d, heads, pairs = 64, 2, int(case.prompts.end[0]) + 1
    last = 12 * d * d + d * 24
    assert plan.multiply_adds() == (last + 2 * pairs * heads * d, last + 4 * pairs * heads * d)


def test_a_plan_is_made_once_for_prompts_owners_and_selection():
    case = build_case("ragged")
    encoder = SharedTextEncoder(tower())
    plan = encoder.plan(case.prompts, case.owner)
    assert encoder.plan(case.prompts, case.owner.clone()) is plan
    some = torch.tensor([2, 0])
    selected = encoder.plan(case.prompts, case.owner[some], some)
    assert selected is not plan
    assert encoder.plan(case.prompts, case.owner[some], some.clone()) is selected
    assert encoder.plan(case.prompts, torch.ones(2, dtype=torch.long), some) is not selected
    assert len(selected.forest.codes) == 2
    assert selected.n_rows < plan.n_rows


def test_forgotten_plans_are_made_again(monkeypatch):
    monkeypatch.setattr("softcpt.clip.text_shared.PLANS_KEPT", 2)
    case = build_case("one task")
    encoder = SharedTextEncoder(tower())
    parts = [torch.tensor([i]) for i in range(4)]
    plans = [encoder.plan(case.prompts, case.owner[part], part) for part in parts]
    assert encoder.plan(case.prompts, case.owner[parts[3]], parts[3]) is plans[3]
    assert encoder.plan(case.prompts, case.owner[parts[0]], parts[0]) is not plans[0]
