"""A tiny random Llama with a byte-level tokenizer, as a folder that loads like any base model."""

from __future__ import annotations

from pathlib import Path

from core.home import BUNDLED_BASE_FOLDER

TEXTS = (
    "What is the sentiment of this review? Answer positive or negative.",
    "The film was a joy from start to end, and the cast was wonderful.",
    "A dull story, badly told; I wanted my money back.",
    "Name the capital of the country. Say red, green, blue, yes or no.",
    "Turn the sentence round: one two three four five six seven eight nine ten.",
)
SPECIAL = ("<|pad|>", "<|begin|>", "<|end|>", "<|system|>", "<|user|>", "<|assistant|>")

SPREAD = 0.1  # of the weights: large enough that prompts lead to different answers


def tiny_base(
    folder: Path,
    *,
    layers: int = 2,
    hidden: int = 32,
    heads: int = 4,
    vocabulary: int = 320,
    positions: int = 512,
    seed: int = 0,
) -> Path:
    """Write a loadable Llama folder: grouped-query attention, ``hidden`` wide, ``vocabulary`` tokens; returns it."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    folder = Path(folder)
    tokenizer = _tokenizer(vocabulary)
    tokenizer.save_pretrained(folder)
    (folder / "chat_template.jinja").write_text((BUNDLED_BASE_FOLDER / "chat_template.jinja").read_text("utf-8"))
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=hidden,
        intermediate_size=2 * hidden,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=heads // 2,
        max_position_embeddings=positions,
        tie_word_embeddings=True,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    with torch.random.fork_rng(devices=[]):
        model = LlamaForCausalLM(config)
    chance = torch.Generator().manual_seed(seed)  # our own draw: the same weights under every transformers version
    with torch.no_grad():
        for name, weight in sorted(model.named_parameters()):
            if "norm" not in name:
                weight.normal_(0.0, SPREAD, generator=chance)
    model.save_pretrained(folder)
    return folder


def _tokenizer(vocabulary: int):
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=list(SPECIAL),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(TEXTS, trainer)
    pad, begin, end, *roles = SPECIAL
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{begin} $A", special_tokens=[(begin, tokenizer.token_to_id(begin))]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=begin,
        eos_token=end,
        pad_token=pad,
        additional_special_tokens=list(roles),
    )
