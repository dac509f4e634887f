"""Read the layer shapes of a base from its config: ``python -m core.catalog_shapes FOLDER`` prints them as JSON.

A process of its own, because it needs torch and transformers; the model is built on the meta device, without weights.
"""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import astuple
from typing import TYPE_CHECKING, Any

from core.base_files import TWO_TEXTS

if TYPE_CHECKING:
    from transformers import PretrainedConfig

UNSUITABLE = 2  # exit code of a refusal that is a sentence for people


def read(folder: str, trust_remote_code: bool = False) -> dict[str, Any]:
    """Linear layers and sizes of the causal language model whose ``config.json`` lies in ``folder``.

    Raises:
        Unsuitable: transformers can build the model, but no adapter can be trained on it here.
    """
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    from core.adapters.embedding import tied_head, token_embedding
    from core.adapters.model import linears_of

    config = AutoConfig.from_pretrained(folder, trust_remote_code=trust_remote_code)
    _check(config)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config, trust_remote_code=trust_remote_code)
    text = config.get_text_config()
    linears = linears_of(model)
    if not any(line.usual for line in linears):
        raise Unsuitable("has no linear layers that an adapter could stand on.")
    hidden, table = text.hidden_size, token_embedding(model)
    return {
        "model_type": config.model_type,
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "layers": text.num_hidden_layers,
        "hidden": hidden,
        "feed_forward": getattr(text, "intermediate_size", None) or 4 * hidden,
        "vocabulary": text.vocab_size,
        "positions": getattr(text, "max_position_embeddings", None),
        "linears": [list(astuple(line)) for line in linears],
        "tied": table is not None and tied_head(model, table) is not None,
        "few_bits": getattr(config, "quantization_config", None) is not None,
    }


class Unsuitable(ValueError):
    """What a base is that makes it unusable, as the end of a sentence that begins with its name."""


def _check(config: PretrainedConfig) -> None:
    from transformers import MODEL_FOR_MASKED_LM_MAPPING

    if config.is_encoder_decoder:
        raise Unsuitable(f"is {TWO_TEXTS.format(config.model_type)}")
    if type(config) in MODEL_FOR_MASKED_LM_MAPPING and not getattr(config, "is_decoder", True):
        raise Unsuitable(f"is an encoder ({config.model_type}): it fills gaps in a text and writes none.")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder")
    parser.add_argument("--trust-remote-code", action="store_true")
    arguments = parser.parse_args()
    try:
        found = read(arguments.folder, arguments.trust_remote_code)
    except Unsuitable as error:
        print(error, file=sys.stderr)
        return UNSUITABLE
    except Exception as error:  # whatever transformers makes of a config that is not right
        print(f"{type(error).__name__}: {error}".splitlines()[0], file=sys.stderr)
        return 1
    print(json.dumps(found))
    return 0


if __name__ == "__main__":
    sys.exit(main())
