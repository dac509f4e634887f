"""Registration with PEFT from outside; importing this module is enough.

``peft.utils.register_peft_method`` refuses names that are not in PEFT's own enum, so the mappings are written here.
"""

from __future__ import annotations

from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING, PEFT_TYPE_TO_PREFIX_MAPPING, PEFT_TYPE_TO_TUNER_MAPPING

from .config import MixtureConfig, TesseraType
from .model import MixtureModel


def register() -> None:
    """Make this copy of the tuner the one that PEFT finds; an exported adapter brings a copy of its own."""
    PEFT_TYPE_TO_CONFIG_MAPPING[TesseraType.TESSERA] = MixtureConfig
    PEFT_TYPE_TO_TUNER_MAPPING[TesseraType.TESSERA] = MixtureModel
    PEFT_TYPE_TO_PREFIX_MAPPING[TesseraType.TESSERA] = MixtureModel.prefix


register()
