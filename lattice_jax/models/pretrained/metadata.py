"""How the readers treat every key of a config.json and of a GGUF file's header: one table for both.

A key is used; or refused unless its value is what our decoder does anyway; or harmless, as no logit depends on it. An
unknown key is refused, because it may change the mathematics. docs/pretrained_metadata.md shows the table.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from lattice_jax.shown import as_json, shown, shown_name


@dataclass(frozen=True)
class KeyRule:
  """kind: used | only (refused unless the value is one of `allowed`) | harmless."""

  kind: str
  allowed: tuple[Any, ...] = ()

  def __str__(self) -> str:
    if self.kind != "only":
      return self.kind
    return "refused unless " + (" or ".join(as_json(value) for value in self.allowed) or "null")

  def permits(self, value: Any) -> bool:
    if isinstance(value, np.ndarray):
      value = value.tolist()
    return self.kind != "only" or any(
      value == other and isinstance(value, bool) == isinstance(other, bool) for other in self.allowed)


USED, HARMLESS = KeyRule("used"), KeyRule("harmless")


def only(*allowed: Any) -> KeyRule:
  """Refused unless the value is one of these. null in JSON means «not set» and is always allowed."""
  return KeyRule("only", allowed)


def _all(rule: KeyRule, names: str) -> dict[str, KeyRule]:
  return dict.fromkeys(names.split(), rule)


_CONFIG = {
  **_all(USED, """
    model_type vocab_size hidden_size intermediate_size num_hidden_layers num_attention_heads num_key_value_heads
    head_dim rms_norm_eps tie_word_embeddings max_position_embeddings rope_theta rope_scaling rope_parameters
    layer_types"""),
  "hidden_act": only("silu", "swish"),
  **_all(only(False), """
    mlp_bias bias qkv_bias qk_norm use_qk_norm use_mrope rope_interleaved alibi is_encoder_decoder
    tie_encoder_decoder add_cross_attention"""),
  **_all(only(1), """
    partial_rotary_factor embedding_multiplier residual_multiplier logits_scaling logit_scale"""),
  **_all(only(0), "num_experts num_local_experts num_experts_per_tok num_nextn_predict_layers"),
  **_all(only({}), "pruned_heads"),
  **_all(only(), """
    original_max_position_embeddings per_layer_config quantization_config auto_map attention_multiplier
    attn_logit_softcapping final_logit_softcapping query_pre_attn_scalar clip_qkv cross_attention_hidden_size"""),
  # the file's data type, training, sampling, the tokenizer, and notes on the origin of the file
  **_all(HARMLESS, """
    architectures dtype torch_dtype transformers_version _name_or_path name_or_path _commit_hash use_cache
    attn_implementation _attn_implementation _attn_implementation_autoset _flash_attn_2_enabled pretraining_tp
    chunk_size_feed_forward return_dict output_attentions output_hidden_states torchscript tf_legacy_loss use_bfloat16
    initializer_range attention_dropout hidden_dropout embd_pdrop resid_pdrop dropout gradient_checkpointing
    finetuning_task task_specific_params problem_type id2label label2id num_labels is_decoder
    keys_to_ignore_at_inference max_sequence_length model_max_length is_llama_config transformers.js_config
    unsloth_fixed unsloth_version
    bos_token_id eos_token_id pad_token_id unk_token_id sep_token_id decoder_start_token_id tokenizer_class prefix
    assistant_confidence_threshold assistant_lookbehind bad_words_ids begin_suppress_tokens
    diversity_penalty do_sample early_stopping encoder_no_repeat_ngram_size
    encoder_repetition_penalty epsilon_cutoff eta_cutoff exponential_decay_length_penalty forced_bos_token_id
    forced_eos_token_id length_penalty max_length max_new_tokens min_length no_repeat_ngram_size num_assistant_tokens
    num_assistant_tokens_schedule num_beam_groups num_beams num_return_sequences output_scores remove_invalid_values
    repetition_penalty return_dict_in_generate suppress_tokens target_lookbehind temperature top_k top_p typical_p"""),
}
CONFIG: dict[str, dict[str, KeyRule]] = {
  # in `transformers` a Llama has no window, whatever the file says
  "llama": _CONFIG | {
    "attention_bias": USED, "sliding_window": only(), "use_sliding_window": only(False), "max_window_layers": HARMLESS},
  "mistral": _CONFIG | {
    "attention_bias": only(False), "sliding_window": USED, "use_sliding_window": only(True),
    "max_window_layers": only(0)},
  # a Qwen2 always has biases, and its tensors show whether they are there
  "qwen2": _CONFIG | {
    "attention_bias": HARMLESS, **_all(USED, "sliding_window use_sliding_window max_window_layers")},
}

_ROPE = {**_all(USED, "rope_type type rope_theta"), "partial_rotary_factor": only(1)}
_STRETCHED = _ROPE | _all(USED, "factor original_max_position_embeddings") | {"attention_factor": only(1)}
# the keys of rope_scaling or rope_parameters, by its type
ROPE: dict[str, dict[str, KeyRule]] = {
  "default": _ROPE | {"factor": only(1), "attention_factor": only(1)},
  "linear": _STRETCHED,
  "dynamic": _STRETCHED,
  "llama3": _STRETCHED | _all(USED, "low_freq_factor high_freq_factor"),
  "yarn": _STRETCHED | _all(USED, "attention_factor beta_fast beta_slow mscale mscale_all_dim truncate") | {
    "finetuned": HARMLESS},
}

# after «llama.» or «qwen2.»; keys of other groups (general, tokenizer, a converter's own) change no logit
GGUF: dict[str, KeyRule] = {
  **_all(USED, """
    vocab_size context_length embedding_length block_count feed_forward_length attention.head_count
    attention.head_count_kv attention.key_length attention.value_length attention.layer_norm_rms_epsilon
    attention.layer_norm_epsilon attention.sliding_window rope.dimension_count rope.freq_base rope.scale_linear
    rope.scaling.type rope.scaling.factor rope.scaling.original_context_length rope.scaling.attn_factor
    rope.scaling.yarn_beta_fast rope.scaling.yarn_beta_slow"""),
  **_all(only(0), """
    leading_dense_block_count expert_count expert_used_count expert_shared_count expert_group_count
    expert_group_used_count nextn_predict_layers n_deepstack_layers attn_logit_softcapping router_logit_softcapping
    final_logit_softcapping rescale_every_n_layers attention.max_alibi_bias attention.clamp_kqv attention.scale
    attention.shared_kv_layers attention.temperature_length attention.temperature_scale
    attention.relative_buckets_count rope.scaling.alpha rope.scaling.yarn_log_multiplier"""),
  **_all(only(0, 1), "logit_scale residual_scale embedding_scale attention.output_scale"),
  **_all(only(False), "use_parallel_residual swin_norm expert_weights_norm"),
  "attention.causal": only(True),
  "rope.scaling.yarn_attn_factor": only(1),
  "rope.scaling.yarn_ext_factor": only(1, -1),  # negative: the scaling type's default, which is 1
  # rotary pairs next to each other, as in all files of «llama»
  "tensor_data_layout": only("Meta AI original pth"),
  **_all(HARMLESS, "rope.scaling.finetuned pooling_type"),
}
GGUF_BY_ARCHITECTURE = {"llama": GGUF, "qwen2": GGUF | {"tensor_data_layout": only("reference")}}


def check_keys(given: Mapping[str, Any], table: Mapping[str, KeyRule], source: str, *, prefix: str = "") -> None:
  """Raises ValueError for a key that is not in the table or a value that it does not allow. None is «not set»."""
  for name, value in given.items():
    if value is None:
      continue
    if name not in table:
      raise ValueError(
        f"{source} says {shown_name(prefix + name)}={shown(value)}, a key that is not known and may change what the "
        "model computes; take it out of the file if it does not.")
    if not table[name].permits(value):
      allowed = " or ".join(as_json(other) for other in table[name].allowed)
      raise ValueError(
        f"{source} says {prefix}{name}={shown(value)}, which changes what the model computes; "
        f"{f'only {allowed}' if allowed else 'only a file without it'} can be read.")


def whole_number(given: Mapping[str, Any], name: str, source: Any, *, least: int = 1) -> int:
  """An integer that fits into 32 bits, as positions must. Raises ValueError if it is something else."""
  value = given[name] if name in given else None
  if isinstance(value, bool) or not isinstance(value, int) or not least <= value < 2**31:
    raise ValueError(
      f"{source} says {name}={shown(value)}; it must say a whole number from {least} to {2**31 - 1:,}.")
  return value


def positive_number(
  given: Mapping[str, Any], name: str, source: Any, *, above: float = 0, least: float = 0, below: float = 1e30,
) -> float:
  """A number between the bounds. Raises ValueError if it is missing or something else."""
  value = given[name] if name in given else None
  is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
  if not is_number or not above < value < below or value < least:
    bounds = f"of at least {least}" if least else f"above {above}"
    raise ValueError(f"{source} says {name}={shown(value)}; it must say a number {bounds} and below {below:g}.")
  return float(value)


def flag(given: Mapping[str, Any], name: str, source: Any) -> bool:
  """True or false; null is false. Raises ValueError if it is something else."""
  value = given[name]
  if value is not None and not isinstance(value, bool):
    raise ValueError(f"{source} says {name}={shown(value)}; it must say true or false.")
  return bool(value)
