"""Numbers at the edges of their ranges: checked as the engine will see them, in float32."""

import math

import pytest

from sampler import ModelInfo
from server.error_responses import ApiError
from server.schema.common import SamplingBody
from server.schema.numbers import as_float32, as_temperature
from server.translate.model_text import ModelText, ServedModel
from server.translate.sampling import sampling_params
from tests.server.conftest import error_of
from tests.server.scripted_engine import byte_tokenizer

pytestmark = pytest.mark.anyio

INFO = ModelInfo(
    name="m",
    family="f",
    modes=("ar",),
    context_length=64,
    vocab_size=512,
    eos_ids=(),
    mask_token_id=None,
    block_length=None,
    can_infill=False,
    load_s=0.0,
)


def params_of(**fields):
    model = ServedModel(ModelText(byte_tokenizer(), None), INFO)
    return sampling_params(SamplingBody(**fields), model, max_tokens=4, logprobs=None)


@pytest.mark.parametrize(
    "fields",
    [
        {"top_p": 1e-46},
        {"repetition_penalty": 5e-324},
        {"decoding": {"confidence": 1e-46}},
        {"decoding": {"factor": 1e-60}},
        {"decoding": {"edit_confidence": 1e-46}},
        {"decoding": {"remask": 1 - 1e-12}},
        {"temperature": 1e300},
        {"temperature": 10**400},
        {"logit_bias": {"3": -(10**400)}},
        {"top_p": 1.0000001},
    ],
)
async def test_what_float32_moves_out_of_its_range_is_refused(serve, fields):
    async with serve() as served:
        response = await served.chat(**fields)
    assert response.status_code == 400
    (name,) = fields
    inner = "".join(f".{key}" for key in fields[name]) if isinstance(fields[name], dict) else ""
    assert error_of(response)["param"] == f"{name}{inner}"


def test_values_reach_the_engine_as_float32():
    params = params_of(top_p=0.1, repetition_penalty=1e-45, temperature=0.3, min_p=-0.0)
    assert params.top_p == 0.10000000149011612
    assert params.repetition_penalty == 1.401298464324817e-45
    assert params.temperature == 0.30000001192092896
    assert params.min_p == 0.0


@pytest.mark.parametrize("value", [1e-46, 5e-324, 1e-38, 9e-6])
def test_temperatures_that_can_draw_one_token_only_are_zero(value):
    assert as_temperature(value) == 0.0


@pytest.mark.parametrize("value", [True, "0.5", None, [1.0]])
def test_what_is_no_number_stays(value):
    assert as_float32(value) is value


@pytest.mark.parametrize("value", [1e39, 10**400])
def test_beyond_float32_is_no_finite_number(value):
    assert as_float32(value) == math.inf
    assert as_float32(-value) == -math.inf


@pytest.mark.parametrize(
    ("name", "token_id"), [("0" * 21 + "300", 300), ("0" * 5000, 0), ("7", 7), ("0511", 511)]
)
def test_leading_zeros_write_the_same_token_id(name, token_id):
    assert params_of(logit_bias={name: 5}).logit_bias == ((token_id, 5.0),)


@pytest.mark.parametrize("name", ["512", "0" * 30 + "512", "9" * 5000, "-1", "+3", " 3", "³", ""])
def test_no_token_id_of_the_model_is_refused(name):
    with pytest.raises(ApiError, match="logit_bias: keys must be token ids below 512"):
        params_of(logit_bias={name: 5})


def test_a_token_id_written_in_two_ways_is_refused():
    with pytest.raises(ApiError, match="token id 3 is given more than once"):
        params_of(logit_bias={"3": 1, "03": 2})
