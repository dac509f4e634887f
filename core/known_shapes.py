"""Layer shapes of published models as plain lists, so that counts need neither weights nor a config file.

``parameters`` counts every parameter of the model as its card does; of Gemma 2B without the embedding, as
the shares of MoDE are.
"""

from __future__ import annotations

from core.adapters.cells import Linear
from core.catalog import BaseShapes


def llama_like(layers: int, hidden: int, feed_forward: int, vocabulary: int, *, key_value: int) -> tuple[Linear, ...]:
    """The token embedding, decoder blocks with q, k, v, o and a gated feed-forward, the head; widths in features."""
    widths = {
        "self_attn.q_proj": (hidden, hidden),
        "self_attn.k_proj": (hidden, key_value),
        "self_attn.v_proj": (hidden, key_value),
        "self_attn.o_proj": (hidden, hidden),
        "mlp.gate_proj": (hidden, feed_forward),
        "mlp.up_proj": (hidden, feed_forward),
        "mlp.down_proj": (feed_forward, hidden),
    }
    blocks = [
        Linear(f"model.layers.{layer}.{name}", *shape) for layer in range(layers) for name, shape in widths.items()
    ]
    embedding = Linear("model.embed_tokens", vocabulary, hidden, kind="embedding")
    return (embedding, *blocks, Linear("lm_head", hidden, vocabulary, head=True))


def _decoder(
    model_type: str, parameters: int, layers: int, hidden: int, feed_forward: int, vocabulary: int, key_value: int,
    tied: bool = False,
) -> BaseShapes:  # fmt: skip
    linears = llama_like(layers, hidden, feed_forward, vocabulary, key_value=key_value)
    return BaseShapes(model_type, parameters, layers, hidden, feed_forward, vocabulary, 4096, linears, tied)


def _bart() -> BaseShapes:
    """BART-base: six encoder and six decoder blocks of width 768, the latter with a second attention."""
    blocks = [f"encoder.layers.{n}.self_attn" for n in range(6)]
    blocks += [f"decoder.layers.{n}.{kind}" for n in range(6) for kind in ("self_attn", "encoder_attn")]
    attention = [
        Linear(f"model.{block}.{name}", 768, 768)
        for block in blocks
        for name in ("q_proj", "k_proj", "v_proj", "out_proj")
    ]
    return BaseShapes("bart", 139_420_416, 6, 768, 3072, 50_265, 1024, tuple(attention))


LLAMA2_7B = _decoder("llama", 6_738_415_616, 32, 4096, 11_008, 32_000, 4096)
LLAMA2_13B = _decoder("llama", 13_015_864_320, 40, 5120, 13_824, 32_000, 5120)
MISTRAL_7B = _decoder("mistral", 7_241_732_096, 32, 4096, 14_336, 32_000, 1024)
LLAMA31_8B = _decoder("llama", 8_030_261_248, 32, 4096, 14_336, 128_256, 1024)
GEMMA_2B = _decoder("gemma", 1_981_884_416, 18, 2048, 16_384, 256_000, 256, tied=True)
VL_BART = _bart()  # the image part holds no adapters

KNOWN = {
    "LLaMA2-7B": LLAMA2_7B,
    "LLaMA2-13B": LLAMA2_13B,
    "Mistral-7B": MISTRAL_7B,
    "Llama-3.1-8B": LLAMA31_8B,
    "Gemma 2B": GEMMA_2B,
    "VL-BART": VL_BART,
}
