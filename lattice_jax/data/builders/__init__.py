"""TFDS builders of the data sets, which need no TensorFlow. They are imported only to build or read records."""
