"""config.json of published models, in the words of their publishers, and what must be read from each.

name → (file, (tokens that can be read, theta, kind of scaling, pattern, biases, width of heads, heads for keys))
"""

from __future__ import annotations

_NOTES = {"torch_dtype": "bfloat16", "use_cache": True, "initializer_range": 0.02, "attention_dropout": 0.0}
_LLAMA = _NOTES | {
  "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_act": "silu", "pretraining_tp": 1,
  "bos_token_id": 1, "eos_token_id": 2, "rope_scaling": None, "tie_word_embeddings": False}
_LLAMA3 = _LLAMA | {
  "attention_bias": False, "mlp_bias": False, "bos_token_id": 128000, "eos_token_id": [128001, 128008, 128009],
  "vocab_size": 128256, "rms_norm_eps": 1e-05, "rope_theta": 500000.0, "transformers_version": "4.43.0.dev0"}
_STRETCHED3 = {
  "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8192,
  "rope_type": "llama3"}
_MISTRAL = _NOTES | {
  "architectures": ["MistralForCausalLM"], "bos_token_id": 1, "eos_token_id": 2, "hidden_act": "silu",
  "hidden_size": 4096, "intermediate_size": 14336, "max_position_embeddings": 32768, "model_type": "mistral",
  "num_attention_heads": 32, "num_hidden_layers": 32, "num_key_value_heads": 8, "rms_norm_eps": 1e-05,
  "tie_word_embeddings": False}
_QWEN2 = _NOTES | {
  "architectures": ["Qwen2ForCausalLM"], "bos_token_id": 151643, "eos_token_id": 151645, "hidden_act": "silu",
  "model_type": "qwen2", "rms_norm_eps": 1e-06, "rope_theta": 1000000.0, "use_sliding_window": False}
_QWEN7 = _QWEN2 | {
  "hidden_size": 3584, "intermediate_size": 18944, "num_attention_heads": 28, "num_hidden_layers": 28,
  "num_key_value_heads": 4, "max_window_layers": 28, "vocab_size": 152064, "tie_word_embeddings": False}
_LLAMA2_7B = _LLAMA | {
  "_name_or_path": "meta-llama/Llama-2-7b-hf", "hidden_size": 4096, "intermediate_size": 11008,
  "max_position_embeddings": 4096, "num_attention_heads": 32, "num_hidden_layers": 32, "num_key_value_heads": 32,
  "rms_norm_eps": 1e-05, "torch_dtype": "float16", "transformers_version": "4.31.0.dev0", "vocab_size": 32000}
PLAIN = ("attention",)

