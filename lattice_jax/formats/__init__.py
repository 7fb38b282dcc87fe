"""Files of other projects' models: where they lie, and their tensors and metadata, every length checked."""
