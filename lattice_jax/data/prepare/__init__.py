"""From downloads or local files to the corpora that training reads; behind `scripts/prepare_data.py`."""
