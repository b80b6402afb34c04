"""Small GGUF files: a llama with random weights and a tokenizer of bytes with a chat template."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from lit_probsft.data import ByteTokenizer

WIDTH, INNER, LAYERS, HEADS = 32, 64, 2, 2
TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def write_gguf(path: Path, quantization: str = "Q8_0", **fields: Any) -> Path:
    """Write a model.

    Args:
        path: of the file.
        quantization: of the matrices; vectors are F32.
        fields: `architecture`, `file_type`, or others by their names in the file, with integer values.
    """
    import gguf

    kind = gguf.GGMLQuantizationType[quantization]
    architecture = fields.pop("architecture", "llama")
    writer = gguf.GGUFWriter(path, architecture)
    writer.add_file_type(gguf.LlamaFileType["MOSTLY_Q8_0" if quantization == "Q8_0" else "MOSTLY_F16"])
    writer.add_block_count(LAYERS)
    writer.add_context_length(256)
    writer.add_embedding_length(WIDTH)
    writer.add_feed_forward_length(INNER)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(HEADS)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_freq_base(10000.0)
    vocabulary = ByteTokenizer().load(list).get_vocab()
    tokens = [*sorted(vocabulary, key=lambda token: vocabulary[token]), "he"]
    writer.add_vocab_size(len(tokens))
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("smollm")
    writer.add_token_list(tokens)
    writer.add_token_types([gguf.TokenType.NORMAL] * 256 + [gguf.TokenType.CONTROL] * 3 + [gguf.TokenType.NORMAL])
    writer.add_token_merges(["h e"])
    writer.add_pad_token_id(vocabulary["<|pad|>"])
    writer.add_eos_token_id(vocabulary["<|im_end|>"])
    writer.add_bos_token_id(vocabulary["<|im_start|>"])
    writer.add_chat_template(TEMPLATE)
    for name, value in fields.items():
        writer.add_uint32(name, value)
    rng = np.random.default_rng(0)
    shapes = {
        "token_embd.weight": (len(tokens), WIDTH),
        "output.weight": (len(tokens), WIDTH),
        "output_norm.weight": (WIDTH,),
    }
    for layer in range(LAYERS):
        for part in ("attn_q", "attn_k", "attn_v", "attn_output"):
            shapes[f"blk.{layer}.{part}.weight"] = (WIDTH, WIDTH)
        shapes |= {f"blk.{layer}.ffn_{part}.weight": (INNER, WIDTH) for part in ("gate", "up")}
        shapes |= {f"blk.{layer}.ffn_down.weight": (WIDTH, INNER)}
        shapes |= {f"blk.{layer}.{part}_norm.weight": (WIDTH,) for part in ("attn", "ffn")}
    for name, shape in shapes.items():
        values = np.ones(shape, np.float32) if len(shape) == 1 else rng.normal(0, 0.2, shape).astype(np.float32)
        if len(shape) == 1:
            writer.add_tensor(name, values)
        else:
            writer.add_tensor(name, gguf.quants.quantize(values, kind), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path
