"""Tiny reward models with random weights, and what transformers itself makes of a conversation."""

from pathlib import Path

import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer, PreTrainedConfig, Qwen3Config

from ring_ray.engines.tiny_model import ASSISTANT, EOS, make_tiny_tokenizer

# What ends an answer ends the text, as with most chat templates.
CHAT_TEMPLATE = (
    "{% for message in messages %}{% if message['role'] == 'assistant' %}" + ASSISTANT + "{% endif %}"
    "{{ message['content'] }}" + EOS + "{% endfor %}"
)


def tiny_config(**changes: object) -> PreTrainedConfig:
    """A dense Qwen3 of vLLM's liking: widths that are multiples of 32."""
    sizes = {
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "head_dim": 32,
        "max_position_embeddings": 512,
        "tie_word_embeddings": False,
        "bos_token_id": None,
        "num_labels": 1,
    }
    return Qwen3Config(**(sizes | changes))


def make_tiny_reward_model(
    path: Path, config: PreTrainedConfig | None = None, *, pad_is_eos: bool = False, seed: int = 0
) -> str:
    """Write a Hugging Face directory with a byte-level tokenizer, and return it; scores are some units apart."""
    tokenizer = make_tiny_tokenizer()
    tokenizer.chat_template = CHAT_TEMPLATE
    if pad_is_eos:
        tokenizer.pad_token = tokenizer.eos_token
    config = config or tiny_config()
    config.vocab_size = len(tokenizer)
    config.eos_token_id, config.pad_token_id = tokenizer.eos_token_id, tokenizer.pad_token_id
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = AutoModelForSequenceClassification.from_config(config, dtype=torch.float32)
        for name, parameter in model.named_parameters():
            if "norm" not in name:
                torch.nn.init.normal_(parameter, std=0.3)
    model.save_pretrained(path)
    tokenizer.save_pretrained(path)
    return str(path)


@torch.no_grad()
def scores_of_transformers(path: str, question: str, texts: list[str]) -> list[float]:
    """One text at a time, without padding: the classifier's own forward pass then takes the last token."""
    model = AutoModelForSequenceClassification.from_pretrained(path, dtype=torch.float32).eval()
    model.config.pad_token_id = None
    tokenizer = AutoTokenizer.from_pretrained(path)
    found = []
    for text in texts:
        messages = [{"role": "user", "content": question}, {"role": "assistant", "content": text}]
        ids = tokenizer.apply_chat_template(messages, return_tensors="pt", return_dict=False)
        found.append(float(model(input_ids=ids).logits[0, 0]))
    return found
