"""Claims about descriptions: bytes of formats, caches of kinds, what is refused."""

from __future__ import annotations

import msgspec
import pytest
from tests.families.test_families import CONFIGS, read

from janus_moe.errors import ConfigError
from janus_moe.spec import WEIGHT_FORMATS, FormatName, ModelSpec, WeightFormat


@pytest.mark.parametrize("name", WEIGHT_FORMATS)
def test_whole_blocks_take_the_bytes_per_weight(name: FormatName) -> None:
    one = WEIGHT_FORMATS[name]
    assert one.num_bytes((3, 256, 128)) == 3 * 256 * 128 * one.bytes_per_weight


@pytest.mark.parametrize(
    ("name", "shape", "num_bytes"),
    [
        ("float32", (5,), 20),
        ("bfloat16", (3, 5), 30),
        ("fp8", (129, 130), 129 * 130 + 4 * 4),
        ("mxfp4", (2, 33), 33 + 4),
        ("nvfp4", (2, 2, 32), 64 + 8),
    ],
)
def test_a_block_that_is_not_full_has_a_scale(
    name: FormatName, shape: tuple[int, ...], num_bytes: int
) -> None:
    assert WEIGHT_FORMATS[name].num_bytes(shape) == num_bytes


def test_a_zero_point_takes_bytes_of_every_block() -> None:
    grouped = WeightFormat(name="int8", values="int8", block=(1, 64), scale="bfloat16", zero="int8")
    assert grouped.num_bytes((4, 128)) == 4 * 128 + 8 * 3


def test_only_plain_numbers_have_a_dtype() -> None:
    assert {one.name for one in WEIGHT_FORMATS.values() if one.dtype} == {"float32", "bfloat16"}


def test_scales_and_blocks_come_together() -> None:
    with pytest.raises(ConfigError, match="come together"):
        WeightFormat(name="fp8", values="float8_e4m3", block=(128, 128))


@pytest.mark.parametrize("family", CONFIGS)
def test_a_description_survives_a_message(family: str) -> None:
    spec = read(family)
    assert msgspec.msgpack.decode(msgspec.msgpack.encode(spec), type=ModelSpec) == spec


def test_caches_are_summed_over_layers() -> None:
    gqa, mla = read("gpt_oss"), read("deepseek_v2")
    assert gqa.kv_bytes_per_token == 4 * 2 * (2 * 16) * 2
    assert mla.kv_bytes_per_token == 4 * (16 + 4) * 2


@pytest.mark.parametrize("family", CONFIGS)
def test_products_have_the_weights_of_the_layer(family: str) -> None:
    """What the planner multiplies is what the checkpoint stores, up to vectors."""
    for kind in read(family).attention:
        stored = sum(rows[0] * rows[1] for rows in kind.tensors(64).values() if len(rows) == 2)
        assert sum(n * rows * columns for n, rows, columns in kind.matrices(64)) == stored


def test_a_model_needs_experts() -> None:
    spec = read("olmoe")
    with pytest.raises(ConfigError, match="none of 0 layers has experts"):
        msgspec.structs.replace(spec, layers=())
    with pytest.raises(ConfigError, match="top-9 of 8 experts"):
        router = msgspec.structs.replace(spec.moe.router, top_k=9)
        moe = msgspec.structs.replace(spec.moe, router=router)
        msgspec.structs.replace(spec, moe=moe)
