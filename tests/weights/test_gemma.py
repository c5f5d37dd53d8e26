"""The Gemma-4 text network and DiffusionGemma's canvas over it, against transformers 5.23."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from kernels import PagedBatch
from tests.weights.runs import PAGE_SIZE, open_golden
from weights import CheckpointError
from weights.config_fields import ConfigFields
from weights.families.diffusion_gemma import CanvasSchedule, read_canvas_schedule
from weights.gemma_config import LayerKind, parse_diffusion_gemma
from weights.gemma_network import GemmaInput
from weights.load_gemma import load_gemma

CPU = torch.device("cpu")
# The recorded equations agree with the library's to 1e-5; ours add in another order.
TOLERANCE = {"atol": 1e-4, "rtol": 0}
CANVAS_CASES = [
    "canvas_short_noise",
    "canvas_short_same_sc_random",
    "canvas_edge_half",
    "canvas_edge_half_sc_previous",
    "canvas_window_half_sc_previous",
    "canvas_long_noise",
    "canvas_long_noise_sc_random",
    "canvas_long_clean",
    "canvas_long_half_sc_previous",
]


@pytest.fixture(scope="module")
def data(golden):
    return open_golden(golden / "diffusion_gemma")


@pytest.fixture(scope="module")
def network(golden):
    return load_gemma(golden / "diffusion_gemma", dtype=torch.float32, device=CPU)


class Text:
    """One sequence in pages of its own."""

    def __init__(self, network, num_entries, first_page=0):
        self.network = network
        self.num_pages = -(-num_entries // PAGE_SIZE)
        self.pages = torch.arange(first_page, first_page + self.num_pages)
        self.settled = 0

    def span(self, ids, *, canvas=False):
        """Rows of the sequence: first entries seen on sliding layers, and limits."""
        entries = torch.arange(self.settled, self.settled + len(ids))
        window = self.network.config.sliding.window
        if canvas:
            limits = torch.full((len(ids),), self.settled + len(ids))
            firsts = torch.full((len(ids),), max(0, self.settled - window + 1))
        else:
            limits, firsts = entries + 1, (entries - window + 1).clamp_min(0)
            self.settled += len(ids)
        slots = self.pages[entries // PAGE_SIZE] * PAGE_SIZE + entries % PAGE_SIZE
        return entries, slots, limits.int(), firsts.int()


def run(network, caches, spans, *, expected=None):
    """Logits of all rows; spans are (text, ids, whether it is a canvas)."""
    parts = [text.span(ids, canvas=canvas) for text, ids, canvas in spans]
    positions, slots, limits, firsts = (torch.cat(column) for column in zip(*parts, strict=True))
    lengths = [len(ids) for _, ids, _ in spans]
    width = max(text.num_pages for text, _, _ in spans)
    table = torch.zeros(len(spans), width, dtype=torch.int32)
    for index, (text, _, _) in enumerate(spans):
        table[index, : text.num_pages] = text.pages
    starts = torch.tensor([0, *lengths]).cumsum(0).int()

    def batch(first):
        return PagedBatch(starts, table, slots, limits, max(lengths), int(limits.max()), first)

    is_canvas = torch.cat([torch.full((len(ids),), canvas) for _, ids, canvas in spans])
    if is_canvas.any() and expected is None:
        expected = torch.zeros(len(is_canvas), network.config.hidden_size)
    step = GemmaInput(
        token_ids=torch.cat([torch.as_tensor(ids) for _, ids, _ in spans]),
        positions=positions,
        score_rows=torch.arange(len(positions)),
        batches={LayerKind.FULL: batch(None), LayerKind.SLIDING: batch(firsts)},
        is_canvas=is_canvas if is_canvas.any() else None,
        expected=expected,
    )
    with torch.inference_mode():
        return network.logits(network.forward(step, caches))


def caches_for(network, *texts):
    pages = sum(text.num_pages for text in texts)
    return network.allocate_caches(num_pages=pages, page_size=PAGE_SIZE)


@pytest.mark.parametrize("case", ["encode_short", "encode_long"])
@pytest.mark.parametrize("chunks", [1, 3])
def test_settled_rows_agree(network, data, case, chunks):
    for ids, wanted in zip(data[f"{case}.input_ids"], data[f"{case}.ar_logits"], strict=True):
        text = Text(network, len(ids))
        caches = caches_for(network, text)
        got = [run(network, caches, [(text, part, False)]) for part in ids.tensor_split(chunks)]
        torch.testing.assert_close(torch.cat(got), wanted, **TOLERANCE)


@pytest.mark.parametrize("case", CANVAS_CASES)
def test_canvas_rows_agree(network, data, case):
    """Contexts below, at and beyond the window, with and without self-conditioning."""
    context, canvas = data[f"{case}.context_ids"][0], data[f"{case}.canvas_ids"][0]
    text = Text(network, len(context) + len(canvas))
    caches = caches_for(network, text)
    run(network, caches, [(text, context, False)])
    expected = None
    if f"{case}.self_conditioning_logits" in data.tensors:
        expected = network.expect(data[f"{case}.self_conditioning_logits"][0])
    for _ in range(2):  # what a canvas leaves in its slots is overwritten
        got = run(network, caches, [(text, canvas, True)], expected=expected)
        torch.testing.assert_close(got, data[f"{case}.logits"][0], **TOLERANCE)


def test_canvas_and_prompt_share_a_step(network, data):
    """A canvas of one text and a prompt of another in one forward: both as if alone."""
    case = "canvas_long_half_sc_previous"
    context, canvas = data[f"{case}.context_ids"][0], data[f"{case}.canvas_ids"][0]
    prompt = data["encode_long.input_ids"][0]
    one = Text(network, len(context) + len(canvas))
    other = Text(network, len(prompt), first_page=one.num_pages)
    caches = caches_for(network, one, other)
    run(network, caches, [(one, context, False)])
    expected = torch.zeros(len(prompt) + len(canvas), network.config.hidden_size)
    expected[len(prompt) :] = network.expect(data[f"{case}.self_conditioning_logits"][0])
    got = run(network, caches, [(other, prompt, False), (one, canvas, True)], expected=expected)
    torch.testing.assert_close(got[: len(prompt)], data["encode_long.ar_logits"][0], **TOLERANCE)
    torch.testing.assert_close(got[len(prompt) :], data[f"{case}.logits"][0], **TOLERANCE)


def gemma4_folder(golden, target):
    """The golden checkpoint as plain Gemma 4 has it: the encoder's scalars, no canvas."""
    target.mkdir()
    source = golden / "diffusion_gemma"
    text = json.loads((source / "config.json").read_text())["text_config"]
    text |= {
        "architectures": ["Gemma4ForCausalLM"],
        "model_type": "gemma4_text",
        "attention_k_eq_v": True,
        "enable_moe_block": True,
    }
    (target / "config.json").write_text(json.dumps(text))
    tensors = {}
    for name, value in load_file(source / "model.safetensors").items():
        if name.startswith("model.encoder.language_model."):
            tensors[name.replace("model.encoder.language_model.", "model.")] = value
        elif name.startswith("model.decoder.") and not name.endswith("layer_scalar"):
            tensors[name.replace("model.decoder.", "model.")] = value
    tensors = {name: v for name, v in tensors.items() if "self_conditioning" not in name}
    save_file(tensors, target / "model.safetensors")
    return target


