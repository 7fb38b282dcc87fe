"""Tokenizers: bytes, symbols and BPE of our own, and those of pretrained models."""
