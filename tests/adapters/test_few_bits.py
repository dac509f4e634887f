"""Quantised bases on which a method is not right are refused before launch."""

from __future__ import annotations

import pytest

from core.errors import ConfigurationError
from core.planning import check_few_bits
from core.schema import RunSpec


def spec(method: str, bits: str) -> RunSpec:
    return RunSpec.parse({"tasks": [{"dataset": "x"}], "method": {"name": method}, "model": {"quantization": bits}})


def test_dora_is_refused_on_a_4_bit_base_alone():
    with pytest.raises(ConfigurationError, match=r"DoRA is not exact on a 4bit base.*8bit or none"):
        check_few_bits(spec("dora", "4bit"))
    check_few_bits(spec("dora", "8bit"))
    check_few_bits(spec("dora", "none"))
    check_few_bits(spec("mosld", "4bit"))
    check_few_bits(spec("base", "4bit"))