def test_plain_gemma_decodes_left_to_right(golden, data, tmp_path):
    network = load_gemma(gemma4_folder(golden, tmp_path / "model"), dtype=torch.float32, device=CPU)
    ids, final = data["decode_ar.prompt_ids"][0], data["decode_ar.final_ids"][0]
    text = Text(network, len(final))
    caches = caches_for(network, text)
    feed, chosen = ids, []
    for wanted in data["decode_ar.step_logits"][0]:
        logits = run(network, caches, [(text, feed, False)])[-1]
        torch.testing.assert_close(logits, wanted, **TOLERANCE)
        feed = logits.argmax().reshape(1)
        chosen.append(int(feed))
    assert chosen == final[len(ids) :].tolist()
    with pytest.raises(ValueError, match="self-conditioning"):
        run(network, caches, [(Text(network, 4), ids[:4], True)])


def test_recorded_decodes_step_by_step(network, data):
    """Whole canvases with the recorded draws: logits, entropies, what is accepted, how it ends."""
    case = data.case("decode_default")
    schedule = CanvasSchedule(16, max_steps=case["max_denoising_steps"])
    prompt = torch.tensor(case["prompt_ids"])
    text = Text(network, len(prompt) + case["canvases"] * 16)
    caches = caches_for(network, text)
    settle, step, ids = prompt, 0, prompt.tolist()
    for canvas in data["decode_default.initial_canvas"]:
        run(network, caches, [(text, settle, False)])
        x, expected, before = canvas, None, None
        for left in range(schedule.max_steps, 0, -1):
            assert torch.equal(x, data["decode_default.canvas_ids"][step])
            logits = run(network, caches, [(text, x, True)], expected=expected)
            torch.testing.assert_close(
                logits, data["decode_default.step_logits"][step], **TOLERANCE
            )
            tempered = logits / schedule.temperature(left)
            entropy = torch.distributions.Categorical(logits=tempered).entropy()
            torch.testing.assert_close(entropy, data["decode_default.entropy"][step], **TOLERANCE)
            order = entropy.argsort()
            earlier = entropy[order].cumsum(0) - entropy[order]
            x = data["decode_default.noise_ids"][step].clone()
            kept = order[earlier <= schedule.entropy_bound]
            x[kept] = data["decode_default.sampled_ids"][step][kept]
            settle, step = logits.argmax(-1), step + 1
            is_stable = before is not None and torch.equal(before, settle)
            if is_stable and entropy.mean() < schedule.mean_entropy:
                break
            before, expected = settle, network.expect(tempered)
        ids += settle.tolist()
    assert ids == case["final_ids"]
    assert step == case["denoise_forwards"]


