"""Model files of other projects: finds them and reads their tensors and metadata, checking every length."""
