"""Llama-family models of other projects as our decoder: reads their weights and writes ours."""

from lattice_jax.models.pretrained.load import Pretrained, check_no_file, load_pretrained, open_pretrained

__all__ = ["Pretrained", "check_no_file", "load_pretrained", "open_pretrained"]