PUBLISHED = {
  "llama-1": (
    {"architectures": ["LLaMAForCausalLM"], "bos_token_id": 1, "eos_token_id": 2, "hidden_act": "silu",
     "hidden_size": 4096, "initializer_range": 0.02, "intermediate_size": 11008, "max_position_embeddings": 2048,
     "max_sequence_length": 2048, "model_type": "llama", "num_attention_heads": 32, "num_hidden_layers": 32,
     "pad_token_id": 0, "rms_norm_eps": 1e-06, "tie_word_embeddings": False, "torch_dtype": "float16",
     "transformers_version": "4.28.0", "use_cache": True, "vocab_size": 32000},
    (2048, 1e4, "none", PLAIN, "none", 128, 32)),
  "llama-2-7b": (_LLAMA2_7B, (4096, 1e4, "none", PLAIN, "none", 128, 32)),
  "llama-2-70b": (
    _LLAMA2_7B | {"hidden_size": 8192, "intermediate_size": 28672, "num_attention_heads": 64, "num_hidden_layers": 80,
                  "num_key_value_heads": 8}, (4096, 1e4, "none", PLAIN, "none", 128, 8)),
  "vicuna-16k": (
    _LLAMA2_7B | {"rope_scaling": {"factor": 4.0, "type": "linear"}, "max_sequence_length": 16384},
    (16384, 1e4, "linear", PLAIN, "none", 128, 32)),
  "codellama": (
    _LLAMA2_7B | {"max_position_embeddings": 16384, "rope_theta": 1000000, "vocab_size": 32016},
    (16384, 1e6, "none", PLAIN, "none", 128, 32)),
  "llama-3-8b": (
    _LLAMA3 | {"hidden_size": 4096, "intermediate_size": 14336, "max_position_embeddings": 8192,
               "num_attention_heads": 32, "num_hidden_layers": 32, "num_key_value_heads": 8, "mlp_bias": None},
    (8192, 5e5, "none", PLAIN, "none", 128, 8)),
  "llama-3.1-8b": (
    _LLAMA3 | {"hidden_size": 4096, "intermediate_size": 14336, "max_position_embeddings": 131072,
               "num_attention_heads": 32, "num_hidden_layers": 32, "num_key_value_heads": 8,
               "rope_scaling": _STRETCHED3}, (131072, 5e5, "llama3", PLAIN, "none", 128, 8)),
  "llama-3.2-1b": (
    _LLAMA3 | {"head_dim": 64, "hidden_size": 2048, "intermediate_size": 8192, "max_position_embeddings": 131072,
               "num_attention_heads": 32, "num_hidden_layers": 16, "num_key_value_heads": 8,
               "tie_word_embeddings": True, "rope_scaling": _STRETCHED3 | {"factor": 32.0}},
    (131072, 5e5, "llama3", PLAIN, "none", 64, 8)),
  "smollm2-135m": (
    _LLAMA | {"attention_bias": False, "bos_token_id": 0, "eos_token_id": 0, "hidden_size": 576,
              "intermediate_size": 1536, "is_llama_config": True, "max_position_embeddings": 8192, "mlp_bias": False,
              "num_attention_heads": 9, "num_hidden_layers": 30, "num_key_value_heads": 3, "rms_norm_eps": 1e-05,
              "rope_interleaved": False, "rope_theta": 100000, "tie_word_embeddings": True, "vocab_size": 49152,
              "transformers.js_config": {"kv_cache_dtype": {"q4f16": "float16", "fp16": "float16"}},
              "pad_token_id": 2, "transformers_version": "4.42.3"}, (8192, 1e5, "none", PLAIN, "none", 64, 3)),
  "tinyllama": (
    _LLAMA | {"attention_bias": False, "hidden_size": 2048, "intermediate_size": 5632, "max_position_embeddings": 2048,
              "num_attention_heads": 32, "num_hidden_layers": 22, "num_key_value_heads": 4, "rms_norm_eps": 1e-05,
              "rope_theta": 10000.0, "vocab_size": 32000}, (2048, 1e4, "none", PLAIN, "none", 64, 4)),
  "qwen2-7b": (
    _QWEN7 | {"max_position_embeddings": 131072, "sliding_window": 131072, "transformers_version": "4.37.2"},
    (131072, 1e6, "none", PLAIN, "qkv", 128, 4)),
  "qwen2-0.5b": (
    _QWEN2 | {"hidden_size": 896, "intermediate_size": 4864, "num_attention_heads": 14, "num_hidden_layers": 24,
              "num_key_value_heads": 2, "max_window_layers": 24, "sliding_window": 131072, "vocab_size": 151936,
              "max_position_embeddings": 131072, "tie_word_embeddings": True},
    (131072, 1e6, "none", PLAIN, "qkv", 64, 2)),
  "qwen2.5-7b": (
    _QWEN7 | {"max_position_embeddings": 131072, "sliding_window": 131072, "use_mrope": False},
    (131072, 1e6, "none", PLAIN, "qkv", 128, 4)),
  "qwen2.5-7b-instruct-yarn": (
    _QWEN7 | {"max_position_embeddings": 32768, "sliding_window": 131072, "rope_scaling": {
      "factor": 4.0, "original_max_position_embeddings": 32768, "type": "yarn"}},
    (131072, 1e6, "yarn", PLAIN, "qkv", 128, 4)),
  "qwen2.5-saved-by-transformers-5": (
    {key: value for key, value in _QWEN7.items() if key not in ("rope_theta", "torch_dtype")} | {
      "dtype": "bfloat16", "max_position_embeddings": 32768, "sliding_window": None, "layer_types": [
        "full_attention"] * 28, "rope_parameters": {"rope_theta": 1000000.0, "rope_type": "default"}},
    (32768, 1e6, "none", PLAIN, "qkv", 128, 4)),
  "yarn-llama-2-64k": (
    _LLAMA2_7B | {"max_position_embeddings": 65536, "rope_scaling": {
      "factor": 16.0, "original_max_position_embeddings": 4096, "type": "yarn", "finetuned": True}},
    (65536, 1e4, "yarn", PLAIN, "none", 128, 32)),
  "mistral-v0.1": (
    _MISTRAL | {"rope_theta": 10000.0, "sliding_window": 4096, "vocab_size": 32000,
                "transformers_version": "4.34.0.dev0"}, (32768, 1e4, "none", ("window",), "none", 128, 8)),
  "mistral-v0.2": (
    _MISTRAL | {"rope_theta": 1000000.0, "sliding_window": None, "vocab_size": 32000},
    (32768, 1e6, "none", PLAIN, "none", 128, 8)),
  "mistral-v0.3": (
    _MISTRAL | {"rope_theta": 1000000.0, "sliding_window": None, "vocab_size": 32768},
    (32768, 1e6, "none", PLAIN, "none", 128, 8)),
  "mistral-nemo": (
    _MISTRAL | {"head_dim": 128, "hidden_size": 5120, "max_position_embeddings": 131072, "num_hidden_layers": 40,
                "rope_theta": 1000000.0, "sliding_window": None, "vocab_size": 131072},
    (131072, 1e6, "none", PLAIN, "none", 128, 8)),
}
