"""Small stand-ins that behave like the real thing: rules, a network of hashes, engines over it."""

import time

import numpy as np
import torch

from sampler.border.engine_config import EngineConfig
from sampler.border.request import DecodingMode, DecodingParams, EvoParams, Request, SamplingParams
from sampler.engine import Engine, EngineLimits
from sampler.step.runner import HostScores
from sampler.step.score_spec import Vocabulary
from weights.families import FamilyRule

CAUSAL_RULE = FamilyRule()
VOCABULARY = 50
EOS = 2
_PRIME = 1_000_003
_MODULUS = (1 << 61) - 1


def _mixed(values):
    result = 17
    for value in values:
        result = (result * _PRIME + int(value) + 1) % _MODULUS
    return result


class HashRunner:
    """A two-layer network of hashes over a paged cache: what it says depends on all a row sees.

    Layer 0 stores a hash of token and position, layer 1 a hash of the layer-0 values that the
    row sees, as attention does; the answer is a hash of the layer-1 values that it sees. An
    entry that was never written stops the run. Temperature is ignored; probability and entropy
    are made up from the hash, so that canvases converge in several steps. A latent is a hash of
    the moves that made it.
    """

    last_level = 64

    def __init__(self, num_pages, page_size, *, vocabulary=VOCABULARY, seed_matters=True):
        self.layers = np.full((2, num_pages * page_size), -1, dtype=np.int64)
        self.page_size = page_size
        self.vocabulary = vocabulary
        self.seed_matters = seed_matters
        self.num_runs = 0
        self.row_log = []
        self.latents = {}
        self.expected = {}

    def run(self, step, spec):
        self.num_runs += 1
        network, batch = step.network, step.network.batch
        starts = batch.span_starts.tolist()
        slots, limits = batch.slots.tolist(), batch.limits.tolist()
        tokens, positions = network.token_ids.tolist(), network.positions.tolist()
        self.row_log.append(len(slots))
        span_of = [s for s in range(batch.num_spans) for _ in range(starts[s], starts[s + 1])]
        seen = [self._seen_slots(batch, t, span_of[t], limits[t]) for t in range(len(slots))]
        held = self._held(step)
        for t, slot in enumerate(slots):
            self.layers[0, slot] = _mixed((held.get(t, tokens[t]), positions[t]))
        for t, slot in enumerate(slots):
            self.layers[1, slot] = _mixed(self._read(0, seen[t]))
        return self._scores(step, spec, seen)

    def _held(self, step):
        """What latent rows hold instead of their tokens, by row: a hash of how it came about."""
        latents, moves = step.network.latents, step.latents
        if latents is None:
            return {}
        held = {}
        for index, row in enumerate(latents.rows.tolist()):
            levels = (int(latents.levels[index]), int(latents.offsets[index]))
            if moves is not None:
                slot = int(moves.slots[index])
                self.latents[slot] = self._moved(moves, index, slot)
                # At the last level the latent says nothing.
                said = self.latents[slot] if levels[0] < self.last_level else 0
                levels = (*levels, said)
            held[row] = _mixed((-7, *levels))
        return held

    def _moved(self, moves, index, slot):
        """The latent of a slot after its move: a hash of all that goes into it."""
        keep, expected, start, slope, noise = moves.moves[index].tolist()
        token = int(moves.tokens[index])
        if token >= 0:
            return _mixed((token,))
        parts = [round(1000 * weight) for weight in (keep, expected, start, slope, noise)]
        if keep:
            parts.append(self.latents[slot])
        if expected:
            parts.append(self.expected[slot])
        if noise:
            drawn = (moves.seeds[index], moves.positions[index], moves.draws[index])
            parts += [int(x) for x in drawn]
        return _mixed(parts)

    def _seen_slots(self, batch, row, span, limit):
        pages = batch.page_table[span].tolist()
        entries = set(range(int(batch.firsts[row]) if batch.firsts is not None else 0, limit))
        if batch.window_starts is not None:
            entries |= set(range(int(batch.window_starts[row]), int(batch.window_stops[row])))
        size = self.page_size
        return [pages[e // size] * size + e % size for e in sorted(entries)]

    def _read(self, layer, slots):
        values = self.layers[layer, slots]
        assert (values >= 0).all(), "a row sees an entry that was never written"
        return values.tolist()

    def _scores(self, step, spec, seen):
        tokens, probabilities, given = [], [], []
        for index, row in enumerate(step.network.score_rows.tolist()):
            own = int(step.network.positions[row])
            result = _mixed([*self._read(1, seen[row]), own])
            sampled = self.seed_matters and float(spec.temperature[index]) > 0
            if sampled:
                noise = (spec.seeds, spec.positions, spec.purposes, spec.attempts)
                result = _mixed((result, *(int(x[index]) for x in noise)))
            token = result % self.vocabulary
            while token in spec.suppressed or token in self._forbidden(spec, index):
                token = (token + 1) % self.vocabulary
            self._expect(step, index, result)
            tokens.append(token)
            probabilities.append(0.05 + 0.9 * ((result >> 8) % 1000) / 1000)
            given.append(-1.0 - (result >> 20) % 7)
        p = np.array(probabilities, dtype=np.float32)
        ids = np.array(tokens, dtype=np.int64)
        ranks = np.arange(spec.num_top)
        return HostScores(
            token=ids,
            probability=p,
            argmax=ids,
            p1=p,
            p2=(1 - p) / 2,
            entropy=(-p * np.log(p) + 3 * (1 - p)).astype(np.float32),
            given_logprob=np.array(given, dtype=np.float32) if spec.given is not None else None,
            top_ids=(ids[:, None] + ranks) % self.vocabulary if spec.num_top else None,
            top_logprobs=np.log(p)[:, None] - ranks.astype(np.float32) if spec.num_top else None,
        )

    def _expect(self, step, index, result):
        if step.latents is None:
            return
        rows = step.latents.scored_rows.tolist()
        if index in rows:
            self.expected[int(step.latents.scored_slots[rows.index(index)])] = result

    def _forbidden(self, spec, index):
        return self._disallowed(spec, index) | set(self._ruled_out(spec, index))

    def _disallowed(self, spec, index):
        if spec.allowed is None or int(spec.allowed.rows[index]) < 0:
            return set()
        words = spec.allowed.bitmask[int(spec.allowed.rows[index])].tolist()
        allowed = {t for t in range(self.vocabulary) if words[t // 32] >> (t % 32) & 1}
        assert allowed, "a row that is drawn has at least one allowed token"
        return set(range(self.vocabulary)) - allowed

    def _ruled_out(self, spec, index):
        if spec.adjust is None:
            return ()
        start, stop = spec.adjust.row_starts[index : index + 2].tolist()
        pairs = zip(
            spec.adjust.token_ids[start:stop].tolist(),
            spec.adjust.values[start:stop].tolist(),
            strict=True,
        )
        return {token for token, value in pairs if value == float("-inf")}


def hash_engine(
    rule=CAUSAL_RULE,
    *,
    num_pages=64,
    context=128,
    eos=(EOS,),
    grammars=None,
    clock=time.monotonic,
    vocabulary=VOCABULARY,
    **options,
):
    """An engine over a `HashRunner`; options are fields of `EngineConfig`."""
    settings = {"page_size": 4, "max_sequences": 8, "max_rows": 64, **options}
    config = EngineConfig(model="hashes", **settings)
    return Engine(
        runner=HashRunner(num_pages, config.page_size, vocabulary=vocabulary),
        rule=rule,
        vocabulary=Vocabulary(
            size=vocabulary,
            eos_ids=frozenset(eos),
            mask_id=rule.mask_token_id,
            mask_is_hidden=rule.suppresses_mask,
        ),
        config=config,
        limits=EngineLimits(
            context_length=min(context, num_pages * config.page_size), num_pages=num_pages
        ),
        device=torch.device("cpu"),
        grammars=grammars,
        clock=clock,
    )


def request(name, prompt, *, max_tokens=8, decoding=None, priority=0, suffix=(), **params):
    """A request; the rest are fields of `SamplingParams`, `decoding` those of `DecodingParams`."""
    fields = {**(decoding or {})}
    if "mode" in fields:
        fields["mode"] = DecodingMode(fields["mode"])
    if "evo" in fields:
        fields["evo"] = EvoParams(**fields["evo"])
    return Request(
        id=name,
        prompt=tuple(prompt),
        suffix=tuple(suffix),
        priority=priority,
        params=SamplingParams(
            max_tokens=max_tokens,
            decoding=DecodingParams(**fields),
            **{"temperature": 0.0, "ignore_eos": True, **params},
        ),
    )


def collect(outputs, into=None):
    """Answers by request id out of step outputs: tokens in order, and every delta."""
    answers = {} if into is None else into
    for output in outputs:
        for name, token in zip(output.tokens.request_ids, output.tokens.token_ids, strict=True):
            answers.setdefault(name, ([], []))[0].append(token)
        for delta in output.deltas:
            tokens, deltas = answers.setdefault(delta.request_id, ([], []))
            tokens.extend(delta.token_ids)
            deltas.append(delta)
    return answers


def run_all(engine, *requests, max_steps=2000, check=True):
    """Submit requests, step until nothing is left, return the answers by id."""
    for one in requests:
        engine.submit(one)
    answers = {}
    for _ in range(max_steps):
        if not engine.has_work:
            return answers
        collect([engine.step()], answers)
        if check:
            check_engine(engine)
    raise AssertionError(f"still at work after {max_steps} steps")


def check_engine(engine):
    """Every invariant of sequences and pages."""
    table, pool = engine.table, engine.scheduler.pool
    held = []
    for seat in np.flatnonzero(table.state).tolist():
        table.check(seat)
        held.extend(table.pages[seat, : table.num_pages[seat]].tolist())
    assert pool.num_held == len(set(held))
    assert pool.num_free + pool.num_idle + pool.num_held == pool.num_pages
    assert all(pool.owners(page) == held.count(page) for page in set(held))
    shared = {page for page in held if held.count(page) > 1}
    for seat in np.flatnonzero(table.state).tolist():
        writable = table.pages[seat, table.settled[seat] // table.page_size : table.num_pages[seat]]
        assert not shared & set(writable.tolist()), "a page has two owners that write"