def test_both_spellings_of_the_full_layers_say_the_same(golden):
    folder = golden / "diffusion_gemma"
    configs = [
        parse_diffusion_gemma(ConfigFields(json.loads((folder / name).read_text()), name))
        for name in ("config.json", "config_per_layer.json")
    ]
    assert configs[0] == configs[1]
    assert (configs[0].full.head_dim, configs[0].full.num_kv_heads) == (32, 1)


def test_schedule_of_the_checkpoint(golden):
    folder = golden / "diffusion_gemma"
    config = parse_diffusion_gemma(
        ConfigFields(json.loads((folder / "config.json").read_text()), "")
    )
    values = json.loads((folder / "generation_config.json").read_text())
    assert read_canvas_schedule(config, ConfigFields(values, "")) == CanvasSchedule(16)
    changed = {**values, "sampler_config": {"entropy_bound": 0.3}, "t_max": 0.9}
    schedule = read_canvas_schedule(config, ConfigFields(changed, ""))
    assert (schedule.entropy_bound, schedule.t_max) == (0.3, 0.9)
    assert schedule.temperature(48) == pytest.approx(0.9)
    with pytest.raises(CheckpointError, match="t_min"):
        read_canvas_schedule(config, ConfigFields({**values, "t_min": 0.8}, ""))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"hidden_activation": "silu"}, "hidden_activation is 'silu'"),
        ({"layer_types": ["full_attention"]}, "layer_types"),
        ({"num_key_value_heads": 3}, "cannot share 3 key heads"),
        ({"top_k_experts": 7}, "top_k_experts is 7, of 6 experts"),
        ({"sliding_window": 0}, "sliding_window must be at least 1"),
        ({"tie_word_embeddings": False}, "the head is the token table"),
        ({"rope_parameters": {"full_attention": {"rope_type": "yarn"}}}, "rope_type is 'yarn'"),
    ],
)
def test_configs_that_cannot_be_served_are_refused(golden, tmp_path, change, message):
    folder = tmp_path / "model"
    shutil.copytree(golden / "diffusion_gemma", folder)
    values = json.loads((folder / "config.json").read_text())
    values["text_config"].update(change)
    (folder / "config.json").write_text(json.dumps(values))
    with pytest.raises(CheckpointError, match=message):
        load_gemma(folder, dtype=torch.float32, device=CPU)


def test_a_missing_scalar_is_named(golden, tmp_path):
    folder = tmp_path / "model"
    shutil.copytree(golden / "diffusion_gemma", folder)
    stored = load_file(folder / "model.safetensors")
    del stored["model.encoder.language_model.layers.2.layer_scalar"]
    save_file(stored, folder / "model.safetensors")
    with pytest.raises(
        CheckpointError, match=r"language_model\.layers\.2\.layer_scalar is missing"
    ):
        load_gemma(folder, dtype=torch.float32, device=CPU)
