"""Read the layer shapes of a base from its config: ``python -m core.catalog_shapes FOLDER`` prints them as JSON.

A process of its own, because it needs torch and transformers; the model is built on the meta device, without weights.
"""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import astuple
from typing import Any


def read(folder: str, trust_remote_code: bool = False) -> dict[str, Any]:
    """Linear layers and sizes of the causal language model whose ``config.json`` lies in ``folder``."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    from core.adapters.model import linears_of

    config = AutoConfig.from_pretrained(folder, trust_remote_code=trust_remote_code)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config, trust_remote_code=trust_remote_code)
    text = config.get_text_config()
    linears = linears_of(model)
    hidden = text.hidden_size
    return {
        "model_type": config.model_type,
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "layers": text.num_hidden_layers,
        "hidden": hidden,
        "feed_forward": getattr(text, "intermediate_size", None) or 4 * hidden,
        "vocabulary": text.vocab_size,
        "positions": getattr(text, "max_position_embeddings", None),
        "linears": [list(astuple(line)) for line in linears],
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder")
    parser.add_argument("--trust-remote-code", action="store_true")
    arguments = parser.parse_args()
    try:
        found = read(arguments.folder, arguments.trust_remote_code)
    except (ValueError, OSError, KeyError, AttributeError, ImportError) as error:
        print(f"{type(error).__name__}: {error}".splitlines()[0], file=sys.stderr)
        return 1
    print(json.dumps(found))
    return 0


if __name__ == "__main__":
    sys.exit(main())
