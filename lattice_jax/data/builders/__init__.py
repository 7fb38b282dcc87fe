"""TFDS builders of the data sets, without TensorFlow. They are imported only to build or read records."""
